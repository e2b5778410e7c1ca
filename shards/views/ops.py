"""The signal code of views: from audio and integer parameters to samples.

Guarantees: pure; on one CPU kind and lock the same bits for any thread count, since nothing here calls BLAS (numpy
sums and element-wise functions, scipy's pocketfft with one worker, sosfilt, soxr, each on the calling thread). All
arithmetic is in float64 until the last rounding. Gives up: bit-equality between kinds of CPU (one int16 step there).
"""

from functools import lru_cache

import numpy as np
import soxr

from shards.law import hash64
from shards.utterance import SAMPLE_RATE
from shards.views.assets import fit, impulse, load
from shards.views.draw import ViewParams
from shards.views.policy import ViewPolicy

_STEP = 32768.0
_OCTAVES = 14
_MS = SAMPLE_RATE // 1000


def apply(policy: ViewPolicy, audio: np.ndarray, params: ViewParams) -> np.ndarray:
    """One view of an utterance.

    Args:
        policy: The policy that `params` were drawn from (it holds the noise and room files).
        audio: (params.source,) the stored audio, float32 in [-1, 1).
        params: See `shards.views.params`.

    Returns:
        (params.samples,) float32, a new array; on the int16 grid for v >= 1, the untouched crop for v = 0.

    Raises:
        ValueError: The audio is not as long as the index says.
        UserError: A noise or room file is gone or has changed.
    """
    if audio.shape != (params.source,):
        raise ValueError(f"audio of shape {audio.shape}, the index says {params.source} samples")
    if params.view == 0:
        crop = audio[params.crop_start : params.crop_start + params.crop_samples]
        return np.array(crop, dtype=np.float32)
    return quantise(render(policy, audio, params))


def render(policy: ViewPolicy, audio: np.ndarray, params: ViewParams) -> np.ndarray:
    """All operations in their order, before clipping and rounding: (source,) -> (params.samples,) float64."""
    # Takes a second, which no process waits for before its first view.
    from scipy.signal import fftconvolve, sosfilt

    crop = audio[params.crop_start : params.crop_start + params.crop_samples]
    x = change_speed(crop.astype(np.float64), params.speed, params.samples)
    if params.room >= 0:
        x = fftconvolve(x, _response(policy, params)[: len(x)])[: len(x)]
    if params.noise >= 0:
        x = x + scaled_noise(x, _noise(policy, params), params.snr_cdb)
    if params.band_high_hz:
        x = np.asarray(sosfilt(_bandpass(params.band_low_hz, params.band_high_hz), x))
    if params.gain_cdb:
        x = x * 10.0 ** (params.gain_cdb / 2000)
    for start, span in params.masks:
        x[start : start + span] = 0.0
    return x


def quantise(x: np.ndarray) -> np.ndarray:
    """Clip to what int16 can say and round (half to even) to its grid: (n,) float64 -> (n,) float32."""
    return (np.clip(np.rint(x * _STEP), -_STEP, _STEP - 1) / _STEP).astype(np.float32)


def change_speed(x: np.ndarray, speed: int, samples: int) -> np.ndarray:
    """Play `speed`/1000 times as fast, pitch included: (n,) -> (samples,) float64."""
    if speed == 1000:
        return fit(x, samples)
    return fit(soxr.resample(x, speed, 1000, quality="HQ"), samples)


def scaled_noise(speech: np.ndarray, noise: np.ndarray, snr_cdb: int) -> np.ndarray:
    """Noise at a signal-to-noise ratio in 0.01 dB, powers taken over the whole view.

    Args:
        speech: (n,) float64.
        noise: (n,) float64.
        snr_cdb: 100 * 10 log10(power of speech / power of the returned noise).

    Returns:
        (n,) float64; zeros where speech or noise is silent (no ratio exists).
    """
    wanted, found = np.sum(speech * speech), np.sum(noise * noise)
    if not (wanted > 0 and found > 0):
        return np.zeros_like(speech)
    return noise * np.sqrt(wanted / (found * 10.0 ** (snr_cdb / 1000)))


def white(seed: int, samples: int) -> np.ndarray:
    """Near-Gaussian white noise from integers: each sample the sum of the four 16-bit parts of a hash.

    Returns:
        (samples,) float64 of whole numbers, mean 0 (Irwin-Hall of order 4, standard deviation 37837).
    """
    word = hash64(seed, np.arange(samples))
    parts = [(word >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]
    return (parts[0] + parts[1] + parts[2] + parts[3]).astype(np.float64) - 2 * 0xFFFF


def pink(seed: int, samples: int) -> np.ndarray:
    """Noise of about 1/f power from integers: the sum over octaves of a random value held for 2^k samples.

    Source: the Voss-McCartney generator, as summed rows (Gardner, Scientific American, April 1978).

    Returns:
        (samples,) float64 of whole numbers, flat below about 1 Hz.
    """
    total = np.zeros(samples)
    for k in range(_OCTAVES):
        # Each octave starts elsewhere, so that not all of them step at sample 0.
        held = white(seed + k, (samples >> k) + 2)
        phase = int(hash64(seed, np.array([-1 - k]))[0]) & ((1 << k) - 1)
        total += np.repeat(held, 1 << k)[phase : phase + samples]
    return total


def synthetic_room(rt60_ms: int, ratio_cdb: int, seed: int) -> np.ndarray:
    """A direct path of 1 and decaying white noise behind it.

    Args:
        rt60_ms: Time in which the noise decays by 60 dB; the response ends there.
        ratio_cdb: Energy of the direct path over that of the rest, 0.01 dB.
        seed: Seed of the noise.

    Returns:
        (rt60_ms * 16,) float64, energy 1, direct path first.

    Source: Polack's statistical model of late reverberation (1988).
    """
    samples = rt60_ms * _MS
    response = white(seed, samples) * 10.0 ** (-3.0 * np.arange(samples) / samples)
    response[0] = 0.0
    response *= np.sqrt(10.0 ** (-ratio_cdb / 1000) / np.sum(response * response))
    response[0] = 1.0
    return response / np.sqrt(np.sum(response * response))


def _response(policy: ViewPolicy, params: ViewParams) -> np.ndarray:
    if isinstance(policy.room, tuple):
        return impulse(policy.room[params.room])
    return synthetic_room(params.room_ms, params.room_cdb, params.room_seed)


def _noise(policy: ViewPolicy, params: ViewParams) -> np.ndarray:
    if isinstance(policy.noise, tuple):
        source = load(policy.noise[params.noise])
        at = (params.noise_offset + np.arange(params.samples)) % len(source)
        return source[at].astype(np.float64)
    return (white, pink)[params.noise](params.noise_seed, params.samples)


@lru_cache(maxsize=512)
def _bandpass(low_hz: int, high_hz: int) -> np.ndarray:
    from scipy.signal import butter

    return np.asarray(butter(4, (low_hz, high_hz), btype="bandpass", fs=SAMPLE_RATE, output="sos"))
