"""Audio in and out: any file that libsndfile reads becomes 16 kHz mono float32, and FLAC of 16 bits for the shards.

Guarantees: only the asked stretch of a long recording is read (seek, then read); the same bytes come out for the
same samples on one lock; 16-bit 16 kHz mono input passes through bit-exactly; whatever cannot be used raises
`BadAudio` with a reason, so that the caller can quarantine it and count it.
Gives up: more than 16 bits, more than one channel (they are averaged), levels above full scale (clipped).
"""

import io
import os
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from shards.utterance import SAMPLE_RATE, Utterance

MAX_SECONDS = 120.0  # a cut longer than this is a mistake in the labels far more often than an utterance
END_SLACK = 0.25  # seconds by which label files may overshoot the recording's end; they do, by rounding
PEAK_LIMIT = (
    4.0  # resampling and hot float files overshoot 1.0 a little; integers stored as floats by thousands
)
EXACT_LENGTH = (
    "WAV",
    "WAVEX",
    "FLAC",
    "AIFF",
    "RF64",
    "W64",
    "NIST",
    "CAF",
    "AU",
)  # MP3 and OGG may estimate


class BadAudio(Exception):
    """Audio that cannot be used.

    Attributes:
        kind: One of "unreadable", "empty", "non-finite", "too long", "out of range", to count by.
        reason: The kind and its details, one line.
    """

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind, detail)
        self.kind = kind
        self.reason = f"{kind}: {detail}" if detail else kind

    def __str__(self) -> str:
        return self.reason


def decode(
    source: str | os.PathLike | bytes | BinaryIO,
    start: float | None = None,
    end: float | None = None,
    max_seconds: float = MAX_SECONDS,
) -> tuple[np.ndarray, int]:
    """Reads one stretch of audio, averaged over channels, at its native rate.

    Args:
        source: Path, the file's bytes, or an open seekable binary file.
        start, end: Borders in seconds; None means the file's own.
        max_seconds: Longest stretch accepted.

    Returns:
        Samples float32 (frames,) in the file's own scale (full scale is 1.0), and the rate in Hz.

    Raises:
        BadAudio: The source is unreadable, truncated, empty, not finite or longer than max_seconds.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with soundfile.SoundFile(file) as sound:
            rate, total = sound.samplerate, sound.frames
            first = 0 if start is None else round(start * rate)
            last = total if end is None else round(end * rate)
            if first < 0 or (first >= total and total):
                raise BadAudio("empty", f"the cut starts at {start} s, the file has {total / rate:.3f} s")
            if last > total + END_SLACK * rate:
                raise BadAudio("empty", f"the cut ends at {end} s, the file has {total / rate:.3f} s")
            count = min(last, total) - first
            if count <= 0:
                raise BadAudio("empty", "no samples")
            if count > max_seconds * rate:
                raise BadAudio("too long", f"{count / rate:.1f} s, the limit is {max_seconds:g} s")
            if first:
                sound.seek(first)
            frames = sound.read(count, dtype="float32", always_2d=True)
            exact = sound.format in EXACT_LENGTH
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise BadAudio("unreadable", _one_line(error)) from error
    if len(frames) < count and (exact or not len(frames)):
        raise BadAudio("unreadable", f"truncated, {len(frames)} of {count} frames")
    samples = _mix(frames)
    if not np.isfinite(samples).all():
        raise BadAudio("non-finite", f"{int((~np.isfinite(samples)).sum())} of {len(samples)} samples")
    return samples, rate


def to_mono_16k(samples: np.ndarray, rate: int) -> np.ndarray:
    """Averages channels and resamples with soxr (HQ, one thread).

    Args:
        samples: (frames,) or (frames, channels), any float or integer dtype already scaled to [-1, 1].
        rate: Rate in Hz.

    Returns:
        float32 (n,) at 16 kHz, contiguous; n is frames * 16000 / rate, rounded by soxr.

    Raises:
        BadAudio: Nothing is left after resampling.
    """
    assert samples.ndim in (1, 2) and rate > 0
    mono = _mix(samples) if samples.ndim == 2 else np.ascontiguousarray(samples, dtype=np.float32)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise BadAudio("empty", "no samples at 16 kHz")
    return np.ascontiguousarray(mono, dtype=np.float32)


def load(utterance: Utterance, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The utterance's audio, cut, mono, 16 kHz: float32 (n,). Raises BadAudio.

    A URL is fetched whole first, because a fault of the network inside the decoder would look like broken audio.

    Raises:
        UserError: The object store cannot be reached or refuses.
    """
    if "://" in utterance.audio:
        from shards.store import opened  # only remote corpora need it

        try:
            samples, rate = decode(opened(utterance.audio), utterance.start, utterance.end, max_seconds)
        except FileNotFoundError as error:
            raise BadAudio("unreadable", _one_line(error)) from error
    else:
        samples, rate = decode(utterance.audio, utterance.start, utterance.end, max_seconds)
    return to_mono_16k(samples, rate)


def encode_flac(samples: np.ndarray) -> bytes:
    """16-bit FLAC at 16 kHz; the same samples give the same bytes on one lock.

    Rounding is done here (nearest, ties to even, 1.0 = 32768) and the few samples above full scale are clipped,
    so that no library's own scaling enters and int16 input comes back exactly.

    Args:
        samples: float (n,), full scale 1.0.

    Raises:
        BadAudio: Empty, not finite, or so far above full scale that clipping would destroy it.
    """
    assert samples.ndim == 1
    if not len(samples):
        raise BadAudio("empty", "no samples")
    peak = float(np.max(np.abs(samples)))
    if not np.isfinite(peak):
        raise BadAudio("non-finite", f"{int((~np.isfinite(samples)).sum())} of {len(samples)} samples")
    if peak > PEAK_LIMIT:
        raise BadAudio("out of range", f"peak {peak:g}, full scale is 1.0: divide integer samples by 32768")
    scaled = np.rint(samples.astype(np.float64) * 32768.0)
    integers = np.clip(scaled, -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, integers, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def decode_flac(data: bytes) -> np.ndarray:
    """float32 (n,) of what `encode_flac` wrote, n / 32768 exactly.

    Raises:
        BadAudio: Unreadable, truncated, empty, or not 16 kHz mono.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            rate, channels, total = sound.samplerate, sound.channels, sound.frames
            integers = sound.read(dtype="int16", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise BadAudio("unreadable", _one_line(error)) from error
    if (rate, channels) != (SAMPLE_RATE, 1):
        raise BadAudio("unreadable", f"{rate} Hz and {channels} channels where a shard holds 16000 Hz mono")
    if not total or len(integers) != total:
        raise BadAudio("unreadable" if total else "empty", f"{len(integers)} of {total} frames")
    return integers[:, 0].astype(np.float32) / np.float32(32768)


def _mix(frames: np.ndarray) -> np.ndarray:
    """Mean over channels in float64 (a sum of eight full-scale channels keeps its low bits), as float32."""
    if frames.shape[1] == 1:
        return np.ascontiguousarray(frames[:, 0], dtype=np.float32)
    return frames.mean(axis=1, dtype=np.float64).astype(np.float32)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
