"""Normalisation: any batching gives numpy's mean and deviation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.features.normalise import Moments
from shards.errors import UserError


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 2**31))
def test_any_batching_and_merging_equals_numpy(lengths, size, seed):
    if sum(lengths) == 0:
        return
    rng = np.random.default_rng(seed)
    rows = [rng.normal(1e4, 3.0, (n, 2)).astype(np.float32) for n in lengths]
    parts = [Moments.empty(2), Moments.empty(2)]
    for number, start in enumerate(range(0, len(rows), size)):
        chosen = rows[start : start + size]
        frames = torch.full((len(chosen), 9, 2), 1e9)
        for i, row in enumerate(chosen):
            frames[i, : len(row)] = torch.from_numpy(row)
        parts[number % 2].add(frames, torch.tensor([len(r) for r in chosen]))
    whole = np.concatenate(rows).astype(np.float64)
    found = parts[0].merge(parts[1]).normaliser()
    deviation = whole.std(0)
    assert np.allclose(found.mean.numpy(), whole.mean(0), rtol=1e-6)
    assert np.allclose(found.deviation.numpy(), np.where(deviation < 1e-5, 1.0, deviation), rtol=1e-4)


def test_apply_centres_and_keeps_padding_zero():
    frames, lengths = torch.randn(3, 50, 4) * 5 + 2, torch.tensor([50, 20, 1])
    normal = Moments.empty(4).add(frames, lengths).normaliser()
    out = normal(frames, lengths)
    inside = torch.cat([out[i, :n] for i, n in enumerate(lengths)])
    assert inside.mean(0).abs().max() < 1e-5 and (inside.std(0, correction=0) - 1).abs().max() < 1e-4
    assert not out[1, 20:].any()


def test_fitting_on_nothing_is_a_user_error():
    with pytest.raises(UserError, match="no frames"):
        Moments.empty(3).normaliser()
