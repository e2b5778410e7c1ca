"""The law: exact counts, draw numbers without gaps, views in turn, integers that are the same everywhere."""

from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import law
from shards.errors import UserError

WORD = st.integers(0, 2**64 - 1)
KEYS = st.lists(WORD, min_size=1, max_size=30, unique=True)


def words(values) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator, in Python integers."""
    out, mask = [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def hash_by_hand(seed: int, word: int) -> int:
    def mix(x):
        return splitmix64((x - 0x9E3779B97F4A7C15) % 2**64, 1)[0]

    return mix(mix((seed + 0x9E3779B97F4A7C15) % 2**64) ^ mix(word ^ 0xD1B54A32D192ED03))


def test_mix_is_splitmix64():
    # First outputs for seed 0 as printed with the reference code (Vigna, prng.di.unimi.it).
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = words([(i + 1) * 0x9E3779B97F4A7C15 % 2**64 for i in range(3)])
    assert law.mix64(states).tolist() == expected == splitmix64(0, 3)


@given(st.integers(-(2**70), 2**70), KEYS)
def test_hash_is_its_definition(seed, keys):
    assert law.hash64(seed, words(keys)).tolist() == [hash_by_hand(seed % 2**64, k) for k in keys]
    paired = law.hash64(words(keys), words(keys[::-1])).tolist()
    assert paired == [hash_by_hand(a, b) for a, b in zip(keys, keys[::-1])]


def test_hash_golden():
    """Written once; any change of these numbers changes every plan and every view that exists."""
    assert law.hash64(0, words([0, 1, 2**64 - 1])).tolist() == GOLDEN_HASH
    assert law.subseed(7, 1, 2) == GOLDEN_SUBSEED


def test_below_is_even():
    drawn = law.below(law.hash64(3, np.arange(70_000)), 7)
    counts = np.bincount(drawn)
    assert len(counts) == 7 and abs(counts - 10_000).max() < 500


@settings(deadline=None)
@given(KEYS, st.data(), st.integers(0, 2**32), st.integers(0, 10**6))
def test_counts_are_the_law(keys, data, seed, epoch):
    weights = data.draw(st.lists(st.integers(0, 2**38), min_size=len(keys), max_size=len(keys)))
    index, number = law.draws(words(keys), words(weights), seed, epoch)
    expected = []
    for i, (key, w) in enumerate(zip(keys, weights)):
        u = hash_by_hand(seed, key) >> 32
        first, after = (epoch * w + u) >> 32, ((epoch + 1) * w + u) >> 32
        expected += [(i, n) for n in range(first, after)]
    assert list(zip(index.tolist(), number.tolist())) == expected


@settings(deadline=None)
@given(KEYS, st.integers(0, 2**32), st.integers(0, 2**31 - 2))
def test_large_weights_do_not_overflow(keys, seed, epoch):
    """A group of one row among 2^27 weighs up to 2^59."""
    offset = law.hash64(seed, words(keys)) >> np.uint64(32)
    for weight in (2**32 - 1, 2**59 // (epoch + 1), 2**40 + 12345):
        found = law._floor(words([weight] * len(keys)), offset, epoch)
        assert found.tolist() == [(epoch * weight + int(u)) >> 32 for u in offset]


@settings(deadline=None, max_examples=30)
@given(KEYS, st.data(), st.integers(0, 2**32), st.integers(1, 25))
def test_counts_are_exact_over_epochs(keys, data, seed, epochs):
    weights = data.draw(st.lists(st.integers(0, 2**34), min_size=len(keys), max_size=len(keys)))
    seen: dict[int, list[int]] = {i: [] for i in range(len(keys))}
    for epoch in range(epochs):
        for i, n in zip(*law.draws(words(keys), words(weights), seed, epoch)):
            seen[int(i)].append(int(n))
        for i, w in enumerate(weights):
            assert abs(len(seen[i]) * 2**32 - (epoch + 1) * w) < 2**32
    for numbers in seen.values():
        assert numbers == list(range(len(numbers)))


@given(KEYS, st.integers(0, 2**32), st.integers(0, 10**5))
def test_uniform_is_weight_one(keys, seed, epoch):
    for got in (
        law.draws(words(keys), None, seed, epoch),
        law.draws(words(keys), law.uniform(len(keys)), seed, epoch),
    ):
        assert got[0].tolist() == list(range(len(keys)))
        assert got[1].tolist() == [epoch] * len(keys)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 6), min_size=1, max_size=200), st.integers(0, 10))
def test_temperature_shares(groups, tenths):
    alpha = tenths / 10
    weights = law.temperature(np.array(groups), alpha).astype(object)
    sizes = Counter(groups)
    total = sum(n**alpha for n in sizes.values())
    for g, n in sizes.items():
        mine = {int(w) for w, h in zip(weights, groups) if h == g}
        assert len(mine) == 1
        share = mine.pop() * n / (2**32 * len(groups))
        assert share == pytest.approx(n**alpha / total, rel=1e-6)
    assert abs(int(sum(weights)) - 2**32 * len(groups)) <= len(groups) / 2
    if alpha == 1:
        assert set(weights) == {2**32}


def test_temperature_golden():
    groups = np.repeat([0, 1, 2], [1000, 50, 3])
    exact = [Decimal(n).sqrt() for n in (1000, 50, 3)]
    by_hand = [
        int((2**32 * 1053 * r / sum(exact) / n).to_integral_value()) for r, n in zip(exact, (1000, 50, 3))
    ]
    assert law.temperature(groups, 0.5)[[0, 1000, 1052]].tolist() == by_hand


def test_temperature_refuses():
    with pytest.raises(UserError, match="alpha"):
        law.temperature(np.zeros(3, dtype=int), 1.5)


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 5), st.integers(-1, 9)), min_size=1, max_size=60)
)
def test_combine(rows):
    columns = np.array(rows).T
    codes = {row: i for i, row in enumerate(sorted(set(rows)))}
    assert law.combine(*columns).tolist() == [codes[row] for row in rows]


@given(KEYS, st.integers(0, 2**32), st.integers(0, 10**6), st.integers(1, 50))
def test_view_law(keys, seed, number, views):
    n = np.full(len(keys), number)
    found = law.view_of(words(keys), n, seed, views).tolist()
    assert found == [1 + (hash_by_hand(seed, k) + number) % views for k in keys]
    one = words([keys[0]] * views)
    assert sorted(law.view_of(one, number + np.arange(views), seed, views)) == list(range(1, views + 1))
    assert law.view_of(words(keys), n, seed, 0).tolist() == [0] * len(keys)


GOLDEN_HASH = [575854417547002445, 8478439144037988929, 16411602879861881709]
GOLDEN_SUBSEED = 16956355306867184807
