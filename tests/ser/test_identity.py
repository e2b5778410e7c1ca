"""What a training's identity sees, what it does not, and that finished trainings of another identity are never lost."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ser import produce
from ser import setting as settings
from ser.claim import claim
from ser.distributed import World
from ser.job import (
    GRIDS,
    Job,
    chosen_values,
    digest,
    directory,
    finished,
    identity,
    superseded,
    train_config,
    why_superseded,
    write_identity,
)
from ser.recipe import RECIPES, Recipe, load
from ser.setting import Setting, open_setting
from ser.strict import validate
from shards.errors import UserError
from shards.pack import pack
from tests import tiny

LABELS = [{"loss": "cross_entropy"}]
JOB = Job("session-ses0", "m", 0)
MEL = {"mel": {"kind": "mel", "options": {"bands": 20}}}


def one(model: dict | None = None, **changes) -> dict:
    return {"m": {"role": "teacher", "model": model or tiny.CONV, "objective": LABELS, "train": tiny.training(3), **changes}}  # fmt: skip


def setting(folder: Path, dataset: str, models: dict | None = None, **changes) -> Setting:
    settings._open.cache_clear()  # as a new process would
    values = tiny.recipe_values(folder, dataset, models or one(), **changes)
    return open_setting(validate(Recipe, values, where="test"))


@pytest.fixture
def dataset(tiny_dataset, tmp_path) -> str:
    shutil.copytree(tiny_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("targets"))
    return str(tmp_path / "dataset")


def add_corpus(dataset: str, folder: Path, name: str = "aaa") -> None:
    """Another corpus whose name sorts before those that are there, so that every code changes."""
    more = [
        dataclasses.replace(u, key=u.key.replace("tiny", name), corpus=name, recording=f"o{u.recording}")
        for u in tiny.utterances(folder / "more", count=16, seed=5)
    ]
    pack(more, dataset, shard_seconds=8.0, add=True)


# -- rows and labels


def test_adding_a_corpus_changes_nothing_that_a_fold_is_made_of(dataset, tmp_path):
    from ser.build import plan_of
    from ser.setting import supervision

    models = one(train=tiny.training(3, law="temperature"))
    before = setting(tmp_path, dataset, models)
    names, was = list(before.folds), identity(before, JOB)
    add_corpus(dataset, tmp_path)
    after = setting(tmp_path, dataset, models)
    assert len(after.dataset) > len(before.dataset) and after.dataset.corpora == ["aaa", "tiny"]
    assert list(after.folds) == names and identity(after, JOB) == was
    plans = []
    for one_setting in (before, after):
        fold, config = one_setting.folds[JOB.fold], train_config(one_setting.recipe, JOB)
        labels, rows = supervision(one_setting, fold, "m", "none")
        plan = plan_of(one_setting, JOB, config, rows, labels)
        plans.append([[s.rows.tolist() for s in plan.step(i)] for i in range(plan.total_steps(2))])
    assert plans[0] == plans[1], "the same training, step by step"


def test_a_corpus_that_joins_the_fold_is_seen(dataset, tmp_path):
    protocol = tiny.recipe_values(tmp_path, dataset, one())["protocol"] | {"corpora": []}
    before = setting(tmp_path, dataset, protocol=protocol)
    assert list(before.folds) == ["session-tiny-ses0"], "short names are accepted, folders have whole ones"
    job = dataclasses.replace(JOB, fold="session-tiny-ses0")
    was = identity(before, job)
    add_corpus(dataset, tmp_path)
    with pytest.raises(UserError, match="ambiguous: session-aaa-ses0, session-tiny-ses0"):
        _ = setting(tmp_path, dataset, protocol=protocol).folds
    after = setting(tmp_path, dataset, protocol=protocol, folds=["session-tiny-ses0"])
    now = identity(after, job)
    assert [key for key in now if now[key] != was[key]] == ["rows", "labels"]


@pytest.mark.parametrize("whose", ["protocol", "model"])
def test_another_list_of_labels_is_seen(dataset, tmp_path, whose):
    path = tmp_path / "labels.txt"
    protocol = tiny.recipe_values(tmp_path, dataset, one())["protocol"]
    given = {"protocol": protocol | {"labelled": str(path)}} if whose == "protocol" else {}
    models = one(labelled=str(path)) if whose == "model" else one()
    every = setting(tmp_path, dataset)
    keys, hidden = every.dataset.keys(), set(every.dataset.keys(every.folds[JOB.fold].train[:3]))
    fewer = [key for key in keys if key not in hidden]
    found = []
    for some in (keys, fewer, fewer):
        path.write_text("\n".join(some))
        found.append(identity(setting(tmp_path, dataset, models, **given), JOB))
    assert found[1] == found[2]
    assert [key for key in found[0] if found[0][key] != found[1][key]] == ["labels"]


# -- features

READERS = {
    "conv": {**tiny.CONV, "features": "stored"},
    "on the spot": tiny.CONV,
    "prosodic": {"kind": "prosodic", "width": 8, "blocks": 1},
    "classical": {"kind": "classical", "features": "mfcc"},
}


@pytest.mark.parametrize("name", READERS)
def test_a_mended_extractor_repeats_what_was_trained_on_it(dataset, tmp_path, monkeypatch, name):
    classical = {"m": {"role": "baseline", "model": READERS[name]}}
    models = classical if name == "classical" else one(READERS[name])
    features = {**MEL, "prosody": {"kind": "prosody"}, "mfcc": {"kind": "mfcc"}}
    here = setting(tmp_path, dataset, models, features=features)
    was = identity(here, JOB)
    monkeypatch.setattr(produce, "FEATURE_VERSION", 99)
    now = identity(here, JOB)
    assert [key for key in now if now[key] != was[key]] == ["features"]


def test_features_are_known_by_kind_and_through_components(dataset, tmp_path):
    product = {"kind": "fused", "mode": "product", "components": {"a": None, "b": None}}
    models = {
        "a": one(READERS["conv"])["m"], "b": one(READERS["prosodic"])["m"],
        "m": {"role": "teacher", "model": product}, "text": one(tiny.BERT)["m"],
    }  # fmt: skip
    features = {**MEL, "mine": {"kind": "prosody"}}
    here = setting(tmp_path, dataset, models, features=features)
    told = identity(here, JOB)["features"]
    assert {kind: list(one["stored"]) for kind, one in told.items()} == {"mel": ["mel"], "prosody": ["mine"]}
    assert identity(here, dataclasses.replace(JOB, model="text"))["features"] == {}
    other = setting(
        tmp_path, dataset, models, features={**features, "mine": {"kind": "prosody", "dtype": "float16"}}
    )
    assert identity(other, dataclasses.replace(JOB, model="b")) != identity(
        here, dataclasses.replace(JOB, model="b")
    )
    assert identity(other, dataclasses.replace(JOB, model="a")) == identity(
        here, dataclasses.replace(JOB, model="a")
    )


# -- what lies in the way


def fake(here: Setting, text: str) -> Path:
    """A finished training without the training."""
    folder = directory(here.recipe, JOB)
    write_identity(folder, identity(here, JOB))
    (folder / "weights").write_text(text)
    (folder / "DONE").write_text("{}")
    return folder


def test_a_finished_training_of_another_identity_is_set_aside_and_comes_back(dataset, tmp_path):
    world = World(0, 1, 0, torch.device("cpu"))
    first = setting(tmp_path, dataset)
    folder = fake(first, "six hours of work")
    second = setting(tmp_path, dataset, one(train=tiny.training(4)))
    assert why_superseded(second, JOB) == ["train.steps"] and why_superseded(first, JOB) is None
    claim(second.recipe, JOB, identity(second, JOB), world)
    assert not (folder / "DONE").exists() and not finished(second, JOB)
    aside = superseded(first.recipe, JOB, identity(first, JOB))
    assert aside == tmp_path / f"run/superseded/session-ses0/m/seed-0-{digest(identity(first, JOB))[:8]}"
    assert (aside / "weights").read_text() == "six hours of work"
    # half-done work of another identity goes, without a trace
    (folder / "half").write_text("x")
    third = setting(tmp_path, dataset, one(train=tiny.training(5)))
    claim(third.recipe, JOB, identity(third, JOB), world)
    assert not (folder / "half").exists()
    fake(third, "another")
    claim(first.recipe, JOB, identity(first, JOB), world)
    assert finished(first, JOB) and (folder / "weights").read_text() == "six hours of work"
    assert not aside.exists() and len(list(aside.parent.iterdir())) == 1, "the third lies there now"


@pytest.mark.parametrize("name", ["open-emodb", "open-ravdess", "demo"])
def test_a_variant_has_its_own_run_directory(name, monkeypatch):
    monkeypatch.setenv("SER_CORPORA", "/corpora")
    variants = yaml.safe_load((RECIPES / f"{name}.yaml" if name != "demo" else RECIPES / "demo/recipe.yaml").read_text())["variants"]  # fmt: skip
    for variant in variants:
        assert load(name, variant=variant).directory == Path(f"runs/{name}-{variant}")
        assert load(name, ["run_dir=x/y"], variant).directory == Path("x/y")
    assert load(name).directory == Path(f"runs/{name}")


def test_a_variants_run_directory_stands_beside_the_recipes(tmp_path):
    path = tiny.write_recipe(tmp_path, tiny.recipe_values(tmp_path, "data", one(), variants={"a": {"seeds": [1]}, "b": {"run_dir": "mine"}}))  # fmt: skip
    assert load(str(path), variant="a").directory == tmp_path / "run-a"
    assert load(str(path), variant="b").directory == Path("mine")


# -- chosen values


def searching(tmp_path: Path, overrides=(), variant=None, **model) -> Recipe:
    values = tiny.recipe_values(tmp_path, "data", one(**model), variants={"v": {"models": {"m": {"train": {"steps": 11}}}}})  # fmt: skip
    if (tmp_path / "chosen").is_dir():
        values["chosen"] = "chosen"
    return load(str(tiny.write_recipe(tmp_path, values)), overrides, variant)


def write_choice(folder: Path, values: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "session-ses0.yaml").write_text(yaml.safe_dump(values))


def test_a_runs_own_choice_holds_for_its_grid_alone(tmp_path):
    from launch.search import keep_choice

    grid = {"steps": [5, 6], "optimizer.lr": [0.1]}
    recipe = searching(tmp_path, search=grid)
    assert chosen_values(recipe, JOB) == {}
    keep_choice(recipe, JOB.fold, "m", {"steps": 6, "optimizer.lr": 0.1})
    assert train_config(recipe, JOB).steps == 6
    assert train_config(searching(tmp_path, search={"steps": [5, 7]}), JOB).steps == 3, (
        "made from another grid"
    )
    assert train_config(searching(tmp_path), JOB).steps == 3, "nothing is searched for any more"
    written = yaml.safe_load((recipe.directory / "chosen/session-ses0.yaml").read_text())
    assert written[GRIDS]["m"] == digest(grid)


def test_the_chosen_folder_of_a_recipe_is_read_checked_and_yields_to_what_was_typed(tmp_path):
    write_choice(tmp_path / "chosen", {"m": {"steps": 9, "optimizer.lr": 0.5}})
    assert train_config(searching(tmp_path), JOB).steps == 9
    typed = searching(tmp_path, ["models.m.train.steps=7"])
    assert train_config(typed, JOB).steps == 7 and train_config(typed, JOB).optimizer.lr == 0.5
    assert (
        train_config(searching(tmp_path, ["models.m.train.optimizer={lr: 0.25}"]), JOB).optimizer.lr == 0.25
    )
    assert train_config(searching(tmp_path, variant="v"), JOB).steps == 11
    again = Recipe.model_validate(typed.dump())
    assert train_config(again, JOB).steps == 7, "workers and the resolved recipe know it, too"
    write_choice(tmp_path / "chosen", {"x": {"steps": 9}})
    with pytest.raises(UserError, match="chosen values for x, no model"):
        train_config(searching(tmp_path), JOB)


def test_a_chosen_folder_that_is_missing_is_refused(tmp_path):
    values = tiny.recipe_values(tmp_path, "data", one(), chosen="nowhere")
    with pytest.raises(UserError, match="`chosen` names a folder that is not there"):
        load(str(tiny.write_recipe(tmp_path, values)))
    with pytest.raises(UserError, match="not there"):
        train_config(validate(Recipe, values, where="test"), JOB)


def test_an_override_of_a_searched_value_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"models\.m\.train\.steps is searched for") as error:
        searching(tmp_path, ["models.m.train.steps=7"], search={"steps": [5, 6]})
    assert "models.m.search" in str(error.value)
    without = searching(tmp_path, ["models.m.train.steps=7", "models.m.search={}"], search={"steps": [5, 6]})
    assert train_config(without, JOB).steps == 7


def test_numbers_of_rows_are_part_of_it(dataset, tmp_path):
    """Shuffles go by them, so equal rows at other places would not train the same weights."""
    here = setting(tmp_path, dataset)
    was = identity(here, JOB)["rows"]
    here.memo.clear()
    here.folds[JOB.fold] = dataclasses.replace(
        here.folds[JOB.fold], train=np.roll(here.folds[JOB.fold].train, 1)
    )
    assert identity(here, JOB)["rows"] != was
