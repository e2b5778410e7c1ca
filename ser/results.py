"""Answers of a recipe's finished trainings, lined up row by row so that models can be compared.

Guarantees: every test utterance of every fold is there exactly once a seed, in the same order for every model, or the
training is refused by name; a training that is missing or was made for another recipe is never read.
Gives up: a seed that is not finished on all folds takes no part (it is named).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser.events import read as read_events
from ser.finish import read_meta, read_predictions
from ser.infer import Answers
from ser.job import Job, directory, finished
from ser.score import settle
from ser.setting import Setting
from shards.errors import UserError
from shards.targets import NO_INPUT, PRESENT, QUARANTINED

ANSWERED, UNREADABLE = PRESENT, QUARANTINED
__all__ = ["ANSWERED", "NO_INPUT", "UNREADABLE", "Model", "System", "Training", "collect", "voices"]


@dataclass(frozen=True)
class Training:
    """One finished training.

    Attributes:
        job: Which.
        folder: Its directory.
        facts: Its model.json.
        events: Its events.
    """

    job: Job
    folder: Path
    facts: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def meta(self) -> dict[str, Any]:
        return self.facts["meta"]


@dataclass(frozen=True)
class System:
    """A model's answers for one split over all folds and seeds.

    Attributes:
        rows: (n,) int64 dataset rows, fold after fold, ascending inside a fold.
        fold: (n,) int64 number of the row's fold.
        probabilities: (S, n, K) float64, or None; uniform where the model gave no answer.
        decided: (S, n) int64 class of highest probability, -1 where there is no answer; None without classes.
        dimensions: (S, n, 3) float64, or None; 0.5, the middle of the scale, where there is no answer.
        state: (S, n) uint8: 1 answered, 2 no input, 3 not readable.
    """

    rows: np.ndarray
    fold: np.ndarray
    probabilities: np.ndarray | None
    decided: np.ndarray | None
    dimensions: np.ndarray | None
    state: np.ndarray

    def part(self, rows: np.ndarray, seeds: Sequence[int] | slice = slice(None)) -> "System":
        """The same for some positions (or a bool mask) and seeds."""

        def cut(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[seeds][:, rows]

        return System(
            self.rows[rows],
            self.fold[rows],
            cut(self.probabilities),
            cut(self.decided),
            cut(self.dimensions),
            self.state[seeds][:, rows],
        )


@dataclass(frozen=True)
class Model:
    """What is finished of one model of the recipe.

    Attributes:
        name: In the recipe.
        seeds: Seeds that are finished on every fold.
        trainings: Those, by (fold, seed).
        dev, test: Their answers; dev is None where the protocol has none.
        missing: Trainings that the recipe asks for and that are not there.
    """

    name: str
    seeds: list[int]
    trainings: dict[tuple[str, int], Training]
    dev: System | None
    test: System
    missing: list[str]


def collect(setting: Setting) -> tuple[dict[str, Model], dict[str, list[str]]]:
    """Every model with at least one seed finished on all folds, and for the others what is missing.

    Raises:
        UserError: No model is finished, or a training's predictions are not those of its fold.
    """
    found: dict[str, Model] = {}
    incomplete: dict[str, list[str]] = {}
    for name, entry in setting.recipe.models.items():
        if entry.role == "encoder":
            continue  # it answers nothing by itself
        seeds, missing = [], []
        for seed in setting.recipe.seeds_of(name):
            lost = [
                job for job in (Job(fold, name, seed) for fold in setting.folds) if not finished(setting, job)
            ]
            missing += map(str, lost)
            if not lost:
                seeds.append(seed)
        if seeds:
            found[name] = _model(setting, name, seeds, missing)
        else:
            incomplete[name] = missing
    if not found:
        raise UserError(
            "no model of this recipe is finished on all its folds",
            where=str(setting.recipe.directory),
            hint=f"ser run {setting.recipe.name}",
        )
    return found, incomplete


def _model(setting: Setting, name: str, seeds: list[int], missing: list[str]) -> Model:
    trainings = {}
    for fold in setting.folds:
        for seed in seeds:
            job = Job(fold, name, seed)
            folder = directory(setting.recipe, job)
            trainings[fold, seed] = Training(
                job, folder, read_meta(folder), read_events(folder / "events.jsonl")
            )
    test = _system(setting, trainings, seeds, "test")
    dev = _system(setting, trainings, seeds, "dev")
    return Model(name, seeds, trainings, dev if len(dev.rows) else None, test, missing)


def under(setting: Setting, model: Model, file: str) -> System:
    """A model's answers for the test rows from other files of its trainings (`ser.conditions`)."""
    return _system(setting, model.trainings, model.seeds, "test", file)


def _system(
    setting: Setting,
    trainings: dict[tuple[str, int], Training],
    seeds: list[int],
    split: str,
    file: str = "predictions.parquet",
) -> System:
    """Answers of all seeds over all folds, in the order of the folds' rows."""
    rows = [getattr(fold, split) for fold in setting.folds.values()]
    number = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    by_seed = []
    for seed in seeds:
        parts = []
        for fold, wanted in zip(setting.folds, rows, strict=True):
            path = trainings[fold, seed].folder / file
            parts.append(_aligned(read_predictions(path, split), wanted, path))
        by_seed.append(parts)
    state = np.stack([np.concatenate([part.state for part in parts]) for parts in by_seed])
    logits = _stacked(by_seed, "logits")
    dimensions = _stacked(by_seed, "dimensions")
    p, decided, dimensions = settle(logits, dimensions, state)
    return System(np.concatenate(rows), number, p, decided, dimensions, state)


def _aligned(answers: Answers, wanted: np.ndarray, path: Path) -> Answers:
    """Answers in ascending order of rows, which must be exactly the wanted ones."""
    order = np.argsort(answers.rows, kind="stable")
    if not np.array_equal(answers.rows[order], wanted):
        raise UserError(
            f"{len(answers.rows)} predictions ({len(np.unique(answers.rows))} utterances) where the fold has "
            f"{len(wanted)}: not every utterance once",
            where=str(path),
            hint="delete this training's folder and run the recipe again",
        )

    def take(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[order]

    return Answers(
        wanted,
        take(answers.logits),
        take(answers.dimensions),
        None,
        answers.state[order],
        answers.quarantined,
    )


def _stacked(by_seed: list[list[Answers]], name: str) -> np.ndarray | None:
    """(S, n, width) of one output; None where some fold or seed has none (an empty split aside)."""
    values = [[getattr(part, name) for part in parts if len(part.rows)] for parts in by_seed]
    if not values[0] or any(value is None for parts in values for value in parts):
        return None
    return np.stack([np.concatenate(parts) for parts in values])


def voices(setting: Setting, rows: np.ndarray) -> np.ndarray:
    """(n,) names of who speaks: the speaker, or the recording or key where that is unknown."""
    dataset = setting.dataset
    speaker, recording = np.asarray(dataset.speaker)[rows], np.asarray(dataset.recording)[rows]
    speakers, recordings = list(dataset.speakers), list(dataset.recordings)
    names = [
        speakers[s] if s >= 0 else f"recording {recordings[r]}" if r >= 0 else ""
        for s, r in zip(speaker, recording, strict=True)
    ]
    bare = [i for i, name in enumerate(names) if not name]
    for i, key in zip(bare, dataset.keys(rows[bare]) if bare else [], strict=True):
        names[i] = f"key {key}"
    return np.array(names, dtype=object)
