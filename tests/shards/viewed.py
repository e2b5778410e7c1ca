"""A policy with every operation, speech-like noise and keys for the tests of views."""

import numpy as np

from shards import law
from shards.views.ops import white

RATE = 16_000


FULL = {
    "count": 4,
    "seed": 11,
    "gain_db": (-6.0, 6.0),
    "speed": (900, 1100),
    "snr_db": (5.0, 20.25),
    "noise": "synthetic",
    "room": "synthetic",
    "band": ((200, 400), (3000, 3800)),
    "mask_spans": (0, 3),
    "crop": {"policy": "random", "seconds": 1.5},
    "probability": {"room": 500, "band": 300, "noise": 700},
}


def speech(seed: int = 0, samples: int = 20_000) -> np.ndarray:
    """Band-limited noise with slow swells, on the int16 grid as decoded FLAC is."""
    x = np.convolve(white(seed, samples + 7), np.ones(8) / 8, mode="valid")
    x *= (1 + np.sin(np.arange(samples) / 900)) / 2
    return (np.rint(x / abs(x).max() * 9000) / 32768).astype(np.float32)


def keys(count: int) -> np.ndarray:
    return law.hash64(77, np.arange(count))
