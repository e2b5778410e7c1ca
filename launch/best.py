"""What a sweep has chosen, as recipes that `ser run` takes: the best trial, every trial of a front, or each fold's own choice.

Guarantees: a written recipe says what its settings were tuned on, and takes the trainings that the trials have finished.
"""

from pathlib import Path
from typing import Any

import yaml

from launch.study import Study
from ser.recipe import Recipe
from ser.space import told, varied
from ser.strict import read_yaml
from ser.values import overlap
from shards import atomic


def write_best(recipe: Recipe, study: Study, found: dict[str, Any], number: int) -> Path:
    """A trial's recipe over all of the recipe's folds (its own fold where each chooses for itself)."""
    trial, one = found["trials"][number], len(found["objectives"]) == 1
    name = "best" if one else f"best-{number:05d}"
    own = study.recipe.model_copy(
        update={
            "name": f"{recipe.name[:50]}-{name}",
            "run_dir": f"{study.folder.parent if study.folder.name == 'sweep' else study.folder}-{name}",
            "folds": list(study.folds) if study.config.per == "fold" else recipe.folds,
            "reuse": [*study.recipe.reuse, str(study.trial(number))],
            "cluster": recipe.cluster,
        }
    )
    head = f"# Trial {number} of the sweep of {study.name}: {told(trial['params'])}.\n"
    for objective, value in zip(found["objectives"], trial["values"], strict=True):
        head += (
            f"# {objective['title']} {value:.6g} on the dev rows it was chosen by: no estimate of anything.\n"
        )
    return _write(study.folder / f"{name}.yaml", head, varied(own, study.config.space, trial["params"]))


def write_chosen(recipe: Recipe, studies: dict[str, tuple[Study, dict[str, Any]]], folder: Path) -> Path:
    """Each fold's own choice in `chosen/FOLD.yaml`, and a recipe that reads them.

    Args:
        studies: Fold -> its study and what that has come to.
    """
    reuse, space = [*recipe.reuse, str(folder / "shared")], {}
    for fold, (study, found) in studies.items():
        trial, space = found["trials"][found["best"][0]], study.config.space
        path = Path(recipe.chosen, f"{fold}.yaml") if recipe.chosen else None
        values: dict[str, Any] = (read_yaml(path) or {}) if path is not None and path.is_file() else {}
        for key, label in trial["params"].items():
            _, model, _, train_key = key.split(".", 3)
            values.setdefault(model, {})[train_key] = space[key].value(label)
        atomic.write(folder / "chosen" / f"{fold}.yaml", yaml.safe_dump(values, sort_keys=True))
        reuse.append(str(study.trial(trial["number"])))
    made = recipe.model_copy(
        update={
            "sweep": None,
            "name": f"{recipe.name[:50]}-best",
            "run_dir": f"{folder.parent}-best",
            "reuse": reuse,
            "chosen": str((folder / "chosen").resolve()),
            "models": {name: _without(recipe, name, list(space)) for name in recipe.models},
        }
    )
    head = f"# Each fold's own choice of the sweep of {recipe.name}, made on its own dev rows (nested).\n"
    return _write(folder / "best.yaml", head, made)


def _without(recipe: Recipe, name: str, keys: list[str]) -> Any:
    """A model whose chosen keys are not kept as they were typed."""
    model = recipe.models[name]
    keep = [k for k in model.keep if not any(overlap(f"models.{name}.train.{k}", key) for key in keys)]
    return model.model_copy(update={"keep": keep})


def _write(path: Path, head: str, recipe: Recipe) -> Path:
    atomic.write(path, head + yaml.safe_dump(recipe.dump(), sort_keys=False))
    return path
