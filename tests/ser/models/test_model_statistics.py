"""Functionals inside a network against a plain numpy computation of the same."""

import numpy as np
import pytest
import torch

from ser.features.functionals import cosines
from ser.models.statistics import LIMIT, PARTS, Functionals

VOICED = (3, 5)


def by_hand(frames: np.ndarray, voiced: bool) -> np.ndarray:
    """Statistics of one utterance (T, F), written the slow way."""
    spoken = frames[:, VOICED[0]] != 0
    table = []
    for column in range(frames.shape[1]):
        counts = (
            spoken if voiced and (column == VOICED[0] or column >= VOICED[1]) else np.ones(len(frames), bool)
        )
        x = frames[counts, column]
        pairs = [(t - 1, t + 1) for t in range(1, len(frames) - 1) if counts[t - 1] and counts[t + 1]]
        slopes = [(frames[b, column] - frames[a, column]) / 2 for a, b in pairs]
        table.append(
            [x.mean(), x.std(), *np.percentile(x, [10, 50, 90]), np.std(slopes) if slopes else 0.0]
            if len(x)
            else [0.0] * 6
        )
    out = np.concatenate([np.array(table).T.ravel(), course_by_hand(frames, spoken if voiced else None)])
    if voiced:
        begins = sum(spoken[t] and not spoken[t - 1] for t in range(1, len(spoken)))
        out = np.append(out, [spoken.mean(), begins / len(spoken)])
    return out


def course_by_hand(frames: np.ndarray, spoken: np.ndarray | None) -> np.ndarray:
    """Mean (less the whole's) and deviation of each quarter (T, F) -> (2 * PARTS * F,), written the slow way."""
    means, deviations = np.zeros((2, PARTS, frames.shape[1]))
    quarter = np.array([PARTS * t // len(frames) for t in range(len(frames))])
    for column in range(frames.shape[1]):
        counts = np.ones(len(frames), bool)
        if spoken is not None and (column == VOICED[0] or column >= VOICED[1]):
            counts = spoken
        for part in range(PARTS):
            x = frames[counts & (quarter == part), column]
            if len(x):
                means[part, column] = x.mean() - frames[counts, column].mean()
                deviations[part, column] = x.std()
    return np.concatenate([means.ravel(), deviations.ravel()])


def batch(seed=0):
    rng = np.random.default_rng(seed)
    lengths = [40, 17, 3, 2, 1]
    frames = rng.normal(size=(5, 40, 8)) * 3 + 1
    frames[..., VOICED[0]] *= rng.random((5, 40)) > 0.4
    frames[4, :, VOICED[0]] = 0
    return torch.from_numpy(frames).float(), torch.tensor(lengths)


@pytest.mark.parametrize("voiced", [True, False])
def test_they_are_what_numpy_says(voiced):
    frames, lengths = batch()
    module = Functionals(8, voiced=VOICED if voiced else None)
    ours = module.raw(frames, lengths)
    assert ours.shape == (5, module.size)
    for row, n in enumerate(lengths.tolist()):
        assert np.allclose(ours[row], by_hand(frames[row, :n].double().numpy(), voiced), atol=2e-5), row


def test_cepstra_are_taken_frame_by_frame():
    frames, lengths = batch()
    ours = Functionals(8, cepstra=4).raw(frames, lengths)
    plain = Functionals(4).raw(frames @ torch.from_numpy(cosines(8, 4)).float(), lengths)
    assert torch.allclose(ours, plain, atol=1e-5)


def test_nothing_behind_the_end_enters_and_no_frames_give_zeros():
    frames, lengths = batch()
    module = Functionals(8, voiced=VOICED)
    module.fit(torch.randn(module.size), torch.rand(module.size) + 0.1)
    spoilt = frames.clone()
    for row, n in enumerate(lengths.tolist()):
        spoilt[row, n:] = torch.nan
    assert torch.equal(module(frames, lengths), module(spoilt, lengths))
    assert (module(frames, torch.zeros_like(lengths)) == 0).all()
    assert (module(frames[:, :0], torch.zeros_like(lengths)) == 0).all()


def test_standardised_and_bounded():
    frames, lengths = batch()
    module = Functionals(8)
    raw = module.raw(frames, lengths)
    module.fit(raw.mean(0), torch.zeros(module.size))
    assert torch.allclose(module(frames, lengths), (raw - raw.mean(0)).clamp(-LIMIT, LIMIT), atol=1e-5)
    assert module(1e6 * frames, lengths).abs().max() <= LIMIT
