"""Robustness: every finished model hears the test rows once more, under named view conditions (noise, rooms, bands).

Guarantees: a condition is a view policy, so its noise is a pure function of (utterance, condition) and all models and
seeds of a fold hear the very same samples; each encoder below them hears them once; predictions are stored beside the
training that they belong to, with the hash of the condition, and are made again when either changes. Nothing is chosen
by them.

Gives up: stored features and frames, which are of other views: everything is computed from the audio. Transcripts stay
those of the clean speech. Models that hear nothing (probes of stored states, answers from files) and classical ones, which
are of the clean utterance, have no row.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser import checkpoint, scoring
from ser.finish import table_of, write_predictions
from ser.frames import attach
from ser.infer import answers_of, in_order, inference_slots
from ser.inputs import complete
from ser.job import Job, directory, finished
from ser.models import SERModel, load
from ser.recipe import Recipe
from ser.references import Reference
from ser.results import Model, under
from ser.setting import Setting, open_setting
from shards.batch import load_slot, texts
from shards.errors import UserError
from shards.loader import Needs
from shards.views import ViewPolicy

FOLDER = "conditions"
VIEW = 1
METRICS = ("ua", "ccc", "ccc_valence", "ccc_arousal", "ccc_dominance")


@dataclass(frozen=True)
class Heard:
    """One condition on one fold, and the finished trainings that have not heard it yet."""

    name: str
    fold: str
    jobs: tuple[Job, ...]


def policy_of(setting: Setting, name: str) -> ViewPolicy:
    """The condition's view policy: what the recipe says of it, on the crop that all of this run's audio has.

    Raises:
        UserError: The condition is no view policy.
    """
    values = dict(setting.recipe.report.conditions[name])
    if values.get("count", 1) != 1:
        raise UserError(
            "a condition is one view", where=f"report.conditions.{name}", hint="leave out `count`"
        )
    crop = setting.policy.to_dict()["crop"]
    return ViewPolicy.from_dict({"crop": crop, **values, "count": 1})


def file_of(name: str) -> str:
    """Where the predictions under a condition lie inside a training's folder."""
    return f"{FOLDER}/{name}.parquet"


def _is_made(folder: Path, name: str, policy: ViewPolicy) -> bool:
    mark = folder / FOLDER / f"{name}.json"
    return mark.is_file() and json.loads(mark.read_text()) == {"policy": policy.hash()}


def _hears(setting: Setting, name: str) -> bool:
    """Whether a model answers to audio (or text) that it is given."""
    entry = setting.recipe.models[name]
    deaf = entry.role == "encoder" or entry.model.kind in ("classical", "probe", "external")
    return not deaf and all(_hears(setting, part) for part in entry.components)


def due(setting: Setting) -> list[Heard]:
    """Conditions that finished trainings have not heard yet."""
    recipe, out = setting.recipe, []
    models = [name for name in recipe.models if _hears(setting, name)]
    for name in recipe.report.conditions:
        policy = policy_of(setting, name)
        for fold in setting.folds:
            jobs = [Job(fold, model, seed) for model in models for seed in recipe.seeds_of(model)]
            left = [
                job
                for job in jobs
                if finished(setting, job) and not _is_made(directory(recipe, job), name, policy)
            ]
            if left:
                out.append(Heard(name, fold, tuple(left)))
    return out


def answer(recipe: Recipe, heard: Heard) -> int:
    """`answer_under` in any process; gives the number of utterances heard."""
    setting = open_setting(recipe)
    answer_under(setting, heard)
    return len(setting.folds[heard.fold].test)


@torch.inference_mode()
def answer_under(setting: Setting, heard: Heard) -> None:
    """Answer a fold's test rows under a condition with every training at once, and store what each says."""
    torch.set_num_threads(1)
    policy, rows = policy_of(setting, heard.name), setting.folds[heard.fold].test
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {job: _model(directory(setting.recipe, job) / "model").to(device) for job in heard.jobs}
    alone = any(model.needs_equal_lengths for model in models.values())
    needs = Needs(waveform=True)
    parts: dict[Job, list] = {job: [] for job in models}
    seconds = setting.recipe.targets.slot_seconds
    for slot in inference_slots(setting.dataset, rows, policy, VIEW, seconds, alone):
        batch = load_slot(setting.dataset, slot, needs, policy).to(device)
        for job, model in models.items():
            # What one model has had computed (an encoder's frames, say) the next one finds in the batch.
            batch = complete(batch, model)
            if "text" in model.inputs:
                batch = replace(batch, text=texts(setting.dataset, model.text_from, slot.rows))
            parts[job].append(answers_of(model(batch), batch, False))
    keys = setting.dataset.keys(rows)
    for job, answers in parts.items():
        folder = directory(setting.recipe, job)
        (folder / FOLDER).mkdir(exist_ok=True)
        write_predictions(folder / file_of(heard.name), table_of(in_order(rows, answers), "test", keys))
        checkpoint.write_json(folder / FOLDER / f"{heard.name}.json", {"policy": policy.hash()})


def _model(folder: Path) -> SERModel:
    model, meta = load(folder)
    attach(model, folder, meta)
    return model.eval()


def told(
    setting: Setting, models: dict[str, Model], truth: Reference, speakers: np.ndarray
) -> dict[str, Any] | None:
    """What the report says of the conditions: policies, and model -> condition -> metric -> score with interval.

    "clean" stands first. None where the recipe asks for no condition.
    """
    recipe = setting.recipe
    if not recipe.report.conditions:
        return None
    scores: dict[str, Any] = {}
    for name, model in models.items():
        if not _hears(setting, name):
            continue
        against = truth.of(model.test.rows)
        systems = {"clean": model.test}
        systems |= {c: under(setting, model, file_of(c)) for c in recipe.report.conditions}
        scores[name] = {}
        for condition, system in systems.items():
            pooled = scoring.pooled(against, system, speakers)
            scores[name][condition] = {m: pooled[m] for m in METRICS if m in pooled}
    return {
        "names": ["clean", *recipe.report.conditions],
        "policies": recipe.report.conditions,
        "scores": scores,
    }
