"""Views on another kind of CPU: the same machine told to be a lesser one, in a process of its own."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from shards.views import ViewPolicy, params
from shards.views.ops import quantise, render, synthetic_room, white
from tests.conftest import ROOT
from tests.shards.viewed import FULL, keys, speech

# What numpy, soxr, glibc's mathematics and OpenBLAS (which nothing here should call) choose by the CPU.
LESSER = {
    "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name)),
    "SOXR_USE_SIMD": "0",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-FMA,-FMA4",
    "OPENBLAS_CORETYPE": "Nehalem",
}


def write(out: str, policies: str) -> None:
    """In a process: every view before its rounding, and what numpy and glibc found of the CPU."""
    import math

    found = []
    for values in json.loads(policies):
        policy = ViewPolicy.from_dict(values)
        for i, key in enumerate(keys(16)):
            audio = speech(i, 16_000 + 3000 * i)
            found += [render(policy, audio, params(policy, int(key), view, len(audio))) for view in (1, 2, 3)]
    fast = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    sines = np.array([math.sin(i * 1e-3) + math.exp(-i * 1e-5) for i in range(100_000)])
    np.savez(out, samples=np.concatenate(found), sines=sines, fast=np.array(fast, dtype=str))


def on(folder: Path, policies: list[dict], environment: dict[str, str]) -> dict[str, np.ndarray]:
    """What `write` gives in a process with these variables."""
    code = "import sys; from tests.shards.test_views_cpu import write; write(*sys.argv[1:])"
    out = folder / f"views-{len(environment)}.npz"
    subprocess.run(
        [sys.executable, "-c", code, str(out), json.dumps(policies)], cwd=ROOT, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    return dict(np.load(out))


@pytest.mark.slow
def test_another_cpu_is_within_a_step_on_all_but_a_thousandth_of_the_samples(tmp_path):
    if platform.machine() != "x86_64" or not LESSER["NPY_DISABLE_CPU_FEATURES"]:
        pytest.skip("the switches are those of x86-64 with AVX2; this CPU has nothing that they switch off")
    soundfile.write(tmp_path / "noise.wav", white(1, 9000) / 2**19, 8000)
    soundfile.write(tmp_path / "room.wav", synthetic_room(300, 500, 3), 16_000)
    everything = {**FULL, "crop": None, "probability": {}}
    files = {"noise": [str(tmp_path / "noise.wav")], "room": [str(tmp_path / "room.wav")]}
    policies = [everything, {**everything, **files}]
    here, there = on(tmp_path, policies, {}), on(tmp_path, policies, LESSER)
    assert here["fast"].size and not there["fast"].size, "numpy was told, and obeyed"
    assert (here["sines"] != there["sines"]).any(), "so was glibc"
    # numpy and glibc change the 15th digit; soxr works in 32 bits, and without its vectors differs by up to 2e-7
    assert abs(here["samples"] - there["samples"]).max() > 1e-9, "so was soxr"
    steps = abs(quantise(here["samples"]) - quantise(there["samples"])) * 32768
    assert len(steps) > 1e6 and steps.max() <= 1 and (steps > 0).mean() <= 0.001
