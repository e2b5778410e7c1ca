"""A training is done by one process (group) at a time."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.faults import refused, trained
from tests.processes import run_ranks
from tests.shards.test_lock import holder

JOB = ("session-ses0", "sound", 0)


def values(folder: Path, dataset: str, steps: int, **train) -> dict:
    settings = tiny.training(steps, slots=2, slot_seconds=3.0, checkpoint_every=2, **train)
    model = {
        "role": "baseline",
        "model": tiny.CONV,
        "objective": [{"loss": "cross_entropy"}],
        "train": settings,
    }
    return tiny.recipe_values(folder, dataset, {"sound": model})


@pytest.mark.slow
def test_every_rank_is_refused_while_another_process_trains(tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset, 2)
    lock = tmp_path / "run/folds/session-ses0/sound/seed-0.lock"
    with holder(lock) as (process, _):
        messages = run_ranks(refused, 2, recipe, JOB)
    for message in messages:
        assert "another process does this training" in message
        assert f"held by process {process.pid}" in message and "run_dir" in message
    assert not lock.with_suffix("").exists(), "what is refused makes nothing"
    assert (trained(recipe, JOB, 2) / "DONE").is_file() and not lock.exists()


def start(recipe: Path, steps: int) -> subprocess.Popen:
    """`python -m ser` as torchrun starts it, alone."""
    command = [
        sys.executable,
        "-m",
        "ser",
        str(recipe),
        "sound",
        JOB[0],
        "0",
        f"models.sound.train.steps={steps}",
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_second_of_two_real_trainings_ends_at_once_with_the_way_out(tmp_path, tiny_dataset):
    recipe = tiny.write_recipe(tmp_path, values(tmp_path, tiny_dataset, 2))
    log = tmp_path / "run/folds/session-ses0/sound/seed-0/events.jsonl"
    first = start(recipe, 100_000)
    try:
        end = time.monotonic() + 200
        while not (log.is_file() and log.read_text().count("\n") > 3):
            assert first.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        second = start(recipe, 100_000)
        _, said = second.communicate(timeout=100)
        assert second.returncode == 2 and "Traceback" not in said
        assert f"held by process {first.pid}" in said and f"kill {first.pid}" in said and "run_dir=" in said
        assert first.poll() is None, "the first is not disturbed"
        first.send_signal(signal.SIGKILL)
        first.wait()
        third = start(recipe, 4)  # made otherwise: the directory is replaced
        out, said = third.communicate(timeout=200)
        assert third.returncode == 0 and out.strip().endswith("seed-0"), said
        assert log.with_name("DONE").is_file() and not list(log.parent.parent.glob("*.lock"))
    finally:
        first.kill()
        first.communicate()
