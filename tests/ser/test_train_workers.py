"""Loader processes inside a training: the same weights to the bit, and none of them outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.faults import Kill, killed, same_training, trained
from tests.launch.test_run import below, nothing_left

pytestmark = pytest.mark.slow
JOB = ("session-ses0", "sound", 0)


def values(folder: Path, dataset: str, workers: int, steps: int = 6) -> dict:
    settings = tiny.training(
        steps, slots=2, slot_seconds=3.0, checkpoint_every=2, evaluate_every=2, loader_workers=workers
    )
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}, {"loss": "ccc"}],
        "train": settings,
    }  # fmt: skip
    return tiny.recipe_values(folder, dataset, {"sound": model})


def test_weights_do_not_depend_on_loader_processes(tmp_path, tiny_dataset):
    """Nor on a kill between: a training resumed with two of them ends as one that loaded by itself."""
    plain = trained(values(tmp_path / "plain", tiny_dataset, 0), JOB)
    same_training(plain, trained(values(tmp_path / "two", tiny_dataset, 2), JOB))
    cut = values(tmp_path / "cut", tiny_dataset, 1)
    killed(cut, JOB, Kill("ser.train:train_step", 4))
    same_training(plain, trained(values(tmp_path / "cut", tiny_dataset, 2), JOB))


def test_no_loader_process_outlives_a_killed_training(tmp_path, tiny_dataset, monkeypatch):
    recipe = tiny.write_recipe(tmp_path, values(tmp_path, tiny_dataset, 2, steps=100_000))
    monkeypatch.setenv("SER_TEST_MARK", mark := f"mark-{tmp_path.name}-{os.getpid()}")
    command = [sys.executable, "-m", "ser", str(recipe), "sound", JOB[0], "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "run/folds/session-ses0/sound/seed-0/events.jsonl"
    try:
        end = time.monotonic() + 200
        while not (log.is_file() and log.read_text().count("\n") > 3):
            assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=10)
            time.sleep(0.05)
        assert len(below(mark)) >= 4, "the training, the server that forks, two loaders"
        process.send_signal(signal.SIGKILL)
        process.wait()
        nothing_left(mark, 30)
    finally:
        process.kill()
        process.communicate()
