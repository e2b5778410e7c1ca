"""A sweep that is warned, as before a time limit: its trials save and end, it says so, and the same command goes on with them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from launch import record as records
from launch import submit as submitting
from ser.events import read
from ser.stopping import EXIT_CODE
from tests.cluster_suite.test_sweep import study_of
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left
from tests.submitting import gates, saved, ser, training, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SWEEP = {
    "space": {"models.student.train.optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}},
    "objectives": [{"model": "student", "metric": "ua"}],
    "sampler": {"kind": "random", "seed": 4},
}
NOISE = ("Traceback", "SIGTERM", "***", "Fatal")


def trial(run: Path, number: int) -> Path:
    """The run of a trial."""
    return run / "sweep/trials" / f"{number:05d}"


def begun(*logs: Path) -> bool:
    """Whether trainings wait before their third step, by what they have logged."""
    return all(path.is_file() and path.read_text().count("\n") >= 2 for path in logs)


def test_a_warned_sweep_saves_its_trials_and_the_next_call_goes_on_with_them(corpus, tmp_path, monkeypatch):
    """Both are held before their third step; no checkpoint is due there."""
    recipe = write_recipe(
        tmp_path, corpus, 4, sweep=SWEEP | {"trials": 2}, cluster={"cpus": 2}
    )  # fmt: skip
    run = tmp_path / "run"
    monkeypatch.setenv("SER_TEST_MARK", mark := f"mark-{tmp_path.name}-{os.getpid()}")
    command = [sys.executable, "-m", "launch.cli", "sweep", str(recipe)]
    with (tmp_path / "out").open("w") as out:
        driver = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | gates(tmp_path, 2), stdout=out, stderr=out
        )
    logs = [training(trial(run, number)) / "events.jsonl" for number in range(2)]
    try:
        until(lambda: driver.poll() is not None or begun(*logs), "both trials train", 400)
        driver.send_signal(signal.SIGTERM)
        code = driver.wait(200)
    finally:
        driver.kill()
    said = (tmp_path / "out").read_text()
    assert code == EXIT_CODE, said
    assert said.splitlines()[-1].endswith("run the same command to go on"), said
    assert not [noise for noise in NOISE if noise in said], said
    nothing_left(mark, 300)
    assert [one.state for one in study_of(run / "sweep").trials] == [TrialState.RUNNING] * 2
    assert all(saved(trial(run, number), 3) for number in range(2)), "at the step where each one was"
    before = [read(path)[:3] for path in logs]
    done = ser("sweep", str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials were running when the last driver ended: they go on" in done.stdout
    assert [one.state for one in study_of(run / "sweep").trials] == [TrialState.COMPLETE] * 2
    assert [read(path)[:3] for path in logs] == before, "its steps were not done again"


def test_a_submitted_sweep_is_cancelled_and_submitted_again(corpus, tmp_path, monkeypatch):
    """A detached process of this machine; what cancels it is handed on as a warning."""
    recipe = write_recipe(tmp_path, corpus, 4, sweep=SWEEP | {"trials": 1})
    run, site = tmp_path / "run", tmp_path / "site.yaml"
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    site.write_text(
        yaml.safe_dump({"to": "local", "environment": gates(tmp_path, 2) | {"SER_TEST_MARK": mark}})
    )
    sent = ["submit", str(recipe), "--sweep", "--profile", str(site)]
    assert ser(*sent).returncode == 0

    def state() -> str:
        record = records.read(run)
        assert record is not None
        return records.summary(record, submitting.look(record))[0]

    try:
        log = training(trial(run, 0)) / "events.jsonl"
        until(lambda: state() != "running" or begun(log), "the trial trains", 400)
        again = ser(*sent)
        assert again.returncode == 2 and "submitted already: local" in again.stderr, ser(
            "logs", str(run)
        ).stdout
        cancelled = ser("cancel", str(run))
        assert cancelled.returncode == 0, cancelled.stderr
        assert state() == "cancelled" and saved(trial(run, 0), 3)
        assert [one["code"] for one in records.outcomes(run / "submissions/0001")] == [EXIT_CODE]
        nothing_left(mark, 300)
        (tmp_path / "go-2").touch()
        assert ser(*sent).returncode == 0
        until(lambda: state() != "running", "the sweep ends", 400)
        said = ser("logs", str(run)).stdout
        assert state() == "done" and "they go on" in said and "best.yaml" in said, said
    finally:
        if state() == "running":
            submitting.cancel(submitting.find(str(run)))
    assert [one.state for one in study_of(run / "sweep").trials] == [TrialState.COMPLETE]
    assert not (run / "report.html").exists(), "a sweep, no run"
    nothing_left(mark, 300)
