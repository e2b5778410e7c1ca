"""Plain values of small recipes on the tiny protocol, and trainings of them."""

import json
from pathlib import Path
from typing import Any

from ser.job import Job
from ser.recipe import Recipe
from ser.strict import validate
from ser.train import train
from tests import tiny

FOLD = "session-ses0"


CE, CCC = {"loss": "cross_entropy"}, {"loss": "ccc"}


def model(*objective: dict, role: str = "baseline", kind: dict = tiny.CONV, **more: Any) -> dict[str, Any]:
    return {"role": role, "model": kind, "objective": list(objective), "train": tiny.training(2)} | more


def product(*names: str, **more: Any) -> dict[str, Any]:
    kind = {"kind": "fused", "mode": "product", "components": dict.fromkeys(names)}
    return {"role": "teacher", "model": kind} | more


def values(
    folder: Path, models: dict, dataset: str = "data", protocol: dict | None = None, **more: Any
) -> dict:
    """Plain values of a recipe; `protocol` changes keys of the tiny one, None takes a key away."""
    made = tiny.recipe_values(folder, dataset, models, **more)
    rules = made["protocol"] | (protocol or {})
    return made | {"protocol": {key: value for key, value in rules.items() if value is not None}}


def trained(folder: Path, dataset: str, models: dict, name: str = "m", **more: Any) -> Path:
    recipe = validate(Recipe, values(folder, models, dataset, **more), where="test")
    return train(recipe, Job(FOLD, name, 0))


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model/model.json").read_text())
