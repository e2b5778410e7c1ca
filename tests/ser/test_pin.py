"""A run keeps the generation of its dataset that it began with; only reasons that it names move it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ser import pin
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.strict import validate
from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.store import Store
from shards.withdraw import erase, withdraw
from tests import tiny


@pytest.fixture
def dataset(tiny_dataset, tmp_path) -> str:
    shutil.copytree(tiny_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("targets", "runs"))
    return str(tmp_path / "dataset")


def recipe(folder: Path, dataset: str, **changes) -> Recipe:
    model = {"role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}], "train": tiny.training(1)}  # fmt: skip
    return validate(Recipe, tiny.recipe_values(folder, dataset, {"m": model}, **changes), where="test")


def add(dataset: str, folder: Path) -> None:
    more = [
        dataclasses.replace(u, key=f"b-{u.key}", corpus="b", recording=f"b{u.recording}")
        for u in tiny.utterances(folder / "more", count=8, seed=3)
    ]
    pack(more, dataset, shard_seconds=8.0, add=True)


def test_what_others_add_is_not_seen_until_it_is_asked_for(dataset, tmp_path):
    mine = recipe(tmp_path, dataset)
    assert pin.settle(mine) == "" and pin.settle(mine) == ""
    before = open_setting(mine)
    add(dataset, tmp_path)
    said = pin.settle(mine)
    assert "keeps generation 1; the newest is 2" in said and str(mine.directory / pin.NAME) in said
    assert open_setting(mine) is before and len(before.dataset) == 64
    (mine.directory / pin.NAME).unlink()
    pin.settle(mine)
    assert open_setting(mine).dataset.generation == 2


def test_a_recipe_that_asks_for_other_data_moves_on(dataset, tmp_path):
    pin.settle(recipe(tmp_path, dataset))
    add(dataset, tmp_path)
    protocol = {**tiny.recipe_values(tmp_path, dataset, {})["protocol"], "corpora": ["tiny", "b"]}
    both = recipe(tmp_path, dataset, protocol=protocol)
    assert open_setting(both).dataset.generation == 2, "without a driver, too"
    said = pin.settle(both)
    assert "generation 1 -> 2, because the recipe's data or protocol changed" in said
    assert open_setting(both).dataset.corpora == ["b", "tiny"]


def test_withdrawals_are_honoured(dataset, tmp_path):
    mine = recipe(tmp_path, dataset)
    pin.settle(mine)
    pin.refuse_withdrawn(mine)
    withdraw(dataset, "tiny/s3")
    with pytest.raises(UserError, match="reads generation 1, and tiny/s3 left the dataset since"):
        pin.refuse_withdrawn(mine)
    assert "1 -> 2, because tiny/s3 withdrawn since" in pin.settle(mine)
    pin.refuse_withdrawn(mine)
    assert int((~open_setting(mine).dataset.alive).sum()) == 8
    erase(dataset)
    assert "-> 3, because the old one is gone" in pin.settle(mine)
    assert len(open_setting(mine).dataset) == 56


def test_a_dataset_that_was_packed_anew_is_not_taken_for_the_old(dataset, tmp_path):
    mine = recipe(tmp_path, dataset)
    pin.settle(mine)
    shutil.rmtree(dataset)
    pack(tiny.utterances(tmp_path / "wav", count=32, seed=4), dataset, shard_seconds=8.0)
    with pytest.raises(UserError, match="not the one that this run has pinned"):
        open_setting(mine)
    assert "the old one is gone" in pin.settle(mine)
    assert len(open_setting(mine).dataset) == 32


def test_a_dataset_knows_its_runs(dataset, tmp_path):
    for name in ("run", "run", "other"):
        pin.register(recipe(tmp_path, dataset, run_dir=str(tmp_path / name)))
    assert sorted(path for path, _ in pin.registered(Store(dataset))) == [
        str(tmp_path / "other"),
        str(tmp_path / "run"),
    ]
    assert all(json.loads(p.read_text())["host"] for p in Path(dataset, "runs").iterdir())
    withdraw(dataset, "tiny/s3")
    erase(dataset)
    assert len(pin.registered(Dataset.open(dataset).store)) == 2, "and keeps knowing them"
