"""Noise and room files: identified by sha256, loaded when first needed, at 16 kHz mono.

Guarantees: the bytes that are decoded are the bytes whose sha256 is in the policy's hash; a file is loaded once per
process as long as all of them fit into `CACHE_BYTES` (least recently used leave first). Gives up: streaming; a whole
file is decoded at once.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

CACHE_BYTES = 1 << 30
_cache: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Asset:
    """A noise or room file: where it lies, the sha256 of its bytes, and its length in samples at 16 kHz."""

    path: str
    sha256: str
    samples: int

    @classmethod
    def of(cls, path: str | Path) -> "Asset":
        """Read a file once and identify it.

        Raises:
            UserError: Missing, not audio, or empty.
        """
        data = _read(str(path))
        try:
            info = soundfile.info(io.BytesIO(data))
        except soundfile.LibsndfileError as error:
            raise UserError(f"not an audio file: {error}", where=str(path)) from error
        if info.frames == 0:
            raise UserError("audio file without samples", where=str(path))
        samples = -(-info.frames * SAMPLE_RATE // info.samplerate)
        return cls(str(path), hashlib.sha256(data).hexdigest(), samples)


def load(asset: Asset) -> np.ndarray:
    """The samples of a noise file.

    Returns:
        (asset.samples,) float32, read-only, mean of the channels at 16 kHz.

    Raises:
        UserError: The file is gone or its bytes are no longer those of `asset.sha256`.
    """
    return _cached(("noise", asset.sha256), lambda: _decode(asset))


def impulse(asset: Asset) -> np.ndarray:
    """A room impulse response: begins at its direct path (the largest magnitude), energy 1.

    Returns:
        (n,) float64, read-only.

    Raises:
        UserError: As `load`; or the response is silent.
    """
    return _cached(("room", asset.sha256), lambda: aligned(_decode(asset), asset.path))


def aligned(response: np.ndarray, where: str = "room") -> np.ndarray:
    """Cut what precedes the direct path and scale to energy 1: (n,) -> (m <= n,) float64."""
    response = np.asarray(response, dtype=np.float64)
    response = response[int(np.argmax(np.abs(response))) :]
    energy = float(np.sum(response * response))
    if not energy > 0:
        raise UserError("room impulse response is silent", where=where)
    return response / np.sqrt(energy)


def _cached(key: tuple[str, str], make) -> np.ndarray:
    with _lock:
        if key not in _cache:
            array = make()
            array.flags.writeable = False
            _cache[key] = array
        _cache.move_to_end(key)
        array = _cache[key]
        while len(_cache) > 1 and sum(a.nbytes for a in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
        return array


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the file: {error.strerror}", where=path, hint="correct the path in the view policy"
        ) from error


def _decode(asset: Asset) -> np.ndarray:
    data = _read(asset.path)
    found = hashlib.sha256(data).hexdigest()
    if found != asset.sha256:
        raise UserError(
            f"the file has changed: sha256 {found[:16]}..., the view policy names {asset.sha256[:16]}...",
            where=asset.path,
            hint="put the old file back, or give the path without a sha256 (a new policy, hence new targets)",
        )
    audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = audio[:, 0] if audio.shape[1] == 1 else audio.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return fit(mono, asset.samples)


def fit(audio: np.ndarray, samples: int) -> np.ndarray:
    """Exactly this many samples: cut at the end, or padded with zeros (resamplers round their length)."""
    out = np.zeros(samples, dtype=audio.dtype)
    out[: len(audio)] = audio[:samples]
    return out
