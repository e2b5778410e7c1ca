"""A restarted training knows where its epochs began: it opens the epoch it goes on in and none before it."""

import json

import pytest

from ser import build
from ser.build import keep_begins, read_begins
from ser.job import Job, directory, train_config
from ser.recipe import Recipe
from ser.setting import open_setting, supervision
from shards import plan as plans
from tests import tiny
from tests.faults import Kill, killed, trained

JOB = ("session-ses0", "m", 0)
STEPS = 24


def values(folder, dataset) -> dict:
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}],
        "train": tiny.training(STEPS, slot_seconds=4.0, checkpoint_every=20),
    }  # fmt: skip
    return tiny.recipe_values(folder, dataset, {"m": model})


def plan_of(recipe_values: dict):
    """The training's plan, and the epochs that are passed over from now on."""
    setting, job = open_setting(Recipe.model_validate(recipe_values)), Job(*JOB)
    labels, rows = supervision(setting, setting.folds[job.fold], job.model, "none")
    return build.plan_of(setting, job, train_config(setting.recipe, job), rows, labels)


def count(monkeypatch) -> list[int]:
    found, original = [], plans.shard_order
    monkeypatch.setattr(plans, "shard_order", lambda s, c, seed, epoch: found.append(epoch) or original(s, c, seed, epoch))  # fmt: skip
    return found


def test_what_is_kept_beside_a_run_spares_the_epochs_before(tiny_dataset, tmp_path, monkeypatch):
    recipe_values = values(tmp_path, tiny_dataset)
    folder = directory(Recipe.model_validate(recipe_values), Job(*JOB))
    folder.mkdir(parents=True)
    cold = plan_of(recipe_values)
    assert cold.begins == [0] == read_begins(folder)
    epoch, _ = cold.locate(60)
    assert epoch >= 5
    keep_begins(folder, cold)
    opened = count(monkeypatch)
    for step in (1, 30, 59):
        opened.clear()
        plan = plan_of(recipe_values)
        plan.step(step)
        assert opened == [cold.locate(step)[0]], "one pass over the rows, whatever the step"


@pytest.mark.slow
def test_a_killed_training_goes_on_without_counting_again(tiny_dataset, tmp_path, monkeypatch):
    recipe_values = values(tmp_path, tiny_dataset)
    killed(recipe_values, JOB, Kill("ser.checkpoint:finish", when="after"))
    folder = directory(Recipe.model_validate(recipe_values), Job(*JOB))
    begins = json.loads((folder / "plan.json").read_text())["begins"]
    assert len(begins) > 3 and begins[-1] >= 20
    opened = count(monkeypatch)
    plan_of(recipe_values).step(19)
    assert len(opened) == 1
    monkeypatch.undo()
    assert (trained(recipe_values, JOB) / "DONE").is_file()
