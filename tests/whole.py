"""A whole recipe in one process, without Ray: starting Ray and its workers takes longer than the smallest recipes."""

import json
from pathlib import Path
from typing import Any

from launch.display import Display
from launch.run import run
from launch.runner import Line
from ser.recipe import Recipe


def places(folder: Path) -> list[str]:
    """Overrides that keep a recipe over a generated corpus below one folder."""
    return [f"data.path={folder}/data", f"data.corpora.0.root={folder}/corpus", f"run_dir={folder}/run"]


def run_here(recipe: Recipe, **options: Any) -> list[Line]:
    """`launch.run.run` in this process alone."""
    return run(recipe, Display(quiet=True), alone=True, **options)


def report_of(recipe: Recipe) -> dict[str, Any]:
    """report.json after `run_here`."""
    run_here(recipe)
    return json.loads((recipe.directory / "report.json").read_text())
