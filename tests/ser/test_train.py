"""A training that is killed anywhere and started again gives what an unkilled one gives."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.faults import Kill, events, heard_steps, killed, same_training, train_one, trained
from tests.moments import HALF, drawn, watch
from tests.processes import run_killed, run_ranks

JOB = ("session-ses0", "acoustic", 0)
STUDENT = ("session-ses0", "student", 0)
STEPS = 7
TRAIN = tiny.training(STEPS, evaluate_every=2, checkpoint_every=2, slots=2, slot_seconds=3.0)
OBJECTIVE = [{"loss": "cross_entropy"}, {"loss": "ccc", "weight": 0.5}]


def values(folder: Path, dataset: str, **train) -> dict:
    acoustic = {
        "role": "baseline", "model": tiny.HUBERT, "objective": OBJECTIVE, "train": TRAIN | train,
    }  # fmt: skip
    return tiny.recipe_values(folder, dataset, {"acoustic": acoustic})


def distilling(folder: Path, dataset: str, **train) -> dict:
    teacher = {"role": "teacher", "model": tiny.BERT, "objective": OBJECTIVE, "train": tiny.training(2)}
    terms = [
        {"loss": "cross_entropy"}, {"loss": "kl", "teacher": "text", "temperature": 2.0},
        {"loss": "embedding", "teacher": "text"}, {"loss": "dimensions", "teacher": "text"},
    ]  # fmt: skip
    student = {
        "role": "student",
        "model": tiny.CONV,
        "objective": terms,
        "train": TRAIN | train,
        "data": "all",
    }
    return tiny.recipe_values(folder, dataset, {"text": teacher, "student": student})


def teach(recipe_values: dict) -> None:
    """In a process: the text teacher and its targets."""
    from ser import produce
    from ser.job import Job
    from ser.recipe import Recipe
    from ser.setting import open_setting

    train_one(recipe_values, ("session-ses0", "text", 0))
    setting = open_setting(Recipe.model_validate(recipe_values))
    work = produce.teacher_work(setting, Job("session-ses0", "text", 0))
    list(produce.serial(setting.recipe, work))


def train_watched(values: dict, record: str | None, log: str | None, at: int = 0) -> str:
    """In a process: `train_one`, every moment of it counted."""
    watch(log, at, ("ser.engine:Engine.micro_step", "ser.events:Events.write"))
    return train_one(values, JOB, None, record)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_dataset) -> tuple[Path, Path]:
    """An unkilled training, and where its steps are recorded; every moment of it stands in `moments` beside them."""
    folder = tmp_path_factory.mktemp("whole")
    steps, moments = folder / "steps", folder / "moments"
    (made,) = run_ranks(train_watched, 1, values(folder, tiny_dataset), str(steps), str(moments))
    return Path(made), steps


@pytest.fixture(scope="module")
def whole_student(tmp_path_factory, tiny_dataset) -> tuple[Path, Path]:
    """An unkilled student of stored targets, and its run directory before the student."""
    folder = tmp_path_factory.mktemp("student")
    recipe = distilling(folder, tiny_dataset)
    run_ranks(teach, 1, recipe)
    before = folder / "before"
    shutil.copytree(folder / "run", before)
    return trained(recipe, STUDENT), before


KILLS = [
    Kill("ser.train:train_step", 1),
    Kill("ser.train:train_step", 4),
    Kill("ser.engine:Engine.micro_step", 11, "after"),
    Kill("ser.engine:Engine.save", 1),
    Kill("torch:save", 1, "torn"),
    Kill("ser.engine:Engine.save", 2, "after"),
    Kill("ser.checkpoint:write_json", 4, "before"),
    Kill("ser.checkpoint:write_json", 4, "after"),
    Kill("ser.finish:save_file", 1, "torn"),
    Kill("ser.train:save_best", 1, "after"),
    Kill("ser.finish:answer", 1),
    Kill("ser.finish:write_predictions", 1, "before"),
    Kill("ser.finish:write_predictions", 1, "after"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_a_killed_training_resumes_bit_for_bit(kill: Kill, whole, tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset)
    killed(recipe, JOB, kill)
    folder = tmp_path / "run/folds/session-ses0/acoustic/seed-0"
    assert not (folder / "DONE").exists()
    assert trained(recipe, JOB, record=str(tmp_path / "steps")) == folder
    same_training(whole[0], folder)
    heard, expected = heard_steps(tmp_path / "steps"), heard_steps(whole[1])
    assert heard == {step: expected[step] for step in heard}
    if "write_json:4 after" in str(kill) or kill.where.endswith("write_predictions"):
        assert min(heard) >= 4, "committed work is not done again"


MOMENTS = [
    HALF, "after fsync", "before replace", "after replace", "after unlink",
    "before Engine.micro_step", "after Events.write",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOMENTS)
def test_a_training_killed_at_any_moment_resumes_bit_for_bit(kind: str, whole, tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset)
    run_killed(train_watched, 1, recipe, None, None, drawn(whole[1].with_name("moments"), kind))
    same_training(whole[0], trained(recipe, JOB))


@pytest.mark.slow
def test_what_a_kill_behind_the_end_leaves_goes_with_the_next_call(whole, tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset)
    killed(recipe, JOB, Kill("ser.finish:drop_best"))
    assert list((tmp_path / "run/folds/session-ses0/acoustic/seed-0").glob("best-*"))
    same_training(whole[0], trained(recipe, JOB))


@pytest.mark.slow
def test_a_student_killed_again_and_again_ends_bit_for_bit(whole_student, tmp_path, tiny_dataset):
    recipe = distilling(tmp_path, tiny_dataset)
    shutil.copytree(whole_student[1], tmp_path / "run")
    for point in (
        Kill("ser.train:train_step", 4),
        Kill("torch:save", 1, "torn"),
        Kill("ser.engine:Engine.micro_step", 7),
        Kill("ser.finish:answer", 1),
    ):
        killed(recipe, STUDENT, point)
    same_training(whole_student[0], trained(recipe, STUDENT))


@pytest.mark.slow
def test_a_training_that_is_done_is_not_touched(whole, tiny_dataset):
    folder = whole[0]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    recipe = values(folder.parents[4], tiny_dataset)
    assert trained(recipe, JOB) == folder
    recipe["models"]["acoustic"]["train"] |= {
        "log_every": 5,
        "workers": 2,
        "zero_stage": 2,
        "tensorboard": True,
    }
    assert trained(recipe, JOB) == folder, "how it runs is no part of what it is"
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.slow
def test_another_world_hears_the_same_and_continues_the_curve(whole, tmp_path, tiny_dataset):
    """ZeRO 0: relative difference of a step's loss below 1e-4, of a weight below 1e-4 of the largest."""
    from safetensors.numpy import load_file

    straight = trained(values(tmp_path / "two", tiny_dataset), JOB, 2, record=str(tmp_path / "two-steps"))
    moved = values(tmp_path / "moved", tiny_dataset)
    killed(moved, JOB, Kill("ser.train:train_step", 6), record=str(tmp_path / "moved-steps"))
    grown = trained(moved, JOB, 2, record=str(tmp_path / "moved-steps2"))
    expected = heard_steps(whole[1])
    assert heard_steps(tmp_path / "two-steps") == expected
    after = heard_steps(tmp_path / "moved-steps2")
    assert after == {step: expected[step] for step in range(4, STEPS)}
    changes = [(e["step"], e["before"], e["workers"]) for e in events(grown) if e["kind"] == "world"]
    assert changes == [(4, 1, 2)]
    for folder in (straight, grown):
        found = [e for e in events(folder) if e["kind"] != "world"]
        for got, want in zip(found, events(whole[0]), strict=True):
            if want["kind"] == "train":
                assert got["loss"] == pytest.approx(want["loss"], rel=1e-4)
        a, b = load_file(folder / "model/model.safetensors"), load_file(whole[0] / "model/model.safetensors")
        for name in b:
            np.testing.assert_allclose(a[name], b[name], atol=1e-4 * max(1, np.abs(b[name]).max()))
    shutil.rmtree(tmp_path / "moved")
    killed(moved, JOB, Kill("ser.engine:Engine.micro_step", 6, rank=1), world=2)
    same_training(straight, trained(moved, JOB, 2))


def test_every_generator_is_seeded_from_seed_step_and_slot():
    import random

    import torch

    from ser.step import seed_everything

    def draw(*place: int) -> tuple:
        seed_everything(*place)
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    places = [(s, t, m) for s in (0, 1) for t in (-1, 0, 1, 7) for m in (0, 1, 3)]
    drawn = [draw(*place) for place in places]
    assert drawn == [draw(*place) for place in places]
    for values_of in zip(*drawn):
        assert len(set(values_of)) == len(places)


def test_a_folder_of_another_recipe_is_replaced_whole(tmp_path, tiny_dataset):
    """What is half done goes, identity first: a kill while deleting never leaves a half that looks whole."""
    from ser.claim import claim
    from ser.job import Job, directory, write_identity
    from ser.recipe import Recipe
    from tests.ser.worlds import ALONE

    model = {
        "role": "baseline",
        "model": tiny.CONV,
        "objective": [{"loss": "ccc"}],
        "train": tiny.training(1),
    }
    recipe = Recipe.model_validate(tiny.recipe_values(tmp_path, tiny_dataset, {"m": model}))
    job = Job("session-ses0", "m", 0)
    folder = directory(recipe, job)
    write_identity(folder, {"model": "old"})
    (folder / "events.jsonl").touch()
    claim(recipe, job, {"model": "new"}, ALONE)
    assert json.loads((folder / "job.json").read_text()) == {"model": "new"}
    assert not (folder / "events.jsonl").exists()
    (folder / "keep").touch()
    claim(recipe, job, copy.deepcopy({"model": "new"}), ALONE)
    assert (folder / "keep").exists()
    # what is finished is set aside, and comes back
    (folder / "DONE").write_text("{}")
    claim(recipe, job, {"model": "old"}, ALONE)
    assert not (folder / "keep").exists() and list(recipe.directory.glob("superseded/*/*/*/keep"))
    claim(recipe, job, {"model": "new"}, ALONE)
    assert (folder / "keep").exists() and (folder / "DONE").exists()
