"""What one training takes from the models below it: targets, projectors and scales for them, languages, and whom they heard."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ser import exposure, online
from ser.job import Job, below, directory, text_facts
from ser.loss import Languages
from ser.models import SERModel, load_meta
from ser.models.projectors import Projectors
from ser.normalising import NORMALISATION_ROWS
from ser.produce import teacher_store
from ser.recipe import ModelRecipe
from ser.setting import Setting, restricted
from ser.sources import CrossFitted, Permuted, parts_of, refuse_heard
from shards.errors import UserError
from shards.targets import PRESENT, TargetSource


def source_of(setting: Setting, job: Job, name: str, rows: np.ndarray) -> TargetSource:
    """Targets of teacher `name` for this training: stored ones, or those of the live teacher."""
    recipe = setting.recipe
    teacher = recipe.models[name]
    at = below(recipe, job, name)
    seed, fold = at.seed, setting.folds[at.fold]
    opened: Any = teacher_store if recipe.targets.source == "stored" else partial(online.ask, seed=job.seed)
    source: Any = opened(setting, at)
    if teacher.cross_fit:
        copies = [opened(setting, Job(at.fold, name, seed, part=k)) for k in range(teacher.cross_fit)]
        source = CrossFitted(source, copies, parts_of(setting.dataset, fold.train, teacher.cross_fit, seed))
    if recipe.models[job.model].permute_targets:
        source = Permuted(source, rows, job.seed)
    return source


def projectors_for(model: SERModel, entry: Any, sources: dict[str, TargetSource]) -> Projectors | None:
    sizes = {}
    for term in entry.objective:
        if term.loss == "embedding":
            output = next(o for o in sources[term.teacher].spec.outputs if o.name == "embedding")
            if term.projector == "linear":
                sizes[term.teacher] = output.shape[0]
            elif output.shape[0] != model.embedding_size:
                raise UserError(
                    f"the embedding of {term.teacher} has {output.shape[0]} numbers, the student's "
                    f"{model.embedding_size}",
                    where="objective",
                    hint="`projector: none` needs embeddings of one size; leave it out, or make the sizes equal",
                )
    return Projectors(model.embedding_size, sizes) if sizes else None


def embedding_scales(
    setting: Setting, entry: ModelRecipe, sources: Mapping[str, TargetSource], rows: np.ndarray
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and deviation of the embeddings that terms standardise, over (a sample of) the training rows."""
    chosen = np.sort(rows)[:: max(1, len(rows) // NORMALISATION_ROWS)]
    scales = {}
    for term in entry.objective:
        if term.loss == "embedding" and term.standardise:
            source = sources[term.sources[0]]
            views = np.full(len(chosen), setting.train_views[0], np.int64)
            present = source.state(chosen, views) == PRESENT
            values = np.asarray(source.read(chosen, views)["embedding"], np.float64)[present]
            mean, deviation = values.mean(0), np.maximum(values.std(0), 1e-6)
            scales[term.sources[0]] = (torch.from_numpy(mean).float(), torch.from_numpy(deviation).float())
    return scales


def languages_of(setting: Setting, entry: ModelRecipe, rows: np.ndarray) -> Languages | None:
    """Languages of all rows and of the teachers of terms that weigh by language; None without such a term.

    Raises:
        UserError: Training rows of a language that none of the term's teachers speaks, or of none that is known.
    """
    terms = [term for term in entry.objective if term.weights == "language"]
    if not terms:
        return None
    dataset, models = setting.dataset, setting.recipe.models
    code = {name: i for i, name in enumerate(dataset.languages)}
    spoken = {name: code.get(models[name].rows["language"][0], -2) for term in terms for name in term.sources}
    of_row = np.asarray(dataset.language).astype(np.int64)
    for term in terms:
        lost = np.setdiff1d(np.unique(of_row[rows]), [spoken[name] for name in term.sources])
        if len(lost):
            told = ", ".join(dataset.languages[c] if c >= 0 else "no known language" for c in lost)
            raise UserError(
                f"weights language: no teacher for {int(np.isin(of_row[rows], lost).sum())} training utterances of {told}",
                where=f"{setting.recipe.name}: {term.name}",
                hint="name a teacher of that language, take weights cosine or uniform, or restrict the model's `rows`",
            )
    return Languages(of_row, spoken)


def model_directory(setting: Setting, job: Job) -> Any:
    """Where a finished training's model lies."""
    return directory(setting.recipe, job) / "model"


def metas_of(setting: Setting, job: Job) -> dict[str, dict[str, Any]]:
    """`meta` of every model that a training builds on: teachers and components by name, and weights to start from."""
    entry = setting.recipe.models[job.model]
    found = {
        name: load_meta(model_directory(setting, below(setting.recipe, job, name))) for name in entry.needs
    }
    if entry.train is not None and entry.train.init_from:
        found[f"init_from {entry.train.init_from}"] = load_meta(entry.train.init_from)
    return found


def exposure_of(setting: Setting, job: Job, rows: np.ndarray, model: SERModel) -> exposure.Exposure:
    """What the model hears, closed over its teachers; refused when a fold leaks through them."""
    recipe, dataset, whole = setting.recipe, setting.dataset, setting.folds[job.fold]
    fold = restricted(setting, whole, job.model)
    # What answers as it comes was fitted and chosen elsewhere: its name stands among the unknown.
    ready = recipe.models[job.model].ready
    chosen_on = fold.dev if len(rows) and not ready else fold.dev[:0]
    own = exposure.Exposure(
        fit=exposure.of_rows(dataset, rows[:0] if ready else rows),
        select=exposure.of_rows(dataset, chosen_on),
        # A recogniser's text is an answer of a model that was fitted elsewhere.
        unknown=(*model.hub_names, *text_facts(setting, job).get("text", {})),
    )
    teachers = {}
    for name, meta in metas_of(setting, job).items():
        # Weights to start from have heard what they have heard, whoever trained them.
        known = meta.get("exposure")
        teachers[name] = (
            exposure.Exposure(unknown=(name.removeprefix("init_from "),))
            if known is None
            else exposure.Exposure.from_json(known)
        )
    exposure.check_student(
        dataset, fold.test, fold.dev, own, teachers, setting.protocol.strictness, recipe.allow_unknown,
        fold=job.fold, model=job.model,
    )  # fmt: skip
    heard = exposure.closed(own, teachers)
    if job.part is not None:
        parts = parts_of(dataset, whole.train, recipe.models[job.model].cross_fit, job.seed)
        refuse_heard(dataset, np.flatnonzero(parts == job.part), heard, str(job))
    return heard
