"""Evaluation of a recipe: every finished model scored, compared and described, written whole to `report.json`.

Guarantees: every test utterance counts once in every model and seed; numbers carry their interval or the reason why
there is none; what is not finished is named, not skipped in silence. JSON holds null where a number is undefined.
Gives up: speeds are measured once for the same weights and processor, and then kept.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ser import composite, conditions, facts, passes, scoring, subsets
from ser.counting import steps
from ser.job import below, directory
from ser.layout import check_layout
from ser.models import load
from ser.models.config import ProbeConfig
from ser.models.probe import Probe
from ser.recipe import Comparison
from ser.references import OWN, Reference, ceilings_of, references, source_of, test_set
from ser.results import Model, collect, voices
from ser.setting import Setting
from ser.speed import cpu, real_time_factor
from ser.truth import field
from shards import atomic
from shards.errors import UserError

SCHEMA = 1
MOST_ITEMS = 20


def evaluate(setting: Setting, progress: Callable[[int, int], object] | None = None) -> dict[str, Any]:
    """Score every finished model of the recipe and write `<run>/report.json`.

    Args:
        progress: Called with (parts done, parts in all): a part is a model, a composite or a comparison.

    Returns:
        What was written. `models` by name (their order is `order`); scores stand under the reference labels they are
        against: "labels" are the protocol's own, others as the recipe's `report.references` names them.

    Raises:
        UserError: Nothing is finished, a comparison names no model or metric, predictions that do not fit their fold.
    """
    recipe, protocol = setting.recipe, setting.protocol
    _check(setting)
    models, incomplete = collect(setting)
    path = recipe.directory / "report.json"
    speeds = _kept_speeds(path)
    truths = references(setting)
    any_model = next(iter(models.values()))
    speakers = voices(setting, any_model.test.rows)
    mixed, lost = composite.composites(setting, models)
    compared = recipe.report.compare
    step = steps(progress, len(models) + len(mixed) + len(compared))
    told = {name: step(describe(setting, models, name, truths, speakers, speeds)) for name in models}
    for name, model in mixed.items():
        more = composite.describe(setting, models, name, told)
        told[name] = more | _results(setting, model, truths, speakers) | {"source": source_of(more["inputs"])}
        step(name)
    incomplete |= lost
    report = {
        "schema": SCHEMA,
        "name": recipe.name,
        "about": recipe.about,
        "protocol": protocol.model_dump(mode="json"),
        "headline": headline(setting),
        "folds": facts.folds(setting),
        "data": facts.data(setting),
        "classes": setting.classes,
        "dimensions": list(protocol.dimensions),
        "views": {"count": setting.policy.count, "policy": recipe.views},
        "test": test_set(setting, any_model, truths, speakers),
        "ceilings": ceilings_of(setting),
        "order": list(told),
        "targets": passes.told(setting, models),
        "models": told,
        "incomplete": incomplete,
        "repeated": _repeated(setting, any_model),
        "comparisons": [
            x for row in compared for x in step(_compared(row, models | mixed, truths, speakers))
        ],
        "conditions": conditions.told(setting, models, truths[OWN], speakers),
        "encoders": facts.encoders(setting),
        "findings": [_finding(finding) for finding in facts.findings(setting, models)],
        "environment": _read(recipe.directory / "environment.json"),
        "recipe": recipe.dump(),
    }
    report = plain(report)
    _write(path, report)
    return report


def headline(setting: Setting) -> str:
    """The metric that stands first: the one that chooses checkpoints, where it is one that can be compared."""
    metric = setting.protocol.select_metric
    if metric in scoring.COMPARABLE:
        return metric
    return "ua" if setting.classes else "ccc"


def describe(
    setting: Setting,
    models: dict[str, Model],
    name: str,
    truths: dict[str, Any],
    speakers: np.ndarray,
    speeds: dict[tuple[str, str], dict[str, Any]],
) -> dict[str, Any]:
    """Everything that the report says of one model."""
    model, entry = models[name], setting.recipe.models[name]
    first = next(iter(model.trainings.values()))
    train = entry.train.model_dump(mode="json") if entry.train is not None else None
    return {
        "role": entry.role,
        "layer_shares": layer_shares(setting, model),
        "kind": first.facts["config"]["kind"],
        "inputs": first.facts["inputs"],
        "source": source_of(first.facts["inputs"]),
        "needs": list(entry.needs),
        "data": entry.data if entry.train is not None else None,
        "permuted": entry.permute_targets,
        "label_from": entry.label_from,
        "labelled": entry.labelled,
        "objective": [_term(term) for term in entry.objective],
        "train": train,
        "parameters": first.facts["parameters"]["total"],
        "trainable": first.facts["parameters"]["trainable"],
        "encoder_parameters": {n: e["parameters"] for n, e in first.meta.get("encoders", {}).items()},
        "bytes": sum((first.folder / "model" / file).stat().st_size for file in first.facts["files"]),
        "speed": _speed(setting, first, model, speeds),
        "exposure": facts.exposure(setting, model),
        "licences": facts.licences(setting, models, name),
        **_results(setting, model, truths, speakers),
        "sureness": facts.sureness(setting, model),
        "trainings": [facts.training(one) for one in model.trainings.values()],
        "curves": [facts.curve(one, setting.protocol.select_metric) for one in model.trainings.values()],
    }


def _results(
    setting: Setting, model: Model, truths: dict[str, Reference], speakers: np.ndarray
) -> dict[str, Any]:
    """What the answers of a model or composite are worth."""
    own = truths[OWN]
    return {
        "seeds": model.seeds,
        "missing": model.missing,
        "unanswered": scoring.unanswered(model.test),
        "scores": {
            reference: _scores(setting, model, truth.of(model.test.rows), speakers)
            for reference, truth in truths.items()
        },
        "dev": _dev(model, own),
        "calibration": scoring.calibration(own.of(model.test.rows), model.test),
    }


def _repeated(setting: Setting, model: Model) -> list[dict[str, Any]]:
    """Test lines that training has read, where the recipe asks for subsets."""
    if not setting.recipe.report.subsets:
        return []
    return subsets.repetition(setting, model.test, subsets.masks(setting, model.test))


def layer_shares(setting: Setting, model: Model) -> dict[str, list[float]]:
    """Question -> softmax weights over the encoder's states, the mean over folds and seeds; empty for other models."""
    config = setting.recipe.models[model.name].model
    if not isinstance(config, ProbeConfig) or config.layer != "weighted":
        return {}
    found = []
    for training in model.trainings.values():
        probe, _ = load(training.folder / "model")
        assert isinstance(probe, Probe)
        found.append(probe.shares())
    return {question: np.mean([one[question] for one in found], 0).tolist() for question in found[0]}


def _finding(finding: Any) -> dict[str, Any]:
    """A finding with the first of its items: transcripts and hashes by the thousand help nobody."""
    return {**asdict(finding), "items": finding.items[:MOST_ITEMS], "item_count": len(finding.items)}


def _term(term: Any) -> dict[str, Any]:
    """A term of an objective: what matters of it to a reader."""
    kept = {"loss": term.loss, "weight": term.weight, "teachers": list(term.sources)}
    kept |= {"memory": term.memory} if term.memory else {}
    return kept | ({"temperature": term.temperature} if term.loss in ("kl", "multi_kl") else {})


def _scores(setting: Setting, model: Model, truth: scoring.Truth, speakers: np.ndarray) -> dict[str, Any]:
    """Scores of one model against one set of labels."""
    system, dataset = model.test, setting.dataset
    per_fold = scoring.by_fold(truth, system)
    languages, corpora = list(dataset.languages), list(dataset.corpora)
    names = {
        "language": [languages[c] if c >= 0 else None for c in np.asarray(dataset.language)[system.rows]],
        "corpus": [corpora[c] for c in np.asarray(dataset.corpus)[system.rows]],
        "gender": field(dataset, "gender", system.rows),
    }
    wanted = (headline(setting), "ua", "ccc", *setting.recipe.report.group_metrics)
    metrics = [m for m in dict.fromkeys(wanted) if m in scoring.COMPARABLE]
    return {
        "pooled": scoring.pooled(truth, system, speakers),
        "mean_over_folds": scoring.mean_over_folds(per_fold),
        "cells": [
            {
                "fold": fold,
                "seed": seed,
                "utterances": int((system.fold == f).sum()),
                **{n: v[s] for n, v in per_fold[f].items()},
            }
            for f, fold in enumerate(setting.folds)
            for s, seed in enumerate(model.seeds)
        ],
        "confusion": scoring.confusions(truth, system),
        "groups": {
            by: {
                metric: found
                for metric in metrics
                if (found := scoring.groups(metric, truth, system, speakers, names[by]))
            }
            for by in setting.recipe.report.groups
        },
        "signs": scoring.signs(truth, system, speakers) if setting.recipe.report.ceilings else {},
        "subsets": subsets.scores(subsets.masks(setting, system), truth, system, speakers),
    }


def _dev(model: Model, truth: Reference) -> dict[str, float] | None:
    """Dev scores over all folds, mean over seeds: what checkpoints were chosen by, so no estimate of anything."""
    if model.dev is None:
        return None
    return {
        name: float(each.mean()) for name, each in scoring.values(truth.of(model.dev.rows), model.dev).items()
    }


def _compared(
    row: Comparison, models: dict[str, Model], truths: dict[str, Reference], speakers: np.ndarray
) -> list[dict[str, Any]]:
    out = []
    for reference, truth in truths.items():
        told = {**row.model_dump(), "against": reference}
        lost = [name for name in (row.system, row.reference) if name not in models]
        if lost:
            out.append({**told, "result": None, "reason": f"not finished: {', '.join(lost)}"})
            continue
        first, second = models[row.system], models[row.reference]
        found = scoring.compare(row.metric, truth.of(first.test.rows), first.test, second.test, speakers)
        reason = "" if found else f"one of the two has no {row.metric}, or the labels have none"
        out.append({**told, "result": found, "reason": reason})
    return out


def _check(setting: Setting) -> None:
    """Comparisons must name models and metrics; the ceilings need the generated corpus's classes."""
    recipe = setting.recipe
    for name, mixed in recipe.report.composites.items():
        lost = sorted(set(mixed.models.values()) - set(recipe.models))
        if lost or name in recipe.models:
            raise UserError(
                f"report.composites.{name} " + (f"names {', '.join(lost)}, no model of this recipe" if lost else
                                                "has the name of a model"),
                where=recipe.name,
                hint=f"models: {', '.join(recipe.models)}",
            )  # fmt: skip
    strange = sorted(set(recipe.report.group_metrics) - set(scoring.COMPARABLE))
    if strange:
        raise UserError(
            f"report.group_metrics: no metric {', '.join(strange)}", where=recipe.name,
            hint=f"metrics: {', '.join(scoring.COMPARABLE)}",
        )  # fmt: skip
    known = [*recipe.models, *recipe.report.composites]
    check_layout(recipe, scoring.COMPARABLE)
    for row in recipe.report.compare:
        for name in (row.system, row.reference):
            if name not in known:
                raise UserError(
                    f"report.compare names {name!r}, no model of this recipe", where=recipe.name,
                    hint=f"models: {', '.join(known)}",
                )  # fmt: skip
        if row.metric not in scoring.COMPARABLE:
            raise UserError(
                f"report.compare: {row.metric!r} cannot be compared", where=_name(row),
                hint=f"metrics: {', '.join(scoring.COMPARABLE)}",
            )  # fmt: skip
    strange = set(setting.classes) - {"angry", "happy", "sad", "calm"}
    if strange and (recipe.report.ceilings or any(r.metric in scoring.SIGNS for r in recipe.report.compare)):
        raise UserError(
            f"ceilings and signs are known for the classes angry, happy, sad, calm, not for {', '.join(sorted(strange))}",
            where=recipe.name,
            hint="report.ceilings: false",
        )


def _name(row: Comparison) -> str:
    return f"{row.system} - {row.reference}"


def _speed(
    setting: Setting, first: Any, model: Model, kept: dict[tuple[str, str], dict[str, Any]]
) -> dict[str, Any]:
    """Measured, or taken from the last report where weights and processor are the same."""
    weights = first.facts["files"]["model.safetensors"]
    found = kept.get((weights, cpu()))
    if found is None or "macs" not in found:
        config, below_it = setting.recipe.models[model.name].model, None
        if isinstance(config, ProbeConfig):
            below_it = directory(setting.recipe, below(setting.recipe, first.job, config.encoder)) / "model"
        found = real_time_factor(setting, first.folder / "model", model.test.rows, below_it)
    return {**found, "weights": weights}


def _kept_speeds(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    old = _read(path) or {}
    if old.get("schema") != SCHEMA:
        return {}
    speeds = [entry["speed"] for entry in old["models"].values()]
    return {(speed["weights"], speed["cpu"]): speed for speed in speeds}


def _write(path: Path, report: dict[str, Any]) -> None:
    """Write JSON whole; keys keep their order, which is that of models, classes and references."""
    atomic.write(path, json.dumps(report, indent=1, allow_nan=False) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def plain(value: Any) -> Any:
    """Plain JSON values: numpy numbers unwrapped, undefined numbers null, keys as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
