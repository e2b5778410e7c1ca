"""Online targets: the losses of stored ones in evaluation mode, and what LEGACY's training mode does instead."""

from typing import Any

import numpy as np
import pytest
import torch

from ser import produce
from ser.build import Ingredients, gather_ingredients
from ser.inputs import complete
from ser.job import Job
from ser.online import OnlineTargets
from ser.recipe import Recipe
from ser.setting import Setting, open_setting
from ser.step import seed_everything
from ser.strict import validate
from shards.batch import load_slot
from shards.errors import UserError
from tests import tiny
from tests.faults import train_one
from tests.ser.worlds import ALONE

FOLD = "session-ses0"
BOTH = [{"loss": "cross_entropy"}, {"loss": "ccc"}]
TERMS = [
    {"loss": "cross_entropy", "weight": 0.75},
    {"loss": "multi_kl", "teachers": ["sound", "text"], "temperature": 5, "weight": 0.25},
    {"loss": "kl", "teacher": "hubert", "temperature": 2},
    {"loss": "embedding", "teacher": "sound", "standardise": True},
    {"loss": "dimensions", "teacher": "text"},
]
# The same answers in other batches: padding and the order of sums differ.
TOLERANCE = 2e-4


def values(folder, dataset: str, terms: list = TERMS, **targets: Any) -> dict[str, Any]:
    def entry(kind: dict, objective: list, role: str = "teacher") -> dict[str, Any]:
        return {
            "role": role,
            "model": kind,
            "objective": objective,
            "train": tiny.training(4, optimizer={"lr": 0.01}),
        }

    dropped = tiny.CONV | {"dropout": 0.5}
    return tiny.recipe_values(
        folder, dataset,
        {
            "sound": entry(dropped, BOTH), "text": entry(tiny.BERT, BOTH), "hubert": entry(tiny.HUBERT, BOTH),
            "student": entry(tiny.CONV, terms, "student"),
        },
        targets=targets,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_dataset):
    """Three teachers, their targets stored."""
    folder = tmp_path_factory.mktemp("online")
    given = values(folder, tiny_dataset)
    setting = open_setting(validate(Recipe, given, where="test"))
    for name in ("sound", "text", "hubert"):
        train_one(given, (FOLD, name, 0))
        list(produce.serial(setting.recipe, produce.teacher_work(setting, Job(FOLD, name, 0))))
    return folder


def opened(folder, dataset: str, strictness: str = "STRICT", **targets: Any) -> Setting:
    given = values(folder, dataset, **targets)
    given["protocol"]["strictness"] = strictness
    # training mode is another protocol's, so its folder is looked for under the same identity-free name
    return open_setting(validate(Recipe, given, where="test"))


def losses(x: Ingredients, steps: int = 3) -> list[dict[str, float]]:
    """Value of every term in the first steps, in evaluation mode of the student, which does not move."""
    model = x.trainable.model.eval()
    found = []
    for step in range(steps):
        (slot,) = x.plan.step(step)
        batch = complete(load_slot(x.dataset, slot, x.needs, x.policy), x.model)
        seed_everything(0, step, 0)
        _, shares = x.objective.slot_loss(model(batch), batch, x.objective.totals((slot,)), 1.0)
        found.append({name: value.item() for name, value in shares.items()})
    return found


def test_the_same_objective_from_either_source_gives_equal_losses(trained, tiny_dataset):
    sources = {}
    for source in ("stored", "online"):
        seed_everything(0, -1, 0)
        x = gather_ingredients(opened(trained, tiny_dataset, source=source), Job(FOLD, "student", 0), ALONE)
        assert isinstance(x.objective.sources["sound"], OnlineTargets) == (source == "online")
        sources[source] = losses(x)
    for stored, online in zip(sources["stored"], sources["online"], strict=True):
        assert stored.keys() == online.keys() and len(stored) == len(TERMS)
        for name, value in stored.items():
            assert online[name] == pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE), name
    assert max(sources["stored"][0].values()) > 10 * TOLERANCE, "there is something to compare"


def source(folder, dataset: str, name: str = "sound", **targets: Any) -> OnlineTargets:
    from ser import online

    setting = opened(
        folder, dataset, "LEGACY" if targets.get("mode") else "STRICT", source="online", **targets
    )
    return online.ask(setting, Job(FOLD, name, 0), seed=3)


def test_states_and_answers_are_those_that_are_stored(trained, tiny_dataset):
    setting = opened(trained, tiny_dataset)
    rows = setting.folds[FOLD].train
    views = np.ones(len(rows), np.int64)
    for name in ("sound", "text", "hubert"):
        stored, live = produce.teacher_store(setting, Job(FOLD, name, 0)), source(trained, tiny_dataset, name)
        assert (stored.state(rows, views) == live.state(rows, views)).all()
        kept, said = stored.read(rows, views), live.read(rows, views)
        assert kept.keys() == said.keys() == {"logits", "dimensions", "embedding"} and live.passes == len(
            rows
        )
        for output, value in kept.items():
            assert np.allclose(np.asarray(value), said[output], atol=TOLERANCE), (name, output)


def test_dropout_is_off_in_a_teacher_and_on_under_legacy(trained, tiny_dataset):
    rows, other = np.arange(6), np.arange(6, 12)
    still, moving = source(trained, tiny_dataset), source(trained, tiny_dataset, mode="train")
    assert not still.model.training and moving.model.training
    calm, drawn = still.read(rows, 1)["logits"], moving.read(rows, 1)["logits"]
    assert (still.read(rows, 1)["logits"] == calm).all() and (np.abs(calm - drawn).max(1) > 1e-4).all()
    assert (moving.read(rows, 1)["logits"] == drawn).all(), (
        "drawn from seed, rows and views: a resumed run repeats it"
    )
    assert not np.allclose(moving.read(rows, 0)["logits"], drawn)
    assert not any(p.requires_grad for p in moving.model.parameters())
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    moving.read(other, 1)
    assert (torch.get_rng_state() == before[0]).all() and (
        np.random.get_state(legacy=False)["state"]["key"] == before[1]
    ).all()


def test_what_online_teachers_cannot_do_is_refused(trained, tiny_dataset):
    with pytest.raises(UserError, match=r"targets: mode train draws other answers .* needs `source: online`"):
        opened(trained, tiny_dataset, mode="train")
    given = values(trained, tiny_dataset, source="online")
    given["models"]["student"]["train"]["loader_workers"] = 2
    with pytest.raises(
        UserError, match=r"student.train.loader_workers: online teachers live in the training process"
    ):
        validate(Recipe, given, where="test")
    from ser.agreement import agree
    from ser.protocol import load_protocol

    recipe = validate(Recipe, values(trained, tiny_dataset, source="online", mode="train"), where="test")
    with pytest.raises(UserError, match="leaves the teachers' dropout on, as some released code does"):
        agree(recipe, load_protocol(recipe.protocol))
    agree(recipe, load_protocol({**recipe.protocol, "strictness": "LEGACY"}))  # pyright: ignore


def test_a_training_with_online_teachers_ends_and_counts_its_passes(trained, tiny_dataset, tmp_path):
    import json
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    given = values(tmp_path, tiny_dataset, TERMS[:2], source="online")
    train_one(given, (FOLD, "student", 0))
    setting = open_setting(validate(Recipe, given, where="test"))
    job = Job(FOLD, "student", 0)
    meta = json.loads((tmp_path / f"run/folds/{FOLD}/student/seed-0/model/model.json").read_text())["meta"]
    plan = gather_ingredients(setting, job, ALONE).plan
    assert (
        meta["training"]["answers"]
        == sum(len(slot.rows) for step in range(4) for slot in plan.step(step))
        > 0
    )
    assert set(meta["exposure"]["fit"]) >= {"tiny/s4", "tiny/s7"}
