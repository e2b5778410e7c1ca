"""Optional trackers: refused by name where they are missing, never in the way of a training, and real where installed."""

import importlib.util
import os
import warnings
from pathlib import Path

import pytest

from ser import trackers
from ser.events import Events, read
from ser.job import Job
from ser.recipe import load
from shards.errors import UserError
from tests import tiny

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
        words = f"{name} is not installed (an extra: ser-distill[{name}]; make test-trackers)"
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
