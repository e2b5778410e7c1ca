"""Parameters of views: integers that never change, within their ranges, met in their shares, with durations known beforehand."""

from dataclasses import astuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import law
from shards.views import ViewPolicy, params, view_samples
from tests.shards.viewed import FULL, keys


def test_params_golden():
    """Written once: a change here means that every stored target was made on other audio."""
    policy = ViewPolicy.from_dict(FULL)
    found = [astuple(params(policy, k, v, n)) for k, v, n in GOLDEN_FOR]
    assert found == GOLDEN
    assert policy.hash() == "a42d635a9b35b41c"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(1, 9), st.integers(0, 2**63))
def test_draw_is_its_definition(key, view, seed):
    """Speed and gain by hand, in Python integers, from the documented words of the hash."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    def hashed(s, x):
        return mix(mix((s + 0x9E3779B97F4A7C15) % 2**64) ^ mix(x ^ 0xD1B54A32D192ED03))

    def number(op, j, low, high):
        word = hashed(64 * op + j, hashed(view, hashed(seed, key)))
        return low + ((word >> 32) * (high - low + 1) >> 32)

    policy = ViewPolicy(seed=seed, speed=(900, 1100), gain_db=(-6, 6), probability={"speed": 400})
    p = params(policy, key, view, 16_000)
    assert p.speed == (number(1, 1, 900, 1100) if number(1, 0, 0, 999) < 400 else 1000)
    assert p.gain_cdb == number(5, 1, -600, 600)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 9),
    st.integers(1, 10**6),
    st.sampled_from([None, "head", "center", "random"]),
    st.integers(0, 2**32),
)
def test_params_within_ranges_and_duration_known(key, view, samples, crop, seed):
    data = {**FULL, "seed": seed, "crop": crop and {"policy": crop, "seconds": 2.0}}
    policy = ViewPolicy.from_dict(data)
    p = params(policy, key, view, samples)
    assert all(type(x) is int for x in astuple(p)[:-1])
    one = view_samples(policy, np.array([key], dtype=np.uint64), view, np.array([samples]))
    assert one.tolist() == [p.samples] and p.samples == max(1, p.crop_samples * 1000 // p.speed)
    assert p.crop_start >= 0 and p.crop_samples >= 1 and p.crop_start + p.crop_samples <= samples == p.source
    if crop is None:
        assert p.crop_samples == samples
    else:
        assert p.samples <= 32_000
        assert samples * 1000 // p.speed < 32_000 or p.samples > 31_990  # nothing is cut without need
        spare = samples - p.crop_samples
        assert crop == "random" or p.crop_start == {"head": 0, "center": spare // 2}[crop]
    if view == 0:
        assert astuple(p)[4:5] + astuple(p)[6:] == (1000, *astuple(type(p)(0, 0, 0, 0, 0, 0))[6:])
        return
    assert 900 <= p.speed <= 1100 and -600 <= p.gain_cdb <= 600
    assert p.noise == -1 or (p.noise in (0, 1) and 500 <= p.snr_cdb <= 2025)
    assert p.room == -1 or (200 <= p.room_ms <= 800 and 0 <= p.room_cdb <= 1000)
    assert p.band_high_hz == 0 or (200 <= p.band_low_hz <= 400 and 3000 <= p.band_high_hz <= 3800)
    assert len(p.masks) <= 3 and sum(n for _, n in p.masks) * 1000 <= 300 * p.samples
    assert all(a >= 0 and n > 0 and a + n <= p.samples for a, n in p.masks)


def test_durations_of_many_at_once():
    policy = ViewPolicy.from_dict(FULL)
    count = 3000
    samples = 1 + law.below(law.hash64(5, np.arange(count)), 60_000)
    views = law.below(law.hash64(6, np.arange(count)), 5)
    found = view_samples(policy, keys(count), views, samples)
    assert found.tolist() == [params(policy, k, v, n).samples for k, v, n in zip(keys(count), views, samples)]


def test_probabilities_are_met_and_operations_do_not_disturb_each_other():
    policy = ViewPolicy.from_dict(FULL)
    drawn = [params(policy, k, 1, 30_000) for k in keys(2000)]
    for name, share in (("room", 0.5), ("noise", 0.7)):
        assert abs(np.mean([getattr(p, name) >= 0 for p in drawn]) - share) < 0.04
    assert abs(np.mean([p.band_high_hz > 0 for p in drawn]) - 0.3) < 0.04
    without = ViewPolicy.from_dict({**FULL, "room": None, "speed": None, "crop": None, "count": 9})
    for p, q in zip(drawn, (params(without, k, 1, 30_000) for k in keys(2000))):
        assert (p.noise, p.snr_cdb, p.gain_cdb, p.band_low_hz) == (
            q.noise,
            q.snr_cdb,
            q.gain_cdb,
            q.band_low_hz,
        )
    speeds = np.array([p.speed for p in drawn])
    assert speeds.min() < 905 and speeds.max() > 1095 and abs(speeds.mean() - 1000) < 6


GOLDEN_FOR = [(k, v, 20_000 + 7000 * v) for k in (1, 2**63 + 12345) for v in (0, 1, 2, 3)]


GOLDEN = [
    (0, 20000, 0, 20000, 1000, 20000, -1, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, ()),
    (
        1,
        27000,
        1234,
        23688,
        987,
        24000,
        -1,
        0,
        0,
        0,
        1,
        0,
        15825935723967375910,
        1956,
        0,
        0,
        340,
        ((21696, 1968), (17960, 1504)),
    ),
    (2, 34000, 7766, 24696, 1029, 24000, -1, 0, 0, 0, -1, 0, 0, 0, 0, 0, -264, ((10928, 1008),)),
    (
        3,
        41000,
        15590,
        21936,
        914,
        24000,
        -1,
        0,
        0,
        0,
        0,
        0,
        6278984727935445600,
        1030,
        337,
        3457,
        -466,
        ((15287, 1840), (5801, 1856), (1750, 2400)),
    ),
    (0, 20000, 0, 20000, 1000, 20000, -1, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, ()),
    (
        1,
        27000,
        3088,
        23160,
        965,
        24000,
        0,
        772,
        475,
        11122793686556340398,
        1,
        0,
        11496060974947000799,
        1824,
        264,
        3550,
        165,
        ((4714, 2544), (789, 1232)),
    ),
    (
        2,
        34000,
        347,
        23928,
        997,
        24000,
        0,
        636,
        910,
        10788832096615857244,
        1,
        0,
        3642280792124555891,
        1727,
        217,
        3275,
        -280,
        (),
    ),
    (
        3,
        41000,
        8788,
        21744,
        906,
        24000,
        -1,
        0,
        0,
        0,
        0,
        0,
        7627176639455017814,
        1718,
        287,
        3096,
        -372,
        ((5396, 3200),),
    ),
]
