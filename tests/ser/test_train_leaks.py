"""Nothing leaks through the training code: hidden labels, models that heard a test speaker, models of unknown past."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ser.build import gather_ingredients
from ser.exposure import Exposure, of_rows
from ser.job import Job, directory, finished
from ser.models import build, load, save
from ser.recipe import Recipe
from ser.setting import Setting, open_setting
from shards.errors import UserError
from shards.pack import pack
from tests import tiny
from tests.faults import events, train_one
from tests.processes import run_ranks
from tests.ser.worlds import ALONE

LABELS = [{"loss": "cross_entropy"}, {"loss": "ccc"}]
FOLD, OTHER = "session-ses0", "session-ses2"
STEPS = 5


def recipe(folder: Path, dataset: str, models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return tiny.recipe_values(folder, dataset, models, folds=[FOLD, OTHER], **changes)


def model(kind: dict, role: str = "baseline", objective: Any = LABELS, **train: Any) -> dict[str, Any]:
    return {
        "role": role,
        "model": kind,
        "objective": objective,
        "train": tiny.training(**{"steps": 2} | train),
    }


def setting_of(values: dict) -> Setting:
    return open_setting(Recipe.model_validate(values))


def train_all(jobs: list[tuple[dict, tuple]]) -> list[str]:
    return [train_one(*job) for job in jobs]


# -- labels of dev and test --------------------------------------------------------------------------------------------


def change_labels(utterances: list, sessions: set[str]) -> list:
    """Other classes, ratings, votes and words for the utterances of these sessions."""
    changed = []
    for u in utterances:
        if u.session in sessions:
            i = tiny.CLASSES.index(u.label)
            u = replace(
                u, label=tiny.CLASSES[(i + 1) % 4], votes=u.votes[::-1], valence=8 - u.valence, arousal=1.5,
                text="quite other words here",
            )  # fmt: skip
        changed.append(u)
    return changed


@pytest.fixture(scope="module")
def two_truths(tmp_path_factory) -> dict[str, Path]:
    """Trainings on the true dataset, and on ones in which test (and dev) say something else."""
    folder = tmp_path_factory.mktemp("truths")
    every = tiny.utterances(folder / "wav")
    sessions = {"true": set(), "test": {"ses0"}, "test and dev": {"ses0", "ses1"}}
    jobs = []
    for name, changed in sessions.items():
        data = str(folder / name / "dataset")
        pack(change_labels(every, changed), data, shard_seconds=8.0)
        models = {
            "text": model(
                tiny.BERT, steps=STEPS, evaluate_every=1, class_weights="balanced", optimizer={"lr": 0.03}
            ),
            "sound": model(tiny.CONV, steps=STEPS, law="temperature", evaluate_every=1),
        }
        values = recipe(folder / name, data, models)
        jobs += [(values, (FOLD, kind, 0)) for kind in models]
    run_ranks(train_all, 1, jobs)
    return {name: folder / name / "run/folds" / FOLD for name in sessions}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "sound"])
def test_labels_of_test_and_dev_move_no_weight(two_truths, kind):
    def trained(name: str) -> tuple[list[dict], bytes, list[dict]]:
        folder = two_truths[name] / kind / "seed-0"
        log = events(folder)
        weights = (folder / "model/model.safetensors").read_bytes()
        return [e for e in log if e["kind"] == "train"], weights, [e for e in log if e["kind"] == "dev"]

    true, test, both = (trained(name) for name in two_truths)
    assert true[0] == test[0] == both[0], "every step's losses, rates and gradients are equal"
    assert true[1] == test[1] and true[2] == test[2], "test labels choose nothing either"
    assert true[2] != both[2], "dev labels are what dev is scored on"


@pytest.mark.slow
def test_dev_labels_move_only_the_choice(two_truths):
    """The step chosen is the one whose dev score under these dev labels is best, computed here from the log."""
    moved = 0
    for kind in ("text", "sound"):
        chosen = {}
        for name in ("true", "test and dev"):
            folder = two_truths[name] / kind / "seed-0"
            scores = [e["ua"] for e in events(folder) if e["kind"] == "dev"]
            assert len(scores) == STEPS
            meta = json.loads((folder / "model/model.json").read_text())["meta"]
            chosen[name] = meta["training"]["chosen"]
            assert chosen[name] == f"step {1 + int(np.argmax(scores))}"
        moved += chosen["true"] != chosen["test and dev"]
    assert moved, "other dev labels choose another step at least once"


@pytest.mark.slow
def test_supervision_shows_training_labels_alone(tiny_dataset, tmp_path):
    from ser.setting import supervision

    setting = setting_of(recipe(tmp_path, tiny_dataset, {"m": model(tiny.CONV)}))
    for fold in setting.folds.values():
        seen, rows = supervision(setting, fold, "m", "none")
        assert set(rows) == set(fold.train)
        for hidden in (fold.dev, fold.test):
            assert (seen.classes[hidden] == -1).all() and not (seen.dimensions[hidden] >= 0).any()
            assert seen.soft is None or not seen.soft[hidden].any()


# -- models that have heard too much ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, tiny_dataset) -> Path:
    """A run whose teacher is trained on both folds."""
    folder = tmp_path_factory.mktemp("folds")
    values = recipe(folder, tiny_dataset, {"teacher": model(tiny.BERT, "teacher"), "start": model(tiny.CONV)})
    jobs = [(FOLD, "teacher", 0), (OTHER, "teacher", 0), (FOLD, "start", 0), (OTHER, "start", 0)]
    run_ranks(train_all, 1, [(values, job) for job in jobs])
    return folder


@pytest.mark.slow
def test_a_model_knows_who_it_has_heard(teachers, tiny_dataset):
    setting = setting_of(recipe(teachers, tiny_dataset, {"teacher": model(tiny.BERT, "teacher")}))
    for name in (FOLD, OTHER):
        fold = setting.folds[name]
        _, meta = load(directory(setting.recipe, Job(name, "teacher", 0)) / "model")
        heard = Exposure.from_json(meta["exposure"])
        assert heard.fit == of_rows(setting.dataset, fold.train)
        assert heard.select == of_rows(setting.dataset, fold.dev)
        assert not heard.heard & of_rows(setting.dataset, fold.test) and heard.unknown == ()


@pytest.mark.slow
def test_a_teacher_of_another_fold_is_refused(teachers, tiny_dataset, tmp_path):
    """Its directory is put where this fold's teacher should be, identity and all."""
    from ser import produce
    from ser.job import identity, write_identity

    run = tmp_path / "mixed"
    shutil.copytree(teachers, run)
    objective = [{"loss": "kl", "teacher": "teacher"}]
    models = {
        "teacher": model(tiny.BERT, "teacher"),
        "start": model(tiny.CONV),
        "student": model(tiny.CONV, "student", objective),
    }
    shutil.copytree(tiny_dataset, run / "dataset", ignore=shutil.ignore_patterns("targets"))
    setting = setting_of(recipe(run, str(run / "dataset"), models))
    here, there = (directory(setting.recipe, Job(fold, "teacher", 0)) for fold in (FOLD, OTHER))
    shutil.rmtree(here)
    shutil.copytree(there, here)
    teacher = Job(FOLD, "teacher", 0)
    assert not finished(setting, teacher), "the directory says whose it is"
    write_identity(here, identity(setting, teacher))
    list(produce.serial(setting.recipe, produce.teacher_work(setting, teacher)))
    with pytest.raises(
        UserError, match=r"(?s)STRICT: teacher was fitted on 2 test entries.*tiny/s0, tiny/s1"
    ):
        gather_ingredients(setting, Job(FOLD, "student", 0), ALONE)


@pytest.mark.slow
def test_weights_to_start_from_have_heard_what_they_have_heard(teachers, tiny_dataset, tmp_path):
    """`init_from` a model of another fold is refused; of the same fold it enters the exposure and the identity."""

    def started(fold: str) -> Setting:
        start = teachers / "run/folds" / fold / "start/seed-0/model"
        values = recipe(tmp_path, tiny_dataset, {"student": model(tiny.CONV, init_from=str(start))})
        return setting_of(values)

    with pytest.raises(UserError, match=r"STRICT: init_from .* was fitted on 2 test entries"):
        gather_ingredients(started(OTHER), Job(FOLD, "student", 0), ALONE)
    setting = started(FOLD)
    x = gather_ingredients(setting, Job(FOLD, "student", 0), ALONE)
    start, _ = load(teachers / "run/folds" / FOLD / "start/seed-0/model")
    assert all((a == b).all() for a, b in zip(x.model.state_dict().values(), start.state_dict().values()))
    from ser.job import identity

    assert identity(setting, Job(FOLD, "student", 0))["init_from"]["model.safetensors"]
    foreign = save(start, tmp_path / "foreign", {})
    values = recipe(tmp_path, tiny_dataset, {"student": model(tiny.CONV, init_from=str(foreign))})
    with pytest.raises(UserError, match=r"training data of .*foreign are unknown"):
        gather_ingredients(setting_of(values), Job(FOLD, "student", 0), ALONE)
    allowed = gather_ingredients(
        setting_of(values | {"allow_unknown": [str(foreign)]}), Job(FOLD, "student", 0), ALONE
    )
    assert allowed.exposure.unknown == (str(foreign),)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused_in_words(teachers, tiny_dataset, tmp_path):
    start = teachers / "run/folds" / FOLD / "start/seed-0/model"
    wider = tiny.CONV | {"width": 12}
    values = recipe(tmp_path, tiny_dataset, {"student": model(wider, init_from=str(start))})
    with pytest.raises(UserError, match="init_from does not fit the model"):
        gather_ingredients(setting_of(values), Job(FOLD, "student", 0), ALONE)


@pytest.mark.slow
def test_an_unknown_hub_model_is_refused_unless_named(tmp_path, tiny_dataset):
    """A HuggingFace checkpoint on disk: whom it has heard nobody knows; it stays so in its students."""
    source = build(tiny.HUBERT, 4, True)
    hub = tmp_path / "hub-hubert"
    source.encoder.save_pretrained(hub)
    kind = {"kind": "acoustic", "name": str(hub), "freeze": "none"}
    objective = [LABELS[0], {"loss": "embedding", "teacher": "teacher"}]
    values = recipe(
        tmp_path, tiny_dataset, {"teacher": model(kind, "teacher"), "student": model(tiny.CONV, "student", objective)}
    )  # fmt: skip
    with pytest.raises(UserError, match=r"training data of .*hub-hubert are unknown") as error:
        gather_ingredients(setting_of(values), Job(FOLD, "teacher", 0), ALONE)
    assert f"allow_unknown: [{hub}]" in str(error.value)
    allowed = copy.deepcopy(values) | {"allow_unknown": [str(hub)]}
    run_ranks(train_all, 1, [(allowed, (FOLD, "teacher", 0))])
    setting = setting_of(allowed)
    _, meta = load(directory(setting.recipe, Job(FOLD, "teacher", 0)) / "model")
    assert meta["exposure"]["unknown"] == [str(hub)]
    from ser import produce

    work = produce.teacher_work(setting, Job(FOLD, "teacher", 0))
    list(produce.serial(setting.recipe, work))
    student = gather_ingredients(setting, Job(FOLD, "student", 0), ALONE)
    assert student.exposure.unknown == (str(hub),)
    with pytest.raises(UserError, match="unknown"):
        gather_ingredients(
            setting_of(copy.deepcopy(allowed) | {"allow_unknown": []}), Job(FOLD, "student", 0), ALONE
        )
