"""What the benchmarks share: synthetic utterances, a stopwatch, a table with ratios."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from shards.utterance import SAMPLE_RATE, Utterance


def speechlike(count: int, seconds: float, folder: Path, seed: int = 0) -> list[Utterance]:
    """Write `count` 16-bit wav files of harmonics with a moving pitch and noise (synthetic), and describe them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    made = []
    for i in range(count):
        phase = 2 * np.pi * np.cumsum(120 + 60 * rng.random() + 30 * np.sin(2 * np.pi * 2 * t)) / SAMPLE_RATE
        audio = sum(np.sin(k * phase) / k for k in range(1, 9)) * 0.05 + 0.01 * rng.standard_normal(len(t))
        path = folder / f"b{i:05d}.wav"
        sf.write(path, audio.astype(np.float32), SAMPLE_RATE, subtype="PCM_16")
        made.append(
            Utterance(
                key=f"bench-{i:05d}", corpus="bench", audio=str(path), recording=f"b{i:05d}", speaker=f"s{i % 20}",
                language="en", label="abcd"[i % 4], licence="CC0",
            )
        )  # fmt: skip
    return made


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Best of `repeats` wall times in seconds, and the last result. The machine is shared: the best says most."""
    best, result = float("inf"), None
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


def show(title: str, unit: str, rows: list[tuple[str, float]], reference: str) -> None:
    """Print rates and their ratio to the row named `reference`."""
    base = dict(rows)[reference]
    print(title)
    for name, value in rows:
        print(f"  {name:46} {value:10.1f} {unit:10} {value / base:6.2f} x {reference}")
