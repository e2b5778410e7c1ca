"""`ser sweep RECIPE`: what all trials share is made once, then trials run until all that were asked for have ended.

Everything lies in `<run>/sweep`: `shared` (dataset's generation, features, models that the space does not touch, their targets),
`trials/NUMBER`, `study.journal`, `best.yaml`, `sweep.html`. The same command goes on where it was killed.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from launch.display import Display
from launch.run import run
from launch.trial import TRIAL
from ser import pin
from ser.checkpoint import write_json
from ser.evaluate import plain
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.space import check_space, told, touched, varied
from ser.sweep import SweepConfig
from ser.tuned import declared, folds_so_far, steps_so_far
from shards import atomic
from shards.errors import UserError
from shards.lock import hold

ENTRY = "launch.trial:main"
# Slow to import; forked from, never with a GPU in use (a driver that was asked for its devices does not survive a fork).
PRELOAD = "launch.trial,ser.train,deepspeed,transformers"
UNTOLD = ("name", "about", "run_dir", "data", "cluster", "report", "reuse", "sweep")


@dataclass(frozen=True)
class Shared:
    """What all trials of a study have in common.

    Attributes:
        recipe: Of a trial, before its values are set.
        run: The run whose trainings and dataset they take.
        folds: That a trial runs, by name.
    """

    recipe: Recipe
    run: Path
    folds: tuple[str, ...]
    content_hash: str


def sweep(recipe: Recipe, display: Display) -> Path:
    """Run a recipe's sweep to its end.

    Returns:
        The sweep's page.

    Raises:
        UserError: Whatever the user can mend.
    """
    config = recipe.sweep
    if config is None:
        raise UserError(
            "this recipe has no `sweep`", where=recipe.name,
            hint="add sweep: {space: {models.NAME.train.optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}, "
            "objectives: [{model: NAME, metric: ua}]}",
        )  # fmt: skip
    check_space(recipe)
    folder = recipe.directory / "sweep"
    with ExitStack() as held:
        other = "give this one a directory of its own (run_dir=FOLDER)"
        held.enter_context(hold(folder / ".lock", "another process drives this sweep", other))
        shared = prepare(recipe, config, folder, display)
        study = _drive(recipe, config, shared, folder, display, held)
        return finish(recipe, shared, study, folder, display)


def prepare(recipe: Recipe, config: SweepConfig, folder: Path, display: Display) -> Shared:
    """Make what the trials share: the dataset, features, and all models that no value of the space changes."""
    base = recipe.model_copy(
        update={"sweep": None, "run_dir": str(folder / "shared")}
        | ({} if config.folds == "all" else {"folds": config.folds})
    )
    run(base, display, until="distill", but=touched(recipe))
    setting, every = open_setting(base), open_setting(base.model_copy(update={"folds": recipe.folds}))
    folds = tuple(setting.folds)
    tuning = declared(every, config, folds)
    if tuning.selection == "non-nested":
        display.say(
            f"settings chosen here are non-nested: dev speakers of {len(folds)} folds are tested in others; every row will say so. "
            "sweep.per=fold chooses inside each fold instead"
        )
    want = config.resources
    trial = base.model_copy(
        update={
            "reuse": [*recipe.reuse, str(folder / "shared")],
            "tuned_on": tuning,
            "allow_non_nested": recipe.allow_non_nested or tuning.selection == "non-nested",
            "cluster": recipe.cluster.model_copy(update={"address": None, "cpus": max(1, int(want.cpus))}),
        }
    )
    return Shared(trial, folder / "shared", folds, setting.dataset.content_hash)


def _drive(
    recipe: Recipe, config: SweepConfig, shared: Shared, folder: Path, display: Display, held: ExitStack
) -> Any:
    from cluster.session import Session
    from cluster.study import open_study
    from cluster.sweep import Sweep, drive

    racing = config.pruner.kind != "none" and config.pruner.by == "folds"
    most = len(shared.folds) if racing else _steps(recipe, config, shared)
    study = open_study(config, recipe.name, folder, made_for(recipe, shared), most)
    work = Sweep(
        study, config, folder / "trials", partial(write_trial, recipe, config, shared), ENTRY,
        preload="" if config.resources.gpus else PRELOAD, so_far=partial(so_far, config, shared), most=most,
        say=display.say, joined=recipe.cluster.address is not None,
    )  # fmt: skip
    if sum(t.state.is_finished() for t in study.get_trials(deepcopy=False)) < work.total:
        held.enter_context(Session(recipe.cluster.address, recipe.cluster.cpus))
        with display.bar("sweep", unit="trials") as bar:
            work.show = bar.update
            drive(work)
    return study


def made_for(recipe: Recipe, shared: Shared) -> dict[str, Any]:
    """Everything that decides what trials are and how they are judged, as JSON reads it back."""
    assert recipe.sweep is not None
    values = {key: value for key, value in recipe.dump().items() if key not in UNTOLD}
    told = recipe.sweep.model_dump(mode="json", exclude=set(SweepConfig.OPERATIONAL))
    values |= {"sweep": told, "data": shared.content_hash}
    return json.loads(json.dumps(values))


def write_trial(
    recipe: Recipe, config: SweepConfig, shared: Shared, number: int, folder: Path, given: dict
) -> None:
    """Put a trial's recipe and how it runs into its folder, and pin it to the dataset that all trials read.

    Raises:
        UserError: The values make no valid recipe.
    """
    assert recipe.sweep is not None
    made = varied(shared.recipe.model_copy(update={"run_dir": str(folder)}), config.space, given)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / pin.NAME).is_file():
        atomic.write(folder / pin.NAME, (shared.run / pin.NAME).read_bytes())
    about = {
        "number": number,
        "values": given,
        "recipe": made.dump(),
        "objectives": [one.model_dump() for one in config.objectives],
        "race": race(config, shared.folds, number),
        "alone": is_alone(made, config),
    }
    write_json(folder / TRIAL, about)


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
    return [folds[i] for i in order]


def so_far(config: SweepConfig, shared: Shared, number: int, folder: Path) -> dict[int, float]:
    """Step -> value of a running trial, as its pruner compares them."""
    if config.pruner.by == "steps":
        made = shared.recipe.model_copy(update={"run_dir": str(folder)})
        return steps_so_far(made, config.objectives[0], shared.folds[0])
    found = folds_so_far(folder)
    if config.pruner.kind == "wilcoxon":
        return {shared.folds.index(fold): value for fold, value in found}
    return {i + 1: float(np.mean([value for _, value in found[: i + 1]])) for i in range(len(found))}


def is_alone(recipe: Recipe, config: SweepConfig) -> bool:
    """Whether a trial does one thing after the other in its own process: no training has several workers, and what it was
    given holds one task. Else it starts a Ray of its own inside what it was given."""
    want, task = config.resources, recipe.cluster
    at_once = want.cpus / task.cpus_per_task
    if task.gpus_per_task:
        at_once = min(at_once, want.gpus / task.gpus_per_task)
    many = any(model.train is not None and model.train.workers > 1 for model in recipe.models.values())
    return at_once < 2 and not many


def _steps(recipe: Recipe, config: SweepConfig, shared: Shared) -> int:
    """Steps of the one training that is judged at every evaluation; 1 where nothing is pruned.

    Raises:
        UserError: There are several, or it is not evaluated on the way.
    """
    if config.pruner.kind == "none":
        return 1
    name = config.objectives[0].model
    model, where = recipe.models[name], f"{recipe.name}: sweep.pruner.by"
    if len(shared.folds) > 1 or len(recipe.seeds_of(name)) > 1:
        raise UserError(
            f"steps are compared in one training, and a trial has {len(shared.folds)} folds x {len(recipe.seeds_of(name))} seeds",
            where=where,
            hint="sweep.folds=[NAME] and one seed, or sweep.pruner.by=folds",
        )
    if model.train is None or model.train.evaluate_every is None:
        raise UserError(
            f"{name} is evaluated at its end alone, so there are no steps to prune at",
            where=where,
            hint=f"set models.{name}.train.evaluate_every, or sweep.pruner.by=folds",
        )
    return model.train.steps or 10**9


def finish(recipe: Recipe, shared: Shared, study: Any, folder: Path, display: Display) -> Path:
    """Write the best recipes and the page.

    Raises:
        UserError: No trial was completed.
    """
    from cluster.told import tell
    from ser.report.sweep import write_page

    assert recipe.sweep is not None and shared.recipe.tuned_on is not None
    found = tell(study, recipe.sweep) | {"tuning": shared.recipe.tuned_on.model_dump()}
    page = write_page(plain(found), folder)
    if not found["best"]:
        where = str(folder / "trials")
        raise UserError("no trial was completed", where=where, hint="look at log.txt in the trials' folders")
    trials = study.get_trials(deepcopy=False)
    for old in folder.glob("best*.yaml"):
        old.unlink()
    for number in found["best"]:
        name = "best.yaml" if len(found["objectives"]) == 1 else f"best-{number:05d}.yaml"
        write_best(recipe, shared, folder, trials[number], name)
        display.say(f"{folder / name}: trial {number}, {told(trials[number].params)}")
    return page


def write_best(recipe: Recipe, shared: Shared, folder: Path, trial: Any, name: str) -> None:
    """A trial's recipe over all folds, ready for `ser run`; it takes the trainings that the trial has finished."""
    config = recipe.sweep
    assert config is not None
    made = varied(shared.recipe, config.space, trial.params).model_copy(
        update={
            "name": f"{recipe.name[:50]}-best",
            "run_dir": f"{str(recipe.directory).rstrip('/')}-{Path(name).stem}",
            "folds": recipe.folds,
            "reuse": [*shared.recipe.reuse, str(folder / "trials" / f"{trial.number:05d}")],
            "cluster": recipe.cluster,
        }
    )
    head = f"# Trial {trial.number} of the sweep of {recipe.name}: {told(trial.params)}.\n"
    for one, value in zip(config.objectives, trial.values, strict=True):
        head += f"# {one.title} {value:.6g} on the dev rows it was chosen by: no estimate of anything.\n"
    atomic.write(folder / name, head + yaml.safe_dump(made.dump(), sort_keys=False))
