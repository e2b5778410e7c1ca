"""The whole chain as a recipe: a teacher on two workers under DeepSpeed, its stored targets, a student that is distilled, a report."""

import json
from pathlib import Path

import yaml

from tests import tiny
from tests.faults import same_training, train_one
from tests.processes import run_ranks
from tests.submitting import FOLD, training


def write_recipe(folder: Path, corpus: Path) -> Path:
    """A teacher on two workers under DeepSpeed with ZeRO 2, its stored targets, a student on two workers."""
    folder.mkdir(parents=True)
    many = {"workers": 2, "slots": 2, "slot_seconds": 3.0, "checkpoint_every": 5}
    labels = [{"loss": "cross_entropy"}]
    student = [*labels, {"loss": "kl", "teacher": "teacher", "temperature": 2.0}]
    models = {
        "teacher": {
            "role": "teacher", "model": tiny.HUBERT, "objective": labels, "train": tiny.training(12, zero_stage=2, **many),
        },
        "student": {"role": "student", "model": tiny.CONV, "objective": student, "train": tiny.training(6, **many)},
    }  # fmt: skip
    values = tiny.recipe_values(folder, str(folder / "dataset"), models)
    source = {"reader": "manifest", "root": str(corpus), "options": {"corpus": "tiny"}}
    values["data"] = {"path": str(folder / "dataset"), "corpora": [source], "shard_seconds": 8.0}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def alone(recipe: str, until: str) -> None:
    """In a process: stages of an undisturbed run, without Ray."""
    from launch.display import Display
    from launch.run import run
    from ser.recipe import load

    run(load(recipe, [], None), Display(quiet=True), until, alone=True)


def undisturbed(folder: Path, corpus: Path) -> Path:
    """What one process makes, and two plain ranks where a model is trained: no Ray, no host, nothing lost."""
    recipe = write_recipe(folder, corpus)
    values = yaml.safe_load(recipe.read_text())
    run_ranks(alone, 1, str(recipe), "features", timeout=900)
    run_ranks(train_one, 2, values, (FOLD, "teacher", 0), timeout=900)
    run_ranks(alone, 1, str(recipe), "targets", timeout=900)
    run_ranks(train_one, 2, values, (FOLD, "student", 0), timeout=900)
    run_ranks(alone, 1, str(recipe), "report", timeout=900)
    return recipe.parent


def files(folder: Path) -> dict[str, bytes]:
    """All files of a dataset: shards, indices, targets."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix in (".tar", ".parquet", ".arrow")
    }


def report(run: Path) -> dict:
    """What a report says, but for times, paths and the environment."""
    values = json.loads((run / "report.json").read_text())
    for model in values["models"].values():
        del model["speed"]
        for one in model["trainings"]:
            del one["seconds"]
    return {k: v for k, v in values.items() if k not in ("environment", "recipe")}


def same_run(found: Path, expected: Path) -> None:
    """Shards, index and targets to the byte; weights to the bit; predictions, events, and the report's numbers."""
    assert files(found / "dataset") == files(expected / "dataset")
    for model in ("teacher", "student"):
        same_training(training(found / "run", model), training(expected / "run", model))
    ours, theirs = (report(folder / "run") for folder in (found, expected))
    assert ours == theirs
