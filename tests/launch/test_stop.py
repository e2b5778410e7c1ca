"""SIGTERM to `ser run`: trainings save at the next step boundary, the exit code says so, and nothing is left."""

import os
import signal
import subprocess
import sys

import pytest

from ser.stopping import EXIT_CODE, StopFlag, Stopped, saving, stopped_by_signals
from tests import tiny
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left
from tests.submitting import training, until, write_recipe


def test_a_signal_asks_who_saves_and_interrupts_who_does_not():
    asked = []
    with pytest.raises(Stopped), stopped_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")
    with pytest.raises(Stopped), stopped_by_signals():
        with saving(lambda: asked.append(1)):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert asked == [1]
        raise AssertionError("a request that came too late to be saved is obeyed at the end")
    with pytest.raises(Stopped, match="at step 3"), stopped_by_signals(), saving(lambda: None):
        os.kill(os.getpid(), signal.SIGUSR1)
        raise Stopped("stopped at step 3 of 9; run the same command to go on")
    with stopped_by_signals(), saving(lambda: asked.append(2)):
        pass
    assert asked == [1], "an earlier request is forgotten"


def test_a_file_asks_too(tmp_path):
    flag = StopFlag(tmp_path / "stop")
    assert not flag.requested
    (tmp_path / "stop").touch()
    until(lambda: flag.requested, "it is seen", 20)
    (tmp_path / "stop").unlink()
    assert flag.requested


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_saves_at_the_next_step_and_leaves_nothing(workers, tmp_path, monkeypatch):
    tiny.write_corpus(tmp_path / "corpus")
    recipe, run = write_recipe(tmp_path, tmp_path / "corpus", 100_000), tmp_path / "run"
    settings = f"{{workers: {workers}, slots: 2, slot_seconds: 3.0, checkpoint_every: 1000000}}"
    monkeypatch.setenv("SER_TEST_MARK", mark := f"mark-{tmp_path.name}-{os.getpid()}")
    command = [sys.executable, "-m", "launch.cli", "run", str(recipe), f"models.student.train={settings}"]
    command += ["models.student.train.steps=100000", "models.student.train.log_every=1", "cluster.cpus=2"]
    with (tmp_path / "out").open("w") as out:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    try:
        log = training(run) / "events.jsonl"
        until(
            lambda: driver.poll() is not None or (log.is_file() and log.read_text().count("\n") > 3),
            "the training begins",
            500,
        )
        driver.send_signal(signal.SIGTERM)
        code = driver.wait(300)
    finally:
        driver.kill()
    said = (tmp_path / "out").read_text()
    assert code == EXIT_CODE, said
    assert said.splitlines()[-1].endswith("run the same command to go on"), said
    for noise in ("Traceback", "SIGTERM", "***", "Fatal"):
        assert noise not in said, said
    (saved,) = (training(run) / "checkpoints").glob("step-*/COMMIT")
    assert int(saved.parent.name.removeprefix("step-")) >= 4, (
        "at the step it was at: no regular checkpoint was due"
    )
    assert not [p.name for p in training(run).parent.iterdir() if p.name.startswith(".")]
    nothing_left(mark)
