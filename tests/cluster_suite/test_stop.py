"""SIGTERM and Ctrl-C to `ser run`: what is saved, what the exit code says, and that nothing is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ser.stopping import EXIT_CODE
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left
from tests.submitting import training, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NOISE = ("Traceback", "SIGTERM", "***", "Fatal")


def stopped(number: int, workers: int, corpus: Path, folder: Path, monkeypatch) -> tuple[int, str, Path]:
    """(exit code, what was said, folder of the training) of a run that gets a signal some steps into its only training."""
    recipe, run = write_recipe(folder, corpus, 100_000), folder / "run"
    settings = f"{{workers: {workers}, slots: 2, slot_seconds: 3.0, checkpoint_every: 3}}"
    monkeypatch.setenv("SER_TEST_MARK", mark := f"mark-{folder.name}-{os.getpid()}")
    command = [sys.executable, "-m", "launch.cli", "run", str(recipe), f"models.student.train={settings}"]
    command += ["models.student.train.steps=100000", "models.student.train.log_every=1", "cluster.cpus=2"]
    if number == signal.SIGTERM:  # what it saves is not a regular checkpoint
        command += ["models.student.train.checkpoint_every=1000000"]
    with (folder / "out").open("w") as out:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    try:
        made, log = training(run), training(run) / "events.jsonl"
        begun = {
            signal.SIGTERM: lambda: log.is_file() and log.read_text().count("\n") > 6,
            signal.SIGINT: lambda: list(made.glob("checkpoints/step-*/COMMIT")),
        }[signal.Signals(number)]
        until(lambda: driver.poll() is not None or begun(), "the training begins", 500)
        # a terminal's Ctrl-C reaches every process of the group
        (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
        code = driver.wait(300)
    finally:
        driver.kill()
    nothing_left(mark)
    return code, (folder / "out").read_text(), made


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_saves_at_the_next_step_and_leaves_nothing(workers, corpus, tmp_path, monkeypatch):
    code, said, found = stopped(signal.SIGTERM, workers, corpus, tmp_path, monkeypatch)
    assert code == EXIT_CODE, said
    assert said.splitlines()[-1].endswith("run the same command to go on"), said
    assert not [noise for noise in NOISE if noise in said], said
    (saved,) = (found / "checkpoints").glob("step-*/COMMIT")
    assert int(saved.parent.name.removeprefix("step-")) >= 4, "at the step it was at"
    assert not [p.name for p in found.parent.iterdir() if p.name.startswith(".")]


def test_ctrl_c_ends_at_once_and_what_was_committed_stays(corpus, tmp_path, monkeypatch):
    """A training on two workers under Ray Train, whose processes a terminal's Ctrl-C reaches too."""
    code, said, found = stopped(signal.SIGINT, 2, corpus, tmp_path, monkeypatch)
    assert code == 130, said
    assert "run the same command to go on" in said.splitlines()[-1], said
    assert not [noise for noise in NOISE if noise in said], said
    assert list(found.glob("checkpoints/step-*/COMMIT"))
