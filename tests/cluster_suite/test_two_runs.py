"""Two `ser run` in one run directory: the second ends at once; after SIGKILL of the first another goes on at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left, ser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def recipe(folder: Path) -> Path:
    train = tiny.training(4, slot_seconds=6.0, checkpoint_every=2)
    model = {"role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}], "train": train}
    values = tiny.recipe_values(folder, str(folder / "dataset"), {"sound": model}, cluster={"cpus": 1})
    tiny.write_corpus(folder / "corpus")
    values["data"] = {
        "path": str(folder / "dataset"), "shard_seconds": 8.0,
        "corpora": [{"reader": "manifest", "root": str(folder / "corpus"), "options": {"corpus": "tiny"}}],
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_second_run_ends_at_once_and_a_third_after_the_first_was_killed(tmp_path, monkeypatch):
    path = recipe(tmp_path)
    monkeypatch.setenv("SER_TEST_MARK", mark := f"mark-{tmp_path.name}-{os.getpid()}")
    command = [sys.executable, "-m", "launch.cli", "run", str(path), "models.sound.train.steps=100000"]
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    log = tmp_path / "run/folds/session-ses0/sound/seed-0/events.jsonl"
    try:
        end = time.monotonic() + 400
        while not (log.is_file() and log.read_text().count("\n") > 3):
            assert first.poll() is None and time.monotonic() < end, first.communicate(timeout=10)
            time.sleep(0.1)
        second = ser("run", str(path))
        assert second.returncode == 2, second.stdout + second.stderr
        said = second.stderr
        assert "another process works in this run directory" in said and "starting Ray" not in second.stdout
        assert f"held by process {first.pid} on {os.uname().nodename}" in said
        assert f"kill {first.pid}" in said and "run_dir=" in said
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)  # its Ray workers live on for a moment
        first.wait()
        third = ser("run", str(path))
        assert third.returncode == 0, third.stdout + third.stderr
        assert (tmp_path / "run/report.html").is_file() and log.with_name("DONE").is_file()
        assert not list((tmp_path / "run").rglob("*.lock"))
    finally:
        first.kill()
        first.communicate()
    nothing_left(mark)
