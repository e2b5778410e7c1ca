"""Functionals: one vector of statistics an utterance, the input of the classical models.

    egemaps   the 88 functionals of eGeMAPSv02 as openSMILE computes them (extra `opensmile`; openSMILE's licence allows
              research and education, no commercial use)
    mfcc      131 statistics of 20 MFCC, their slopes and F0, from the project's own log-mel and prosody; free

Guarantees: a row's vector depends on its true samples alone, not on padding or on the rest of the batch; always finite.
They have the shape of a frame feature with a single frame, so that they are stored and loaded like any other.
Gives up: views. Functionals are those of the clean utterance, whatever view is asked for.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

EGEMAPS_SIZE = 88
COEFFICIENTS, BANDS = 20, 40
F0_COLUMN = 10  # of ser.features.prosody.NAMES
# mean, deviation, 10th, 50th and 90th percentile of each coefficient, deviation of its slope; of F0 eight, and three
# of the energy
MFCC_SIZE = COEFFICIENTS * 6 + 8 + 3
SIZES = {"egemaps": EGEMAPS_SIZE, "mfcc": MFCC_SIZE}
SHORTEST = 3200
OPENSMILE_LICENCE = "openSMILE 3 (audEERING): research and education only, no commercial use"


def extract(kind: str, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Functionals of a batch.

    Args:
        kind: "egemaps" or "mfcc".
        waveform: (B, T) float, 16 kHz.
        lengths: (B,) true samples.

    Returns:
        (B, 1, `SIZES[kind]`) float32 and (B,) int64 ones (0 for a row without samples).

    Raises:
        UserError: "egemaps" without openSMILE.
    """
    function = {"egemaps": _egemaps, "mfcc": _mfcc}[kind]
    table = np.zeros((len(lengths), 1, SIZES[kind]), np.float32)
    for i, n in enumerate(lengths.tolist()):
        if n:
            # Statistics need a few frames; shorter speech is continued with silence.
            one = torch.nn.functional.pad(waveform[i, :n].float().cpu(), (0, max(0, SHORTEST - n)))
            table[i, 0] = np.nan_to_num(function(one), nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(table).to(waveform.device), (lengths > 0).long()


def require_opensmile() -> Any:
    """The opensmile module.

    Raises:
        UserError: It is not installed; says how, and what its licence allows.
    """
    try:
        import opensmile
    except ImportError:
        raise UserError(
            "eGeMAPS functionals need openSMILE, which is not installed",
            where="feature egemaps",
            hint=(
                "pip install 'ser-distill[opensmile]' (its licence allows research and education, no commercial use); "
                "or use the free functionals: `features: mfcc` in the model"
            ),
        ) from None
    return opensmile


@cache
def _smile() -> Any:
    opensmile = require_opensmile()
    return opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.Functionals
    )


def _egemaps(samples: Tensor) -> np.ndarray:
    return _smile().process_signal(samples.numpy(), SAMPLE_RATE).to_numpy(np.float32)[0]


@cache
def _mel() -> Any:
    from ser.features.mel import LogMel

    return LogMel(bands=BANDS)


@cache
def cosines(bands: int, coefficients: int) -> np.ndarray:
    """(bands, coefficients) orthonormal DCT-II: log-mel bands @ it are cepstral coefficients."""
    band, order = np.arange(bands)[:, None], np.arange(coefficients)[None, :]
    table = np.cos(np.pi * order * (2 * band + 1) / (2 * bands)) * np.sqrt(2 / bands)
    table[:, 0] /= np.sqrt(2)
    return table


def _mfcc(samples: Tensor) -> np.ndarray:
    from ser.features import prosody

    count = torch.tensor([len(samples)])
    with torch.no_grad():
        mel = _mel()(samples[None], count)[0][0].double().numpy()
        lld = prosody.extract(samples[None], count)[0][0].double().numpy()
    coefficients = mel @ cosines(BANDS, COEFFICIENTS)
    slopes = (coefficients[2:] - coefficients[:-2]) / 2
    pitch = lld[:, F0_COLUMN]
    voiced = pitch > 0
    energy = coefficients[:, 0]
    return np.concatenate(
        [
            coefficients.mean(0),
            coefficients.std(0),
            *np.percentile(coefficients, [10, 50, 90], axis=0),
            slopes.std(0),
            _pitch(pitch[voiced], voiced),
            [energy.max() - energy.min(), np.mean(energy > energy.mean()), np.abs(np.diff(energy)).mean()],
        ]
    )


def _pitch(semitones: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """(8,): mean, deviation, 10th, 50th, 90th percentile and mean step of F0, share and rate of voiced stretches."""
    rate = np.count_nonzero(np.diff(voiced.astype(int)) == 1) / max(1, len(voiced))
    if not len(semitones):
        return np.array([0, 0, 0, 0, 0, 0, 0, rate])
    steps = np.abs(np.diff(semitones)).mean() if len(semitones) > 1 else 0.0
    percentiles = np.percentile(semitones, [10, 50, 90])
    return np.array([semitones.mean(), semitones.std(), *percentiles, steps, voiced.mean(), rate])
