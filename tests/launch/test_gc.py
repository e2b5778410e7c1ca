"""`ser gc`: what nothing refers to is found and, on request, goes; what a run reads or works on never does."""

import json
from pathlib import Path

import pytest

from launch.display import Display
from launch.leftovers import collect
from ser.recipe import load
from shards import cache
from shards.errors import UserError
from shards.lock import hold, holder
from tests import tiny
from tests.whole import run_here

QUIET = Display(quiet=True)
LEARNS = [{"loss": "cross_entropy"}]
CONV_ALONE = {
    "model": {"role": "baseline", "model": tiny.CONV, "objective": LEARNS, "train": tiny.training(2)}
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose teacher was trained twice: (recipe, leftovers of the first time are there)."""
    folder = tmp_path_factory.mktemp("gc")
    conv = {**tiny.CONV, "features": "stored"}
    models = {
        "teacher": {"role": "teacher", "model": conv, "objective": LEARNS, "train": tiny.training(3, checkpoint_every=2)},
        "student": {
            "role": "student", "model": conv, "train": tiny.training(2),
            "objective": [*LEARNS, {"loss": "kl", "teacher": "teacher"}],
        },
    }  # fmt: skip
    features = {"mel": {"kind": "mel", "options": {"bands": 20}}}
    values = tiny.recipe_values(folder, str(folder / "dataset"), models, features=features)
    tiny.write_corpus(folder)
    path = str(tiny.write_recipe(folder, values))
    run_here(load(path), until="distill")
    recipe = load(path, ["models.teacher.train.steps=4"])
    run_here(recipe, until="distill")
    return recipe


def found(recipe, **options) -> dict[str, set[str]]:
    """What is found, by kind."""
    kinds: dict[str, set[str]] = {}
    for one in collect([str(recipe.directory)], options.pop("gone", []), options.pop("delete", False), QUIET):
        assert one.bytes > 0
        kinds.setdefault(one.what, set()).add(one.where)
    return kinds


def targets(recipe, teacher: str) -> list[Path]:
    return sorted(Path(recipe.data.path).glob(f"targets/{teacher}/*/targets.json"))


@pytest.mark.slow
def test_only_what_nothing_refers_to_is_found_and_goes(made):
    run, data = made.directory, Path(made.data.path)
    first, mel = targets(made, "teacher"), targets(made, "mel")
    assert len(first) == 2 and len(mel) == 1
    before = sorted(str(path) for path in run.rglob("*"))

    seen = found(made)
    assert {kind: len(where) for kind, where in seen.items()} == {
        "targets": 1,
        "superseded": 2,
        "checkpoints": 1,
    }
    assert sorted(str(path) for path in run.rglob("*")) == before  # nothing goes unasked

    # A training that another run has taken stays.
    link = run.parent / "other" / "folds" / "session-ses0" / "teacher" / "seed-0"
    taken = next((run / "superseded").glob("*/teacher/*"))
    link.parent.mkdir(parents=True)
    link.symlink_to(taken)
    assert str(taken) not in found(made)["superseded"]
    link.unlink()

    # While a run of the dataset works, or one of another host cannot be asked, its targets stay.
    with hold(run / ".lock", "busy", "wait"):
        assert holder(run / ".lock") is not None
        assert found(made, delete=True) == {}
    assert holder(run / ".lock") is None
    training = run / "folds" / "session-ses0" / "student" / "seed-0.lock"
    with hold(training, "busy", "wait"):
        assert found(made, delete=True) == {}
    far = data / "runs" / "0123456789abcdef.json"
    far.write_text(json.dumps({"run": "/far/away/run", "recipe": "x", "host": "another-host"}))
    assert "targets" not in found(made)
    assert "targets" in found(made, gone=["/far/away/run"])
    far.unlink()

    gone = found(made, delete=True)
    assert {kind: len(where) for kind, where in gone.items()} == {
        "targets": 1,
        "superseded": 2,
        "checkpoints": 1,
    }
    assert found(made) == {}
    assert len(targets(made, "teacher")) == 1 and targets(made, "mel") == mel
    lines = run_here(made, until="distill")
    assert not any(line.made for line in lines), lines  # all that the recipe reads is still there

    # A run that was deleted here reads nothing any more.
    run.rename(run.with_name("moved"))
    left = collect([str(data)], [], False, QUIET)
    assert {one.where.split()[1].split("/")[0] for one in left} == {"teacher", "mel"}
    run.with_name("moved").rename(run)


def test_what_is_no_run_and_no_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a run directory nor a dataset"):
        collect([str(tmp_path)], [], False, QUIET)


def test_the_cache_is_found_without_names(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert collect([], [], True, QUIET) == []
    cache.Cache().put("0" * 32, b"1234")
    (tmp_path / "cache" / "thesis.txt").write_text("not the cache's")
    assert [one.bytes for one in collect([], [], False, QUIET)] == [4]
    collect([], [], True, QUIET)
    assert collect([], [], False, QUIET) == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["thesis.txt"]


def test_what_a_fold_alone_works_on_stays(tmp_path):
    """A job of an array holds its fold's lock, not the run's; Ray's files of its training are no remains."""
    path = tiny.write_recipe(tmp_path, tiny.recipe_values(tmp_path, str(tmp_path / "dataset"), CONV_ALONE))
    run = load(str(path)).directory
    (run / "folds/session-ses0/model/.seed-0-ray").mkdir(parents=True)
    (run / "folds/session-ses0/model/.seed-0-ray/starts").write_text("0")
    (run / "recipe.yaml").write_text(path.read_text())
    with hold(run / ".lock-session-ses0", "busy", "wait"):
        assert collect([str(run)], [], True, QUIET) == []
    assert [one.what for one in collect([str(run)], [], True, QUIET)] == ["remains"]
    assert not (run / "folds/session-ses0/model/.seed-0-ray").exists()
