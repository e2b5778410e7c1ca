"""A study of a recipe: what its trials have in common, what is put into a trial's folder, and how far a trial has come."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser import pin
from ser.checkpoint import write_json
from ser.recipe import Recipe
from ser.space import varied
from ser.sweep import SweepConfig
from ser.tuned import folds_so_far, steps_so_far
from shards import atomic
from shards.errors import UserError

TRIAL = "trial.json"
UNTOLD = ("name", "about", "run_dir", "data", "cluster", "report", "reuse", "sweep", "folds")


@dataclass(frozen=True)
class Study:
    """One study: of the whole recipe, or of one fold.

    Attributes:
        name: In its storage.
        folder: Of its trials and its page.
        config: The recipe's sweep.
        recipe: Of a trial, before its values are set; it takes what is finished in `shared`.
        shared: The run of what the space does not touch.
        folds: That a trial runs.
        content_hash: Of the dataset that all trials read.
    """

    name: str
    folder: Path
    config: SweepConfig
    recipe: Recipe
    shared: Path
    folds: tuple[str, ...]
    content_hash: str

    def made_for(self) -> dict[str, Any]:
        """Everything that decides what trials are and how they are judged, as JSON reads it back."""
        values = {key: value for key, value in self.recipe.dump().items() if key not in UNTOLD}
        sweep = self.config.model_dump(mode="json", exclude=set(SweepConfig.OPERATIONAL))
        values |= {"sweep": sweep, "data": self.content_hash, "folds": list(self.folds)}
        return json.loads(json.dumps(values))

    def trial(self, number: int) -> Path:
        """Where a trial lies."""
        return self.folder / "trials" / f"{number:05d}"

    def write_trial(self, number: int, folder: Path, given: dict[str, Any]) -> None:
        """Put a trial's recipe and how it runs into its folder, and pin it to the dataset that all trials read.

        Raises:
            UserError: The values make no valid recipe.
        """
        own = self.recipe.model_copy(update={"run_dir": str(folder)})
        made = varied(own, self.config.space, given)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / pin.NAME).is_file():
            atomic.write(folder / pin.NAME, (self.shared / pin.NAME).read_bytes())
        about = {
            "number": number,
            "values": given,
            "recipe": made.dump(),
            "objectives": [one.model_dump() for one in self.config.objectives],
            "race": race(self.config, self.folds, number),
            "alone": is_alone(made, self.config),
        }
        write_json(folder / TRIAL, about)

    def so_far(self, number: int, folder: Path) -> dict[int, float]:
        """Step -> value of a running trial, as its pruner compares them."""
        if self.config.pruner.by == "steps":
            own = self.recipe.model_copy(update={"run_dir": str(folder)})
            return steps_so_far(own, self.config.objectives[0], self.folds[0])
        found = folds_so_far(folder)
        if self.config.pruner.kind == "wilcoxon":
            return {self.folds.index(fold): value for fold, value in found}
        return {i + 1: float(np.mean([value for _, value in found[: i + 1]])) for i in range(len(found))}

    def most(self) -> int:
        """Folds or steps of a whole trial, as its pruner counts them; 1 where nothing is pruned.

        Raises:
            UserError: Steps are to be compared, and a trial has several trainings or no evaluation on the way.
        """
        pruner, name = self.config.pruner, self.config.objectives[0].model
        if pruner.kind == "none":
            return 1
        if pruner.by == "folds":
            return len(self.folds)
        model, where = self.recipe.models[name], f"{self.recipe.name}: sweep.pruner.by"
        seeds = self.recipe.seeds_of(name)
        if len(self.folds) > 1 or len(seeds) > 1:
            raise UserError(
                f"steps are compared in one training, and a trial has {len(self.folds)} folds x {len(seeds)} seeds",
                where=where,
                hint="sweep.folds=[NAME] and one seed, or sweep.pruner.by=folds",
            )
        if model.train is None or model.train.evaluate_every is None or model.train.steps is None:
            raise UserError(
                f"{name} is evaluated at its end alone, or counts in epochs, so there are no steps to prune at",
                where=where,
                hint=f"set models.{name}.train.steps and evaluate_every, or sweep.pruner.by=folds",
            )
        return model.train.steps


def race(config: SweepConfig, folds: Sequence[str], number: int) -> list[str]:
    """Folds in the order in which a trial runs them one after the other; empty where it runs them together.

    Pairs of folds are compared by the Wilcoxon pruner, so each trial has an order of its own and no fold decides most;
    the others compare means over the first folds, which must be the same ones.
    """
    if config.pruner.kind == "none" or config.pruner.by != "folds":
        return []
    if config.pruner.kind != "wilcoxon":
        return list(folds)
    order = np.random.default_rng([config.sampler.seed, number]).permutation(len(folds))
    return [folds[int(i)] for i in order]


def is_alone(recipe: Recipe, config: SweepConfig) -> bool:
    """Whether a trial does one thing after the other in its own process: no training has several workers, and what it was
    given holds one task. Else it starts a Ray of its own inside what it was given."""
    want, task = config.resources, recipe.cluster
    at_once = want.cpus / task.cpus_per_task
    if task.gpus_per_task:
        at_once = min(at_once, want.gpus / task.gpus_per_task)
    many = any(model.train is not None and model.train.workers > 1 for model in recipe.models.values())
    return at_once < 2 and not many
