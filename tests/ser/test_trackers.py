"""Optional trackers: refused by name where they are missing, never in the way of a training, and real where installed.
So is what others make to look at a sweep's study."""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import pytest

from ser import trackers
from ser.events import Events, read
from ser.job import Job
from ser.recipe import load
from shards.errors import UserError
from tests import tiny
from tests.cluster_suite import toy_trials as toys
from tests.conftest import ROOT
from tests.processes import free_port
from tests.submitting import until

JOB = Job("session-ses0", "student", 0)


def recipe_of(folder: Path, *names: str):
    student = {
        "role": "student",
        "model": tiny.CONV,
        "objective": [{"loss": "cross_entropy"}],
        "train": tiny.training(2),
    }
    values = tiny.recipe_values(folder, str(folder / "none"), {"student": student}, trackers=list(names))
    return load(str(tiny.write_recipe(folder, values)))


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("name", trackers.OPTIONAL)
def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(name, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda n, *rest: None if n == name else find(n, *rest)
    )
    with pytest.raises(UserError, match=f"tracker {name}") as told:
        trackers.check(recipe_of(tmp_path, name))
    assert f"ser-distill[{name}]" in told.value.hint
    trackers.check(recipe_of(tmp_path))
    with pytest.raises(UserError, match="trackers"):
        recipe_of(tmp_path, "comet")


class Broken:
    """A tracker whose network goes away."""

    def __init__(self):
        self.seen, self.closed = [], None

    def log(self, step, values):
        self.seen.append((step, dict(values)))
        if step:
            raise ConnectionError("no route to host")

    def close(self, whole):
        self.closed = whole


def test_a_tracker_that_fails_is_dropped_and_the_events_go_on(tmp_path):
    sick = Broken()
    events = Events(tmp_path, tensorboard=False, trackers=[sick])
    events.write("train", 0, loss=2.0, keys=["a"], bad=float("nan"))
    with pytest.warns(UserWarning, match="no route to host"):
        events.write("train", 1, loss=1.0)
    events.write("train", 2, loss=0.5)
    events.close(whole=False)
    assert sick.seen == [(0, {"train/loss": 2.0}), (1, {"train/loss": 1.0})] and sick.closed is None
    assert [event["loss"] for event in read(tmp_path / "events.jsonl")] == [2.0, 1.0, 0.5]


def test_trackers_are_no_part_of_what_was_made(tmp_path):
    assert "trackers" not in recipe_of(tmp_path).dump()


def need(name: str) -> None:
    """Skip where an extra is missing; with SER_REQUIRE_TRACKERS=1 fail."""
    if not installed(name):
        words = f"{name} is not installed (make test-trackers)"
        assert os.environ.get("SER_REQUIRE_TRACKERS") != "1", words
        pytest.skip(words)


@pytest.mark.slow
def test_mlflow_holds_a_training_and_its_resumption(tmp_path, monkeypatch):
    need("mlflow")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = recipe_of(tmp_path, "mlflow")
    folder = tmp_path / "training"
    for whole, steps in (False, (0, 1)), (True, (2,)):
        folder.mkdir(exist_ok=True)
        recipe.directory.mkdir(exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            events = Events(folder, 1, False, trackers.started(recipe, JOB, folder))
            assert len(events.trackers) == 1
            for step in steps:
                events.write("train", step, loss=3.0 - step)
            events.close(whole)
    client = MlflowClient(f"sqlite:///{recipe.directory / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (
        run.info.status == "FINISHED"
        and run.data.params["steps"] == "2"
        and run.data.tags["model"] == "student"
    )
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]


@pytest.mark.slow
def test_wandb_writes_a_run_without_network(tmp_path, monkeypatch):
    need("wandb")
    for name, value in (
        ("WANDB_MODE", "offline"),
        ("WANDB_CACHE_DIR", str(tmp_path / "c")),
        ("WANDB_CONFIG_DIR", str(tmp_path / "d")),
    ):
        monkeypatch.setenv(name, value)
    recipe, folder = recipe_of(tmp_path, "wandb"), tmp_path / "training"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        events = Events(folder, -1, False, trackers.started(recipe, JOB, folder))
        assert len(events.trackers) == 1
        events.write("train", 0, loss=3.0)
        events.close()
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"train/loss" in content and b"student" in content


@pytest.mark.slow
def test_optuna_dashboard_opens_the_study_of_a_sweep_as_it_is(tmp_path):
    need("optuna_dashboard")
    from cluster.session import Session
    from cluster.sweep import drive

    x = toys.sweep_of(tmp_path, toys.config(trials=6), {"steps": 2, "refused": [3]})
    with Session(cpus=2, env={"PYTHONPATH": str(ROOT)}) as session:
        drive(x, session)
    journal, port = tmp_path / "study.journal", free_port()
    before = journal.read_bytes()

    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=60) as answer:
            return json.load(answer)

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "said").read_text()
        try:
            return bool(asked("studies"))
        except urllib.error.URLError:
            return False

    command = [str(Path(sys.executable).with_name("optuna-dashboard")), str(journal)]
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=said, stderr=said
        )
    try:
        until(answers, "the dashboard answers", 120)
        (study,) = asked("studies")["study_summaries"]
        trials = asked(f"studies/{study['study_id']}")["trials"]
    finally:
        server.kill()
        server.wait()
    assert study["study_name"] == "toys" and study["directions"] == ["maximize"]
    assert [one["number"] for one in trials] == list(range(6))
    assert [one["state"] for one in trials] == ["Fail" if n == 3 else "Complete" for n in range(6)]
    for one, ours in zip(trials, x.study.trials, strict=True):
        assert one.get("values") == ours.values
        assert {key["name"] for key in one["params"]} == ours.params.keys()
        assert {
            step["step"]: step["value"] for step in one["intermediate_values"]
        } == ours.intermediate_values
    assert journal.read_bytes() == before
