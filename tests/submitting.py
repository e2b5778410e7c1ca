"""What tests of submission share: a tiny recipe over a manifest, the `ser` command, and what a run has to show."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests import tiny
from tests.conftest import ROOT

GATE = ROOT / "tests/gate"
FOLD = "session-ses0"


def write_recipe(
    folder: Path, corpus: Path, steps: int = 30, seeds: tuple[int, ...] = (0,), **changes: Any
) -> Path:
    """A recipe with one student; its run directory and dataset lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}], "seeds": list(seeds),
        "train": tiny.training(steps, checkpoint_every=10, keep_checkpoints=2),
    }  # fmt: skip
    values = tiny.recipe_values(folder, str(folder / "dataset"), {"student": model}, cluster={"cpus": 1})
    source = {"reader": "manifest", "root": str(corpus), "options": {"corpus": "tiny"}}
    values["data"] = {"path": str(folder / "dataset"), "corpora": [source], "shard_seconds": 8.0}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def ser(*arguments: str, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess:
    """The `ser` command in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def until(found: Callable[[], Any], what: str, seconds: float = 600) -> Any:
    """Wait for something that must come; the patience is that of a machine with much else to do."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return value


def gates(folder: Path, *phases: int | str) -> dict[str, str]:
    """Variables that hold work at phases (`tests/gate`) until `folder/go-PHASE` is there."""
    held = ",".join(f"{phase}:{folder / f'go-{phase}'}" for phase in phases)
    return {"SER_TEST_GATE": held, "PYTHONPATH": f"{GATE}:{ROOT}"}


def saved(run: Path, step: int, **which: Any) -> bool:
    """Whether a training has its checkpoint of a step."""
    return (training(run, **which) / f"checkpoints/step-{step}/COMMIT").is_file()


def training(run: Path, model: str = "student", seed: int = 0, fold: str = FOLD) -> Path:
    """A training's folder."""
    return run / "folds" / fold / model / f"seed-{seed}"


def results(run: Path, **which: Any) -> dict[str, object]:
    """Weights and predictions of a training."""
    folder = training(run, **which)
    predictions = pq.read_table(folder / "predictions.parquet").to_pylist()
    return {"weights": (folder / "model/model.safetensors").read_bytes(), "predictions": predictions}
