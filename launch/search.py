"""A grid search over train keys: its trials, how they are judged, and where the choice is written.

Guarantees: a choice is kept with the digest of the grid that it was made from; another grid does not use it.
Gives up: anything but the whole grid.
"""

import json
from typing import Any

import yaml

from ser.job import GRIDS, Job, digest, directory
from ser.recipe import Recipe


def combinations(grid: dict[str, list[Any]]) -> list[str]:
    """Every combination of a grid as canonical JSON."""
    found: list[dict[str, Any]] = [{}]
    for key, values in grid.items():
        found = [{**have, key: value} for have in found for value in values]
    return [json.dumps(one, sort_keys=True) for one in found]


def dev_value(recipe: Recipe, job: Job) -> float:
    """The best value of the dev metric in a finished training; minus infinity where there is none."""
    facts = json.loads((directory(recipe, job) / "model" / "model.json").read_text())
    value = facts["meta"]["training"].get("dev")
    return float("-inf") if value is None else float(value)


def keep_choice(recipe: Recipe, fold: str, model: str, values: dict[str, Any]) -> None:
    """Write a fold's chosen values into the run's `chosen/<fold>.yaml`."""
    path = recipe.directory / "chosen" / f"{fold}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = yaml.safe_load(path.read_text()) if path.is_file() else {}
    chosen[model] = values
    # A choice holds for the grid it was made from.
    chosen.setdefault(GRIDS, {})[model] = digest(recipe.models[model].search)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(chosen, sort_keys=True))
    temporary.replace(path)
