"""Stored targets: what they are, when they are due, that they are bit-equal whoever computes them, and what is refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ser import produce
from ser.bill import bill as bill_of
from ser.job import Job, directory, finished
from ser.models import load
from ser.recipe import Recipe
from ser.setting import Setting, open_setting
from ser.sources import parts_of
from ser.strict import validate
from shards.errors import UserError
from shards.targets import ABSENT, PRESENT, TargetStore
from tests import tiny
from tests.faults import Kill, arm, train_one
from tests.moments import HALF, drawn, watch
from tests.processes import run_killed, run_ranks

FOLD = "session-ses0"
LABELS = [{"loss": "cross_entropy"}, {"loss": "ccc"}]
TEACHERS = ("text", "sound")


def school(folder: Path, dataset: str) -> dict[str, Any]:
    """A text teacher, an acoustic teacher with dropout that is cross-fitted, and a student of both."""

    def few() -> dict:
        return tiny.training(2, slot_seconds=10.0)

    models = {
        "text": {"role": "teacher", "model": tiny.BERT, "objective": LABELS, "train": few()},
        "sound": {"role": "teacher", "model": tiny.HUBERT, "objective": LABELS, "train": few(), "cross_fit": 2},
        "student": {
            "role": "student", "model": tiny.CONV, "train": few(),
            "objective": [{"loss": "multi_kl", "teachers": list(TEACHERS)}],
        },
    }  # fmt: skip
    return tiny.recipe_values(folder, dataset, models, targets={"slot_seconds": 5.0})


def jobs_of(name: str) -> list[Job]:
    parts = [None, 0, 1] if name == "sound" else [None]
    return [Job(FOLD, name, 0, part) for part in parts]


def train_teachers(values: dict) -> None:
    for name in TEACHERS:
        for job in jobs_of(name):
            train_one(values, (job.fold, job.model, job.seed, job.part))


def all_work(setting: Setting) -> list[produce.Work]:
    return [w for name in TEACHERS for job in jobs_of(name) for w in produce.teacher_work(setting, job)]


def compute_all(values: dict, kill: Kill | None) -> None:
    if kill:
        arm(kill)
    setting = open_setting(Recipe.model_validate(values))
    list(produce.serial(setting.recipe, all_work(setting)))


def compute_watched(values: dict, log: str | None, at: int) -> None:
    watch(log, at)
    compute_all(values, None)


def setting_of(values: dict) -> Setting:
    return open_setting(validate(Recipe, values, where="test"))


def files(root: Path) -> dict[str, bytes]:
    """Path to bytes of all that readers see (a killed writer leaves a dot file, which they do not)."""
    found = [p for p in sorted(root.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tiny_dataset) -> Path:
    """A folder with its own dataset, a run with trained teachers, and no targets yet."""
    folder = tmp_path_factory.mktemp("school")
    shutil.copytree(tiny_dataset, folder / "dataset", ignore=shutil.ignore_patterns("targets"))
    run_ranks(train_teachers, 1, school(folder, str(folder / "dataset")))
    return folder


@pytest.fixture(scope="module")
def answered(taught, tmp_path_factory) -> Path:
    """The same with all targets computed; every moment of that stands in `moments` beside it."""
    folder = tmp_path_factory.mktemp("answered") / "copy"
    shutil.copytree(taught, folder)
    recipe = school(folder, str(folder / "dataset"))
    run_ranks(compute_watched, 1, recipe, str(folder.parent / "moments"), 0)
    return folder


@pytest.fixture
def values(answered, tmp_path) -> dict:
    """A recipe over a copy that a test may spoil."""
    shutil.copytree(answered, tmp_path / "copy")
    return school(tmp_path / "copy", str(tmp_path / "copy/dataset"))


@pytest.mark.slow
def test_targets_cover_train_views_and_clean_dev_and_never_test(answered):
    setting = setting_of(school(answered, str(answered / "dataset")))
    fold = setting.folds[FOLD]
    for name in TEACHERS:
        store = produce.teacher_store(setting, Job(FOLD, name, 0))
        assert (store.state(fold.train, 1) == PRESENT).all() and (store.state(fold.dev, 0) == PRESENT).all()
        for view in (0, 1):
            assert (store.state(fold.test, view) == ABSENT).all()
            assert not any(store.read(fold.test, view)["logits"].any(1))
    assert (produce.teacher_store(setting, Job(FOLD, "sound", 0)).state(fold.train, 0) == ABSENT).all()
    parts = parts_of(setting.dataset, fold.train, 2, 0)
    for k in (0, 1):
        state = produce.teacher_store(setting, Job(FOLD, "sound", 0, k)).state(fold.train, 1)
        assert ((state == PRESENT) == (parts[fold.train] == k)).all(), "a copy answers for its own part alone"
        _, meta = load(directory(setting.recipe, Job(FOLD, "sound", 0, k)) / "model")
        mine = {
            setting.dataset.speakers[s] for s in setting.dataset.speaker[fold.train[parts[fold.train] == k]]
        }
        assert mine and not mine & set(meta["exposure"]["fit"]), "and has not heard it"
    assert all_work(setting) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill",
    [
        Kill("shards.targets:TargetStore.write", 2, "before"),
        Kill("os:replace", 3, "before"),
        Kill("os:replace", 3, "after"),
    ],
    ids=str,
)
def test_killed_targets_continue_to_the_same_bytes(kill, taught, answered, tmp_path):
    shutil.copytree(taught, tmp_path / "copy")
    recipe = school(tmp_path / "copy", str(tmp_path / "copy/dataset"))
    total = len(all_work(setting_of(recipe)))
    run_killed(compute_all, 1, recipe, kill)
    left = len(all_work(setting_of(recipe)))
    assert 0 < left < total, "committed units are not due again"
    root = tmp_path / "copy/dataset/targets"
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.arrow")}
    run_ranks(compute_all, 1, recipe, None)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())
    assert files(root) == files(answered / "dataset/targets")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HALF, "after fsync", "before replace", "after replace"])
def test_targets_killed_at_any_moment_end_in_the_same_bytes(kind, taught, answered, tmp_path):
    shutil.copytree(taught, tmp_path / "copy")
    recipe = school(tmp_path / "copy", str(tmp_path / "copy/dataset"))
    run_killed(compute_watched, 1, recipe, None, drawn(answered.parent / "moments", kind))
    root, wanted = tmp_path / "copy/dataset/targets", files(answered / "dataset/targets")
    assert set(files(root).items()) <= set(wanted.items()), "what readers see is whole"
    run_ranks(compute_all, 1, recipe, None)
    assert files(root) == wanted


@pytest.mark.slow
def test_a_teacher_answers_in_eval_mode_without_gradients(answered):
    """HuBERT's dropout of 0.1 would change every answer."""
    from ser.infer import answer_slot, inference_slots
    from ser.inputs import needs_of
    from tests.ser.worlds import ALONE

    setting = setting_of(school(answered, str(answered / "dataset")))
    job, fold = Job(FOLD, "sound", 0), setting.folds[FOLD]
    model, _ = load(directory(setting.recipe, job) / "model")
    assert not model.training
    store = produce.teacher_store(setting, job)
    needs, rows = needs_of(model, {}), fold.dev
    slots = inference_slots(setting.dataset, rows, setting.policy, 0, 5.0, False)
    import torch

    def answers() -> np.ndarray:
        with torch.inference_mode():
            parts = [
                answer_slot(model, setting.dataset, s, needs, setting.policy, ALONE.device, True)
                for s in slots
            ]
        assert not torch.zeros(1).requires_grad
        order = np.argsort(np.concatenate([p.rows for p in parts]))
        return np.concatenate([p.logits for p in parts])[order]

    stored = store.read(np.sort(rows), 0)["logits"]
    np.testing.assert_allclose(stored, answers(), atol=1e-5)
    torch.manual_seed(0)
    model.train()
    noisy = answers()
    assert (np.abs(noisy - stored).max(1) > 1e-4).all(), "in training mode this test would have seen it"


@pytest.mark.slow
def test_a_new_view_computes_only_itself(values):
    values["views"]["count"] = 2
    setting = setting_of(values)
    work = all_work(setting)
    assert {item.view for item in work} == {2}, "a text teacher needs none, the stored views stay"
    assert {item.teacher.model for item in work if item.teacher} == {"sound"}


@pytest.mark.slow
def test_the_bill_is_what_is_written(taught, answered):
    setting = setting_of(school(taught, str(taught / "dataset")))
    fold = setting.folds[FOLD]
    work = all_work(setting)
    bill = bill_of(setting, work)
    n, dev = len(fold.train), len(fold.dev)
    # text: every train and dev row once; sound: train in view 1 and dev clean; its copies share the training rows
    assert bill.units == len(work)
    assert bill.answers == (n + dev) + (n + dev) + n
    seconds = (
        3 * setting.dataset.samples[fold.train].sum() + 2 * setting.dataset.samples[fold.dev].sum()
    ) / 16000
    assert bill.hours == pytest.approx(seconds / 3600)
    assert bill.bytes == bill.answers * 4 * (
        4 + 3 + 16
    )  # float32: four classes, three dimensions, embedding of 16
    paths = list((answered / "dataset/targets").rglob("*.arrow"))
    assert len(paths) == bill.units
    assert bill.bytes < sum(p.stat().st_size for p in paths)


@pytest.mark.slow
def test_targets_that_do_not_fit_are_refused_naming_the_field(values):
    """The real way: the teacher's recipe changes, it is trained again, its old targets are still there."""
    changed = copy.deepcopy(values)
    changed["models"]["text"]["train"]["steps"] = 3
    setting = setting_of(changed)
    assert not finished(setting, Job(FOLD, "text", 0))
    run_ranks(train_one, 1, changed, (FOLD, "text", 0))
    with pytest.raises(
        UserError, match=r"do not fit:\n\s+fields\.weights\.model\.safetensors: stored"
    ) as error:
        produce.teacher_store(setting, Job(FOLD, "text", 0))
    assert "ser targets" in str(error.value)
    other = copy.deepcopy(values)
    other["targets"]["slot_seconds"] = 6.0
    with pytest.raises(UserError, match=r"fields\.batch\.slot_seconds: stored 5\.0, wanted 6\.0"):
        produce.teacher_store(setting_of(other), Job(FOLD, "sound", 0))
    views = copy.deepcopy(values)
    views["views"]["seed"] = 9
    with pytest.raises(UserError, match="view"):
        produce.teacher_store(setting_of(views), Job(FOLD, "sound", 0))


@pytest.mark.slow
def test_a_stale_teacher_makes_its_students_stale_and_nobody_else(values):
    run_ranks(train_one, 1, values, (FOLD, "student", 0))
    setting = setting_of(values)
    every = [*jobs_of("text"), *jobs_of("sound"), Job(FOLD, "student", 0)]
    assert all(finished(setting, job) for job in every)
    for key, value in (("eps", 1e-7), ("weight_decay", 0.5)):
        changed = copy.deepcopy(values)
        changed["models"]["text"]["train"]["optimizer"] = {key: value}
        stale = {str(job) for job in every if not finished(setting_of(changed), job)}
        assert stale == {f"{FOLD} text seed 0", f"{FOLD} student seed 0"}
    changed = copy.deepcopy(values)
    changed["models"]["student"]["train"]["steps"] = 3
    assert [j for j in every if not finished(setting_of(changed), j)] == [Job(FOLD, "student", 0)]


@pytest.mark.slow
def test_a_stored_target_is_what_the_teacher_says_online(answered):
    """`infer.answer` on the same view agrees with what is stored, whatever the batch."""
    from ser.infer import answer
    from tests.ser.worlds import ALONE

    setting = setting_of(school(answered, str(answered / "dataset")))
    rows = setting.folds[FOLD].train[::-1].copy()
    for name, view in (("text", 1), ("sound", 1)):
        model, _ = load(directory(setting.recipe, Job(FOLD, name, 0)) / "model")
        store = produce.teacher_store(setting, Job(FOLD, name, 0))
        online = answer(
            model, setting.dataset, rows, policy=setting.policy, view=view, features={}, slot_seconds=2.0,
            world=ALONE, embedding=True,
        )  # fmt: skip
        said = store.read(rows, view)
        for output in ("logits", "dimensions", "embedding"):
            np.testing.assert_allclose(said[output], getattr(online, output), atol=2e-5)


@pytest.mark.slow
def test_stored_features_equal_those_computed_on_the_spot(tmp_path, tiny_dataset):
    shutil.copytree(tiny_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("targets"))
    student = {"role": "baseline", "model": tiny.CONV, "objective": LABELS, "train": tiny.training(2)}
    recipe = tiny.recipe_values(
        tmp_path, str(tmp_path / "dataset"), {"student": student},
        features={"mel": {"kind": "mel", "options": {"bands": 20}}},
    )  # fmt: skip
    setting = setting_of(recipe)
    with pytest.raises(UserError, match="mel"):
        produce.feature_stores(setting)
    work = produce.feature_work(setting)
    bill = bill_of(setting, work)
    list(produce.serial(setting.recipe, work))
    assert produce.feature_work(setting) == []
    store = produce.feature_stores(setting)["mel"]
    fold = setting.folds[FOLD]
    assert (store.state(fold.train, 1) == PRESENT).all()
    assert (store.state(np.concatenate([fold.dev, fold.test]), 0) == PRESENT).all()
    frames = sum(len(x) for x in store.read(fold.train, 1)["mel"])
    frames += sum(len(x) for x in store.read(np.concatenate([fold.dev, fold.test]), 0)["mel"])
    assert bill.bytes == pytest.approx(frames * 20 * 4, rel=0.1)
    import torch

    from ser.features.mel import LogMel

    row = fold.train[:1]
    from shards.loader import Needs, load_slot
    from shards.slots import Slot

    batch = load_slot(setting.dataset, Slot(row, np.ones(1, np.int64)), Needs(waveform=True), setting.policy)
    with torch.inference_mode():
        frames, counts = LogMel(bands=20)(batch.waveform, batch.lengths)
    np.testing.assert_allclose(store.read(row, 1)["mel"][0], frames[0, : counts[0]].numpy(), atol=1e-5)


def test_a_store_is_named_by_all_that_it_depends_on(answered):
    setting = setting_of(school(answered, str(answered / "dataset")))
    spec = produce.teacher_spec(setting, Job(FOLD, "sound", 0))
    facts = json.loads((directory(setting.recipe, Job(FOLD, "sound", 0)) / "model/model.json").read_text())
    assert spec.fields["weights"] == facts["files"]
    assert spec.fields["exposure"] == facts["meta"]["exposure"]
    assert {"classes", "dimensions", "batch", "precision", "licences", "view_policy"} <= set(spec.fields)
    assert set(spec.informative) >= {"torch", "numpy", "device"}
    assert TargetStore.open(setting.dataset, expect=spec).spec.fingerprint == spec.fingerprint
