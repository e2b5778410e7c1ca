"""A whole recipe in one process: the stages of `launch.run`, with Ray's part done by plain loops.

What is computed is the same; starting Ray and its workers takes longer than the smallest recipes themselves.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

from launch import run as stages
from launch.display import Display
from ser import produce
from ser.quarantine import Quarantine
from ser.recipe import Recipe
from ser.train import train


class NoSession:
    """Stands where the Ray session would."""

    def map(self, function: Any, items: Any, **resources: Any) -> Iterator:
        return ((index, function(item)) for index, item in enumerate(items))


def _compute_all(session: Any, recipe: Recipe, work: list) -> Iterator:
    quarantine = Quarantine(recipe, work)
    for item in work:
        done = produce.compute(recipe, item)
        quarantine.add(done)
        yield item, done


def _train_all(recipe: Recipe, jobs: list, workers: int, progress: Any = None) -> Iterator:
    from cluster.pool import Trained

    for job in jobs:
        train(recipe, job)
        yield Trained(job, 0.0)


def run_here(recipe: Recipe, **options: Any) -> list[stages.Line]:
    """`launch.run.run` without Ray."""
    with ExitStack() as held:
        for name, value in (
            ("launch.run.Runner.session", lambda self: NoSession()),
            ("launch.run.Runner.workers", lambda self: 1),
            ("cluster.pack.over", lambda session: lambda function, items: map(function, items)),
            ("cluster.pool.compute_all", _compute_all),
            ("cluster.pool.train_all", _train_all),
        ):
            held.enter_context(mock.patch(name, value))
        return stages.run(recipe, Display(quiet=True), **options)


def report_of(recipe: Recipe) -> dict[str, Any]:
    """report.json after `run_here`."""
    run_here(recipe)
    return json.loads((recipe.directory / "report.json").read_text())
