"""The parameters of a view: integers, from (policy, key hash, view, duration), without the audio.

Guarantees: integer arithmetic only, so the same on every machine; each operation reads its own words of the hash, so
switching one on or off leaves the others' parameters alone. Gives up: nothing that depends on the signal can be drawn.

Word (op, j) of a view is hash64(64 * op + j, hash64(view, hash64(seed, key_hash))), op the position in OPS. A number
in [lowest, highest] is lowest + (upper half of the word * (highest - lowest + 1)) >> 32. Word (op, 0) decides whether
the operation acts.
"""

from dataclasses import dataclass

import numpy as np

from shards.law import below, hash64
from shards.utterance import SAMPLE_RATE
from shards.views.policy import OPS, Range, ViewPolicy, centi

_PER_OP = 64
_WORDS = np.arange(_PER_OP * len(OPS))
_MS = SAMPLE_RATE // 1000


@dataclass(frozen=True, slots=True)
class ViewParams:
    """Everything about one view of one utterance; all integers.

    Attributes:
        view: v; 0 is clean.
        source: Samples of the whole stored utterance.
        crop_start, crop_samples: The stretch of it that is used.
        speed: In 1/1000.
        samples: Length of the view: crop_samples * 1000 // speed, at least 1.
        room: -1 none, else the file's number (0 when synthetic).
        room_ms, room_cdb, room_seed: Synthetic room: RT60 in ms, direct-to-reverberant ratio in 0.01 dB, seed.
        noise: -1 none, else the file's number (synthetic: 0 white, 1 pink).
        noise_offset: First sample of the noise file; it is repeated where it ends.
        noise_seed: Seed of synthetic noise.
        snr_cdb: Signal-to-noise ratio in 0.01 dB.
        band_low_hz, band_high_hz: Edges of the bandpass; 0, 0 none.
        gain_cdb: Gain in 0.01 dB.
        masks: (start, samples) of each span set to zero, in samples of the view; they may overlap.
    """

    view: int
    source: int
    crop_start: int
    crop_samples: int
    speed: int
    samples: int
    room: int = -1
    room_ms: int = 0
    room_cdb: int = 0
    room_seed: int = 0
    noise: int = -1
    noise_offset: int = 0
    noise_seed: int = 0
    snr_cdb: int = 0
    band_low_hz: int = 0
    band_high_hz: int = 0
    gain_cdb: int = 0
    masks: tuple[tuple[int, int], ...] = ()


def view_samples(
    policy: ViewPolicy, key_hash: np.ndarray, views: int | np.ndarray, samples: np.ndarray
) -> np.ndarray:
    """Durations of views without their audio.

    The crop is taken from the stored audio so that the view, after its speed, fits: at most
    seconds * 16000 * speed // 1000 samples of it.

    Args:
        policy: The view policy.
        key_hash: (n,) uint64.
        views: (n,) views, or one for all.
        samples: (n,) durations of the stored audio in samples.

    Returns:
        (n,) int64 durations of the views in samples, at least 1.
    """
    key_hash = np.atleast_1d(np.asarray(key_hash, dtype=np.uint64))
    samples = np.asarray(samples).astype(np.int64)
    views = np.broadcast_to(np.asarray(views, dtype=np.int64), key_hash.shape)
    speed = _speeds(policy, key_hash, views)
    used = (
        samples
        if policy.crop is None
        else np.minimum(samples, np.maximum(policy.crop.samples * speed // 1000, 1))
    )
    return np.maximum(used * 1000 // speed, 1)


def params(policy: ViewPolicy, key_hash: int, view: int, samples: int) -> ViewParams:
    """All parameters of one view.

    Args:
        policy: The view policy.
        key_hash: The row's 64-bit key hash.
        view: v >= 0 (it may exceed `policy.count`: views do not depend on how many there are).
        samples: Duration of the stored audio in samples.

    Returns:
        ViewParams; `samples` equals `view_samples` of the same arguments.
    """
    key_hash, view, samples = int(key_hash), int(view), int(samples)
    assert view >= 0 and samples > 0
    base = hash64(view, hash64(policy.seed, np.array([key_hash], dtype=np.uint64)))
    words = hash64(_WORDS, base).tolist()

    def number(op: str, j: int, bounds: Range) -> int:
        return bounds[0] + ((words[_PER_OP * OPS.index(op) + j] >> 32) * (bounds[1] - bounds[0] + 1) >> 32)

    def acts(op: str) -> bool:
        return view > 0 and number(op, 0, (0, 999)) < policy.odds(op)

    speed = number("speed", 1, policy.speed) if acts("speed") and policy.speed else 1000
    start, used = 0, samples
    if policy.crop is not None:
        used = min(samples, max(policy.crop.samples * speed // 1000, 1))
        spare = samples - used
        start = {"head": 0, "center": spare // 2, "random": number("crop", 1, (0, spare))}[policy.crop.policy]
    length = max(used * 1000 // speed, 1)
    found: dict = {}
    if acts("room"):
        if policy.room == "synthetic":
            found |= {
                "room": 0,
                "room_ms": number("room", 1, policy.room_ms),
                "room_cdb": number("room", 2, centi(policy.room_db)),
                "room_seed": words[_PER_OP * OPS.index("room") + 3],
            }
        elif policy.room:
            found["room"] = number("room", 1, (0, len(policy.room) - 1))
    if acts("noise") and policy.noise and policy.snr_db:
        found["snr_cdb"] = number("noise", 1, centi(policy.snr_db))
        if isinstance(policy.noise, str):
            found |= {
                "noise": number("noise", 2, (0, 1)),
                "noise_seed": words[_PER_OP * OPS.index("noise") + 3],
            }
        else:
            chosen = number("noise", 2, (0, len(policy.noise) - 1))
            last = policy.noise[chosen].samples - 1
            found |= {"noise": chosen, "noise_offset": number("noise", 3, (0, last))}
    if acts("band") and policy.band:
        found |= {
            "band_low_hz": number("band", 1, policy.band[0]),
            "band_high_hz": number("band", 2, policy.band[1]),
        }
    if acts("gain") and policy.gain_db:
        found["gain_cdb"] = number("gain", 1, centi(policy.gain_db))
    if acts("mask") and policy.mask_spans:
        count = number("mask", 1, policy.mask_spans)
        longest = length * policy.mask_share // 1000 // max(count, 1)
        spans = []
        for i in range(count):
            span = min(number("mask", 2 + 2 * i, policy.mask_ms) * _MS, longest)
            if span:
                spans.append((number("mask", 3 + 2 * i, (0, length - span)), span))
        found["masks"] = tuple(spans)
    return ViewParams(view, samples, start, used, speed, length, **found)


def _speeds(policy: ViewPolicy, key_hash: np.ndarray, views: np.ndarray) -> np.ndarray:
    """(n,) int64 speed of each view in 1/1000, as `params` draws it."""
    speed = np.full(len(key_hash), 1000, dtype=np.int64)
    if policy.speed is None or not views.any():
        return speed
    op = _PER_OP * OPS.index("speed")
    base = hash64(views, hash64(policy.seed, key_hash))
    low, high = policy.speed
    drawn = low + below(hash64(op + 1, base), high - low + 1)
    acting = (views > 0) & (below(hash64(op, base), 1000) < policy.odds("speed"))
    return np.where(acting, drawn, speed)
