"""Log-mel: frames, padding, independent float64."""

import numpy as np
import pytest
import torch

from ser.features import mel
from shards.errors import UserError
from tests.ser.features.signals import alone, batch, speech_like


def test_equals_a_slow_float64_computation():
    wave = speech_like(0, 0.5).astype(np.float64)
    module = mel.LogMel(64)
    found, counts = module(*alone(wave.astype(np.float32)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    bank = module.bank.double().numpy()
    assert counts.item() == mel.frames(len(wave)) == found.shape[1] == 48
    for t in range(48):
        power = np.abs(np.fft.rfft(wave[160 * t : 160 * t + 400] * window, 512)) ** 2
        assert np.abs(found[0, t].double().numpy() - np.log(np.maximum(power @ bank, 1e-10))).max() < 2e-3


def test_padding_does_not_change_a_frame():
    module = mel.LogMel(40)
    waves = [speech_like(seed, seconds) for seed, seconds in enumerate((0.01, 0.025, 0.4, 1.7, 1.0))]
    frames, counts = module(*batch(waves))
    for row, wave in enumerate(waves):
        single, _ = module(*alone(wave))
        assert single.shape[1] == counts[row] == mel.frames(len(wave))
        assert (frames[row, : counts[row]] - single[0]).abs().max() <= 1e-5  # measured: 2e-7
        assert (frames[row, counts[row] :] == np.float32(np.log(1e-10))).all()


def test_a_tone_lands_in_its_band():
    module = mel.LogMel(64)
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16_000).astype(np.float32)
    frames, _ = module(*alone(tone))
    assert frames[0].mean(0).argmax() == module.bank[32].argmax()  # bin 32 is 1000 Hz


def test_nothing_and_silence():
    frames, counts = mel.LogMel(40)(torch.zeros(2, 800), torch.tensor([0, 800]))
    assert counts.tolist() == [0, 3] and torch.isfinite(frames).all()


def test_too_many_bands_are_a_user_error():
    with pytest.warns(UserWarning), pytest.raises(UserError, match="bands"):
        mel.LogMel(200)
