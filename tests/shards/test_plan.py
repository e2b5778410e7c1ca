"""The plan: everything once, bounded slots, any step by search, no world in it, corpora spread evenly."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import law
from shards.errors import UserError
from shards.plan import Plan, PlanConfig, shard_order
from shards.slots import EMPTY, cut, sequential, slots_of

RATE = 16_000


class Data:
    """Synthetic columns: shards of one corpus each, sizes and durations hashed."""

    def __init__(self, seed: int, shards: int, per_shard: int, corpora: int, longest: float = 12.0):
        sizes = 1 + law.below(law.hash64(seed, np.arange(shards)), per_shard)
        self.shard = np.repeat(np.arange(shards), sizes).astype(np.int32)
        self.corpus = np.sort(law.below(law.hash64(seed + 1, np.arange(shards)), corpora))[self.shard]
        rows = np.arange(len(self.shard))
        self.key_hash = law.hash64(seed + 2, rows)
        self.samples = 1 + law.below(law.hash64(seed + 3, rows), int(longest * RATE))
        self.rows = rows[law.below(law.hash64(seed + 4, rows), 10) > 1]
        if not len(self.rows):
            self.rows = rows

    def plan(self, config: PlanConfig, rows=None, **options) -> Plan:
        rows = self.rows if rows is None else rows
        return Plan(self.key_hash, self.samples, self.shard, self.corpus, rows, config, **options)

    def view_samples(self, rows, views):
        return self.samples[rows] * 1000 // (1000 + 10 * views) + 1

    def weights(self):
        return law.temperature(law.below(law.hash64(9, self.rows), 3) * self.rows % 4, 0.4)


def listed(plan: Plan, first: int, last: int) -> list:
    return [[(s.rows.tolist(), s.views.tolist()) for s in plan.step(g)] for g in range(first, last)]


def digest(plan: Plan, steps: int) -> str:
    return hashlib.sha256(repr(listed(plan, 0, steps)).encode()).hexdigest()[:16]


DATA = st.builds(Data, st.integers(0, 999), st.integers(1, 12), st.integers(1, 25), st.integers(1, 4))
CONFIG = st.builds(
    PlanConfig,
    seed=st.integers(0, 2**32),
    slot_seconds=st.sampled_from([0.5, 5.0, 20.0, 61.5, 1e4]),
    slots=st.integers(1, 9),
    pool_shards=st.integers(1, 6),
    views=st.sampled_from([0, 1, 5]),
    jitter=st.sampled_from([0, 64, 1024]),
)


@settings(deadline=None, max_examples=60)
@given(DATA, CONFIG, st.booleans(), st.booleans(), st.integers(0, 3))
def test_every_drawn_entry_exactly_once(data, config, weighted, augmented, epoch):
    weights = data.weights() if weighted else None
    timing = data.view_samples if augmented else None
    plan = data.plan(config, weights=weights, view_samples=timing)
    keys = data.key_hash[data.rows]
    index, number = law.draws(keys, weights, config.seed, epoch)
    views = law.view_of(keys[index], number, config.seed, config.views)
    expected = Counter(zip(data.rows[index].tolist(), views.tolist()))
    begin = plan.total_steps(epoch)
    slots = [s for g in range(begin, begin + plan.steps(epoch)) for s in plan.step(g)]
    found = Counter(e for s in slots for e in zip(s.rows.tolist(), s.views.tolist()))
    assert found == expected
    assert plan.entries(epoch) == sum(expected.values())
    # Only the end of the epoch is empty, and less than one step of it.
    filled = [len(s) > 0 for s in slots]
    assert len(slots) % config.slots == 0 and slots.count(EMPTY) < config.slots
    assert all(filled[: sum(filled)])
    for slot in slots:
        durations = timing(slot.rows, slot.views) if timing else data.samples[slot.rows]
        assert len(slot) <= 1 or len(slot) * durations.max() <= config.limit


@settings(deadline=None, max_examples=30)
@given(DATA, CONFIG, st.booleans(), st.data())
def test_seek_is_iterate(data, config, weighted, draw):
    weights = data.weights() if weighted else None
    walked = data.plan(config, weights=weights)
    total = walked.total_steps(3)
    steps = listed(walked, 0, total)
    for g in draw.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=5)):
        fresh = data.plan(config, weights=weights)
        assert listed(fresh, g, g + 1) == steps[g : g + 1]
        epoch, inner = fresh.locate(g)
        assert fresh.total_steps(epoch) + inner == g and 0 <= inner < fresh.steps(epoch)
    assert total == sum(walked.steps(e) for e in range(3))


@settings(deadline=None, max_examples=20)
@given(DATA, CONFIG, st.integers(0, 99))
def test_order_of_rows_does_not_matter(data, config, seed):
    """A fold is a set: its rows in another order, with their weights, give the same plan."""
    weights = data.weights()
    shuffle = np.argsort(law.hash64(seed, data.rows))
    one = data.plan(config, weights=weights)
    two = data.plan(config, rows=data.rows[shuffle], weights=weights[shuffle])
    assert listed(one, 0, one.total_steps(2)) == listed(two, 0, two.total_steps(2))


@given(st.integers(1, 24), st.integers(1, 30))
def test_worlds_share_one_plan(slots, world):
    """Ranks of any permitted world together run each slot once; no other world is let in."""
    if slots % world:
        with pytest.raises(UserError) as error:
            slots_of(0, world, slots)
        named = error.value.hint.split("one of ")[1].split(" processes")[0]
        assert named == ", ".join(str(w) for w in range(1, slots + 1) if slots % w == 0)
        return
    shares = [list(slots_of(rank, world, slots)) for rank in range(world)]
    assert sorted(s for share in shares for s in share) == list(range(slots))
    assert all(
        share == [rank + i * world for i in range(slots // world)] for rank, share in enumerate(shares)
    )


@settings(deadline=None, max_examples=30)
@given(DATA, CONFIG)
def test_pools_stay_local(data, config):
    """The epoch falls into runs of slots; each run draws on at most pool_shards shards that no other run touches."""
    plan = data.plan(config)
    slots = [s for g in range(plan.steps(0)) for s in plan.step(g) if len(s)]
    last = {int(h): i for i, s in enumerate(slots) for h in data.shard[s.rows]}
    run: set[int] = set()
    runs = []
    for i, slot in enumerate(slots):
        run |= set(data.shard[slot.rows].tolist())
        if all(last[h] <= i for h in run):
            runs.append(run)
            run = set()
    assert not run and sum(len(r) for r in runs) == len(last)
    assert all(len(r) <= config.pool_shards for r in runs)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 2**32), st.integers(0, 9))
def test_corpora_are_spread_evenly(sizes, seed, epoch):
    corpora = np.repeat(np.arange(len(sizes)), sizes)
    order = shard_order(np.arange(len(corpora)) * 7, corpora, seed, epoch)
    assert sorted(order.tolist()) == list(range(len(corpora)))
    along = np.cumsum(corpora[order][:, None] == np.arange(len(sizes)), axis=0)
    exact = np.arange(1, len(corpora) + 1)[:, None] * np.array(sizes) / len(corpora)
    # At place t every corpus stands within 1 of k * t, and t within (corpora) of the prefix's length.
    allowed = 1 + len(sizes) * np.array(sizes) / len(corpora)
    assert (abs(along - exact) <= allowed).all()


def test_epochs_differ_and_batches_mix():
    data = Data(3, 30, 40, 3)
    config = PlanConfig(seed=1, slot_seconds=40, slots=4, pool_shards=8)
    plan = data.plan(config)
    first, second = (
        {tuple(sorted(rows)) for step in listed(plan, a, b) for rows, _ in step}
        for a, b in ((0, plan.steps(0)), (plan.steps(0), plan.total_steps(2)))
    )
    assert len(first & second) < len(first) / 10
    other = data.plan(replace(config, seed=2))
    assert listed(plan, 0, 1) != listed(other, 0, 1)


def test_little_padding():
    data = Data(5, 32, 400, 3)
    plan = data.plan(PlanConfig(seed=1, slot_seconds=60, slots=4))
    slots = [s for g in range(plan.steps(0)) for s in plan.step(g) if len(s)]
    padded = sum(len(s) * int(data.samples[s.rows].max()) for s in slots)
    true = int(data.samples[data.rows].sum())
    assert padded < 1.1 * true
    assert padded > 0.85 * len(slots) * 60 * RATE


def test_seek_touches_its_own_pools_only():
    data, asked = Data(7, 60, 30, 3), []

    def timing(rows, views):
        asked.append(len(rows))
        return data.samples[rows]

    plan = data.plan(PlanConfig(seed=1, slot_seconds=20, slots=3, pool_shards=4), view_samples=timing)
    total = plan.total_steps(2)
    for g in (1, total // 4, total // 2, total - 1):
        asked.clear()
        plan.step(g)
        assert len(asked) <= 2 and sum(asked) <= 2 * 4 * 30


def test_a_pool_smaller_than_a_step():
    data = Data(11, 9, 2, 2)
    plan = data.plan(PlanConfig(seed=4, slot_seconds=1000, slots=20, pool_shards=1))
    assert plan.steps(0) == 1
    rows = [r for s in plan.step(0) for r in s.rows.tolist()]
    assert sorted(rows) == data.rows.tolist()


def test_columns_may_be_memory_mapped(tmp_path):
    data = Data(13, 10, 20, 2)
    config = PlanConfig(seed=4, slot_seconds=30, slots=2, views=3)
    expected = digest(data.plan(config), 5)
    for name in ("key_hash", "samples", "shard", "corpus"):
        np.save(tmp_path / name, getattr(data, name))
        setattr(data, name, np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    assert digest(data.plan(config), 5) == expected


def test_golden():
    """Written once: a change means that no run can be resumed on the samples it was begun with."""
    data = Data(17, 20, 30, 3)
    config = PlanConfig(seed=4, slot_seconds=30, slots=4, pool_shards=5, views=6)
    assert digest(data.plan(config), 12) == "4a74a91b4dd53784"
    plan = data.plan(config, weights=data.weights(), view_samples=data.view_samples)
    assert digest(plan, 12) == "6ac37f0937b36d68"


def test_mistakes_are_explained():
    data = Data(19, 3, 5, 1)
    config = PlanConfig(seed=0, slot_seconds=10, slots=4)
    with pytest.raises(UserError, match="no rows"):
        data.plan(config, rows=np.empty(0, dtype=np.int64))
    with pytest.raises(UserError, match="weights"):
        data.plan(config, weights=np.zeros(len(data.rows), dtype=np.uint64))
    for wrong in (
        {"slots": 0},
        {"slot_seconds": 0},
        {"slot_seconds": float("nan")},
        {"views": -1},
        {"pool_shards": 0},
    ):
        with pytest.raises(UserError):
            replace(config, **wrong)
    with pytest.raises(UserError, match="3 processes"):
        data.plan(config).slots_of(0, 3)


DURATIONS = st.lists(st.integers(1, 100), max_size=60)


@given(DURATIONS, st.integers(1, 400))
def test_cut_is_greedy(durations, limit):
    borders = cut(np.array(durations, dtype=np.int64), limit).tolist()
    assert borders[0] == 0 and borders[-1] == len(durations)
    for a, b in pairwise(borders):
        assert a < b and (b == a + 1 or (b - a) * max(durations[a:b]) <= limit)
        if b < len(durations):
            assert (b + 1 - a) * max(durations[a : b + 1]) > limit


@given(DURATIONS, st.integers(1, 400), st.booleans(), st.integers(0, 9))
def test_sequential(durations, limit, equal, view):
    samples = np.array(durations, dtype=np.int64)
    rows = np.arange(len(samples)) * 3 + 1
    shard = law.below(law.hash64(2, rows), 4)
    slots = sequential(rows, samples, limit / RATE, view, shard=shard, equal_lengths=equal)
    of = dict(zip(rows.tolist(), range(len(rows))))
    assert sorted(r for s in slots for r in s.rows.tolist()) == rows.tolist()
    order = []
    for slot in slots:
        at = [of[r] for r in slot.rows.tolist()]
        assert slot.views.tolist() == [view] * len(at) and len(set(shard[at])) == 1
        assert len(at) == 1 or len(at) * samples[at].max() <= limit
        assert not equal or len(set(samples[at])) == 1
        order += [(shard[i], -samples[i], i) for i in at]
    assert order == sorted(order)


def openings(plan: Plan, monkeypatch) -> list[int]:
    """Epochs whose rows are passed over from now on, one entry a pass."""
    found: list[int] = []
    monkeypatch.setattr("shards.plan.shard_order", lambda s, c, seed, epoch: found.append(epoch) or shard_order(s, c, seed, epoch))  # fmt: skip
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_a_restart_opens_one_epoch_whatever_its_step(monkeypatch, weighted):
    data = Data(3, 9, 20, 2)
    weights = data.weights() if weighted else None
    config = PlanConfig(seed=5, slot_seconds=30.0, slots=2, pool_shards=3, views=2)
    walked = data.plan(config, weights=weights)
    total = walked.total_steps(40)
    begins = walked.begins
    assert begins[-1] == total and len(begins) == 41
    for g in (0, total // 3, total - 1):
        fresh = data.plan(config, weights=weights)
        fresh.recall(begins)
        opened = openings(fresh, monkeypatch)
        assert listed(fresh, g, g + 1) == listed(walked, g, g + 1) and fresh.locate(g) == walked.locate(g)
        assert opened.count(fresh.locate(g)[0]) <= 2 and len(set(opened)) == 1, (
            "without it: an opening an epoch"
        )
        monkeypatch.undo()
    # It goes on beyond what is known, and a shorter memory takes nothing away.
    fresh = data.plan(config, weights=weights)
    fresh.recall(begins[:3])
    assert fresh.total_steps(40) == total and listed(fresh, total - 2, total) == listed(
        walked, total - 2, total
    )
    fresh.recall(begins[:2])
    assert fresh.begins == begins
    with pytest.raises(AssertionError):
        fresh.recall([1, 2])
