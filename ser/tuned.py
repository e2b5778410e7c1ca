"""What a sweep's trials are judged by, and what choosing among them means for the exposure of what is chosen.

Guarantees: a trial is judged on dev rows alone; its answers for test rows are never scored. Whoever stands in those dev rows is
`select` exposure: `nested` where each fold chose for itself without its own test speakers, `outside` where they are tested in no
fold, else `non-nested`.
Gives up: the latency of a model is measured beside whatever else the machine does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser.events import read as read_events
from ser.exposure import of_rows, tuning
from ser.job import Job, directory
from ser.recipe import Recipe, TunedOn
from ser.results import Model, collect
from ser.scoring import Truth, values
from ser.setting import Setting, open_setting, restricted
from ser.speed import real_time_factor
from ser.sweep import QUALITY, Objective, SweepConfig
from shards.errors import UserError

_WORST = ("outside", "nested", "non-nested")


def judged(setting: Setting, objectives: Sequence[Objective]) -> list[float]:
    """Values of the objectives in a run whose trainings are finished.

    Raises:
        UserError: A model is not finished, or has no such score on the dev rows.
    """
    models, incomplete = collect(setting)
    out = []
    for one in objectives:
        if one.model not in models:
            raise UserError(
                f"{one.model} is not finished, so it cannot be judged",
                where=str(setting.recipe.directory),
                hint=f"missing: {', '.join(incomplete.get(one.model, [])[:3])}",
            )
        model = models[one.model]
        out.append(
            score(setting, model, one.metric) if one.metric in QUALITY else cost(setting, model, one.metric)
        )
    return out


def score(setting: Setting, model: Model, metric: str) -> float:
    """A score over all dev rows of the setting's folds, the mean over seeds.

    Raises:
        UserError: There are no dev rows, or no answers or labels of the kind.
    """
    where = f"{setting.recipe.name}: sweep.objectives, {model.name} {metric}"
    if model.dev is None:
        raise UserError(
            f"a sweep is judged on dev rows, and protocol {setting.protocol.name} has none",
            where=where,
            hint="give the protocol `dev`, for example dev: {by: speaker, count: 1}",
        )
    found = values(Truth.of(setting.labels, model.dev.rows), model.dev)
    if metric not in found:
        raise UserError(
            f"{model.name} has no {metric} on the dev rows: it does not answer it, or nothing there is labelled so",
            where=where,
            hint=f"it has {', '.join(sorted(set(found) & set(QUALITY)))}",
        )
    return float(found[metric].mean())


def cost(setting: Setting, model: Model, metric: str) -> float:
    """What the model of the first fold and seed takes: parameters, bytes, macs or latency."""
    first = next(iter(model.trainings.values()))
    if metric == "parameters":
        return float(first.facts["parameters"]["total"])
    if metric == "bytes":
        return float(sum((first.folder / "model" / file).stat().st_size for file in first.facts["files"]))
    rows = model.test.rows if model.dev is None else model.dev.rows
    found = real_time_factor(setting, first.folder / "model", rows)
    return float(found["macs" if metric == "macs" else "factor"])


def steps_so_far(recipe: Recipe, one: Objective, fold: str) -> dict[int, float]:
    """Step -> dev metric of the one training that is judged, as far as it has come."""
    job = Job(fold, one.model, recipe.seeds_of(one.model)[0])
    path = directory(recipe, job) / "events.jsonl"
    found = read_events(path) if path.is_file() else []
    return {
        e["step"] + 1: e[one.metric]
        for e in found
        if e.get("kind") == "dev" and e.get(one.metric) is not None
    }


def folds_so_far(folder: Path) -> list[tuple[str, float]]:
    """(fold, its own score) of those that a racing trial has finished, in its order; a torn last line is not read."""
    path = folder / "folds.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(one["fold"], one["value"]) for one in found]


def score_of_fold(recipe: Recipe, one: Objective) -> float:
    """An objective's score on the dev rows of a run's only fold."""
    return judged(open_setting(recipe), [one])[0]


def selected_on(setting: Setting, models: Sequence[str], folds: Mapping[str, Any]) -> frozenset[str]:
    """Entries of the dev rows of these folds, as the models are chosen by them."""
    rows = [restricted(setting, fold, name).dev for fold in folds.values() for name in models]
    return of_rows(setting.dataset, np.unique(np.concatenate(rows)))


def declared(setting: Setting, sweep: SweepConfig, tuned: Sequence[str]) -> TunedOn:
    """What a recipe must declare whose settings were chosen by a sweep on the folds `tuned`, all together.

    The recipe's own declaration, if it has one, is kept: the worse of both holds.
    """
    models = sorted({one.model for one in sweep.objectives})
    heard = selected_on(setting, models, {name: setting.folds[name] for name in tuned})
    tests = {name: of_rows(setting.dataset, fold.test) for name, fold in setting.folds.items()}
    found = tuning(dict.fromkeys(tests, heard), tests)
    # Every fold was given the same settings, so none of them chose for itself.
    selection = "outside" if found in ("outside", "untuned") else "non-nested"
    names = ", ".join(one.title for one in sweep.objectives)
    data = f"a sweep judged by {names} on the dev speakers of {_folds(tuned)}"
    before = setting.recipe.tuned_on
    if before is not None:
        selection = max(selection, before.selection, key=_WORST.index)
        data = f"{before.data}; then {data}"
    speakers = sorted({*(before.speakers if before else ()), *_named(setting, heard)})
    return TunedOn.model_validate({"selection": selection, "data": data, "speakers": speakers})


def _named(setting: Setting, heard: frozenset[str]) -> frozenset[str]:
    """Entries that name a speaker; recordings and keys of unknown speakers are told in words alone."""
    return heard & frozenset(setting.dataset.speakers)


def _folds(names: Sequence[str]) -> str:
    return f"fold {names[0]}" if len(names) == 1 else f"{len(names)} folds"
