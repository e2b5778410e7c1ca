"""A whole recipe in one process, without Ray: starting Ray and its workers takes longer than the smallest recipes."""

import json
from typing import Any

from launch.display import Display
from launch.run import run
from launch.runner import Line
from ser.recipe import Recipe


def run_here(recipe: Recipe, **options: Any) -> list[Line]:
    """`launch.run.run` in this process alone."""
    return run(recipe, Display(quiet=True), alone=True, **options)


def report_of(recipe: Recipe) -> dict[str, Any]:
    """report.json after `run_here`."""
    run_here(recipe)
    return json.loads((recipe.directory / "report.json").read_text())
