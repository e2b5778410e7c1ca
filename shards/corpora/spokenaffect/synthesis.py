"""Speaking one block of utterances: `python -m shards.corpora.spokenaffect.synthesis FOLDER < requests.jsonl`.

Guarantees the same bytes for the same list of requests on one CPU kind and lock. Espeak keeps state between calls
(the same call twice in a process gives other samples), therefore a block is always spoken by a fresh process, whole
and in order; never call `speak` from a process that lives on.

A request is a JSON object: key, voice, text, rate, pitch, range (espeak's parameters), level_db (RMS in dBFS), tilt.
Writes FOLDER/<key>.flac, each put whole, and prints a JSON line {key, samples, sha256, peak} an utterance.
"""

import ctypes
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

from shards import atomic
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

ESPEAK_RATE = 22_050
SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
# Espeak clips some voices above 80; loudness is a gain afterwards.
SAFE_VOLUME = 60
SEED = 1
PEAK = 0.98


class Espeak:
    """The library behind ctypes. One per process: espeak-ng has global state and is not thread-safe."""

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError:
            raise UserError(
                "SpokenAffect needs espeak-ng", hint="install the extra: pip install 'espeakng-loader'"
            ) from None
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        rate = self._lib.espeak_Initialize(SYNCHRONOUS, 0, data, DO_NOT_EXIT)
        if rate != ESPEAK_RATE:
            raise UserError(f"espeak-ng did not start (espeak_Initialize gave {rate})", where=data.decode())
        # Initialising seeds espeak's own generator with the time; breathy voices (f2, f3, f5) draw noise from it.
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(SEED))
        self._chunks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = callback(self._collect)  # kept: ctypes does not
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, voice: str, text: str, rate: int, pitch: int, range_: int) -> np.ndarray:
        """Speak a sentence: int16 (n,) at 22.05 kHz.

        Raises:
            UserError: espeak-ng has no such voice, or spoke nothing.
        """
        self._chunks.clear()
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {voice!r}", hint="install the locked espeakng-loader")
        for parameter, value in ((RATE, rate), (VOLUME, SAFE_VOLUME), (PITCH, pitch), (RANGE, range_)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        raw = text.encode()
        status = self._lib.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, UTF8, None, None)
        self._lib.espeak_Synchronize()
        if status != 0 or not self._chunks:
            raise UserError(f"espeak-ng said nothing (status {status})", where=f"{voice}: {text}")
        return np.concatenate(self._chunks)


def shape(samples: np.ndarray, level_db: float, tilt: float) -> np.ndarray:
    """Raw espeak samples int16 (n,) at 22.05 kHz to float32 (m,) at 16 kHz with the wished level and tilt.

    Tilt k is the filter 1 - k z^-1: positive lifts the treble, negative dulls it. The level is set afterwards, so the
    filter changes the colour alone. A peak that would clip is scaled down as a whole.
    """
    x = soxr.resample(samples.astype(np.float32) / 32768.0, ESPEAK_RATE, SAMPLE_RATE).astype(np.float64)
    x[1:] -= tilt * x[:-1]
    x *= 10 ** (level_db / 20) / np.sqrt(np.mean(x**2))
    return (x * min(1.0, PEAK / np.max(np.abs(x)))).astype(np.float32)


def main(folder: Path) -> None:
    """Speak the requests on standard input into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    for line in sys.stdin:
        r = json.loads(line)
        raw = espeak.speak(r["voice"], r["text"], r["rate"], r["pitch"], r["range"])
        samples = shape(raw, r["level_db"], r["tilt"])
        content = io.BytesIO()
        soundfile.write(content, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        atomic.write(folder / f"{r['key']}.flac", content.getvalue(), durable=False)
        row = {
            "key": r["key"],
            "samples": len(samples),
            "peak": round(float(np.max(np.abs(samples))), 4),
            "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"{error}")
