"""Everything that one training needs, gathered before its first step: rows, plan, labels, targets, model, objective."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ser import exposure, online
from ser.agreement import agree, check_classes, check_dev, check_tuning, outputs
from ser.checkpoint import write_json
from ser.distributed import World
from ser.frames import frame_sizes
from ser.inputs import needs_of
from ser.job import Job, below, directory, text_facts, train_config
from ser.layers import layer_stores
from ser.loss import Languages, Objective, Supervision, Transcripts
from ser.models import SERModel, build, load, load_meta
from ser.models.config import ExternalConfig
from ser.models.fused import Fused
from ser.models.projectors import Projectors
from ser.models.speech import Speech
from ser.models.streams import with_sizes
from ser.normalising import NORMALISATION_ROWS, check_mel, fit_normalisation
from ser.produce import stores_read, teacher_store
from ser.protocol import Fold, Labels
from ser.recipe import ModelRecipe, TrainConfig
from ser.setting import Setting, restricted, supervision
from ser.sources import CrossFitted, Permuted, parts_of, refuse_heard
from ser.start import encoder_parameters, reads_text, start_encoder, text_source
from shards import law
from shards.batch import texts as transcripts_of
from shards.columns import HAS_TEXT
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import key_hash
from shards.loader import Needs
from shards.plan import Plan, PlanConfig
from shards.targets import PRESENT, TargetSource, TargetStore
from shards.views import ViewPolicy, view_samples


class Trainable(nn.Module):
    """What the optimiser moves: the model that is exported and the projectors that are not."""

    def __init__(self, model: SERModel, projectors: Projectors | None):
        super().__init__()
        self.model = model
        self.projectors = projectors

    def forward(self, batch: Any) -> Any:
        return self.model(batch)


@dataclass
class Ingredients:
    """One training, ready to start. `fold` is whole; `choosing` are the dev rows that choose, `rows` those trained on."""

    setting: Setting
    job: Job
    config: TrainConfig
    fold: Fold
    choosing: np.ndarray
    rows: np.ndarray
    plan: Plan
    total_steps: int
    needs: Needs
    features: dict[str, TargetStore]
    model: SERModel
    blank: SERModel
    trainable: Trainable
    encoder_parameters: list[nn.Parameter]
    objective: Objective
    weights: dict[str, float]
    exposure: exposure.Exposure
    licences: list[str] = field(default_factory=list)

    @property
    def dataset(self) -> Dataset:
        return self.setting.dataset

    @property
    def policy(self) -> ViewPolicy:
        return self.setting.policy

    @property
    def seed(self) -> int:
        return self.job.seed

    @property
    def dev_labels(self) -> Labels:
        return self.setting.labels

    @property
    def select_metric(self) -> str:
        return self.setting.protocol.select_metric


def gather_ingredients(setting: Setting, job: Job, world: World) -> Ingredients:
    """Open, check and build all that `ser.train` loops over.

    Raises:
        UserError: A fold that leaks through a teacher, targets that are missing or do not fit, no labelled rows.
    """
    recipe, dataset = setting.recipe, setting.dataset
    agree(recipe, setting.protocol)
    check_tuning(setting)
    entry, config = recipe.models[job.model], train_config(recipe, job)
    whole = setting.folds[job.fold]
    fold = restricted(setting, whole, job.model)
    check_dev(setting.protocol, entry, setting.labels, fold)
    labels, labelled = supervision(setting, whole, job.model, config.class_weights)
    check_classes(entry, setting.classes, labels, fold)
    rows = fold.train if entry.data == "all" else labelled
    known = np.asarray(dataset.bits) & HAS_TEXT != 0
    if entry.role == "encoder":
        # it learns from what was said, whether or not somebody has said how it felt
        rows = fold.train[known[fold.train]] if entry.objective else fold.train[:0]
    if job.part is not None:
        parts = parts_of(dataset, whole.train, entry.cross_fit, job.seed)
        rows = rows[parts[rows] != job.part]
    if len(rows) == 0 and (entry.role != "encoder" or entry.objective):
        raise UserError(
            f"no training utterance for {job}",
            where=setting.protocol.name,
            hint="an encoder learns from transcribed speech, and there is none"
            if entry.role == "encoder"
            else "check `labelled` and the fold",
        )
    check_mel(recipe, job.model)
    features = {**stores_read(setting, job), **layer_stores(setting, job)}
    sources = {name: _source(setting, job, name, rows) for name in entry.target_sources}
    model = _model(setting, job, rows, features)
    blank = copy.deepcopy(model)
    projectors = _projectors(model, entry, sources)
    trainable = Trainable(model, projectors)
    scales = embedding_scales(setting, entry, sources, rows)
    languages = languages_of(setting, entry, rows)
    transcripts = None
    if isinstance(model, Speech) and model.alphabet is not None:
        transcripts = Transcripts(known, model.alphabet)
    objective = Objective(
        entry.objective, labels, sources, projectors, config.label_smoothing, scales, languages, transcripts
    )
    needs = needs_of(model, features, sources)
    needs = needs if transcripts is None else replace(needs, text=True)
    # A pretrained encoder hears nothing here; its plan is never walked.
    plan = _plan(setting, job, config, rows if len(rows) else fold.train, labels)
    total = config.steps if config.steps is not None else plan.total_steps(config.epochs or 1)
    heard = _exposure(setting, job, rows, model)
    return Ingredients(
        setting, job, config, whole, fold.dev, rows, plan, total, needs, features, model, blank, trainable,
        encoder_parameters(model), objective,
        {name: term.weight for name, term in objective.terms.items()}, heard,
        [] if entry.ready else sorted({x for x in dataset.fields(["licence"], rows).column("licence").unique().to_pylist() if x}),
    )  # fmt: skip


def _plan(setting: Setting, job: Job, config: TrainConfig, rows: np.ndarray, labels: Supervision) -> Plan:
    dataset, policy = setting.dataset, setting.policy
    weights = None
    if config.law == "temperature":
        # rows without a class form a group of their own
        groups = law.combine(dataset.corpus[rows], dataset.language[rows], labels.classes[rows] + 1)
        weights = law.temperature(groups, config.alpha)
    plan_config = PlanConfig(
        job.seed, config.slot_seconds, config.slots, config.pool_shards, policy.count, config.jitter
    )

    def durations(r: np.ndarray, v: np.ndarray) -> np.ndarray:
        return view_samples(policy, dataset.key_hash[r], v, dataset.samples[r])

    # The shuffles know a corpus by its name: its code changes when another one is added.
    corpus: Any = _Looked(dataset.corpus, key_hash_of(dataset.corpora))
    plan = Plan(
        dataset.key_hash, dataset.samples, dataset.shard, corpus, rows, plan_config, weights, durations
    )  # fmt: skip
    plan.recall(read_begins(directory(setting.recipe, job)))
    return plan


class _Looked:
    """A column of codes seen as what they stand for, without a copy of it."""

    def __init__(self, codes: np.ndarray, meanings: np.ndarray):
        self.codes, self.meanings = codes, meanings

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.meanings[np.asarray(self.codes[rows])]


def key_hash_of(names: Sequence[str]) -> np.ndarray:
    """(n,) int64 numbers for names: they depend on the name alone."""
    return np.array([key_hash(name) & 0x7FFFFFFFFFFFFFFF for name in names], dtype=np.int64)


def keep_begins(folder: Path, plan: Plan) -> None:
    """Keep where the plan's epochs begin beside its checkpoints, so that a restart need not count them again."""
    if plan.begins != read_begins(folder):
        write_json(folder / "plan.json", {"begins": plan.begins})


def read_begins(folder: Path) -> list[int]:
    """What `keep_begins` kept; the directory's identity says that it belongs to this plan."""
    path = folder / "plan.json"
    return json.loads(path.read_text())["begins"] if path.is_file() else [0]


def _model(setting: Setting, job: Job, rows: np.ndarray, features: dict[str, TargetStore]) -> SERModel:
    """The model with its starting weights; tokenizer and normalisation come from the training rows alone."""
    recipe, dataset = setting.recipe, setting.dataset
    entry = recipe.models[job.model]
    components = {
        name: load(model_directory(setting, below(recipe, job, name)))[0] for name in entry.components
    }
    source = text_source(entry.model)
    texts: list[str] | None = [t for t in transcripts_of(dataset, source, rows) if t]
    if entry.role == "encoder" and not entry.objective:
        texts = None  # a pretrained encoder that stays as it is has nothing to transcribe
    elif not texts and reads_text(entry.model):
        raise UserError(
            f"{job.model} reads, and no training utterance has a transcript in {source}",
            where=f"models.{job.model}.model.text_from",
            hint="`ser transcribe` writes some beside the dataset; or leave this model out",
        )
    answers = outputs(recipe, job.model)
    count = len(setting.classes) if answers.classes else 0
    if isinstance(entry.model, ExternalConfig):
        return _external(setting, entry.model, answers.classes, answers.dimensions)
    shape = with_sizes(entry.model, frame_sizes(setting, job))
    model = build(shape, count, answers.dimensions, texts=texts, components=components)
    fit_normalisation(model, dataset, rows, features, setting)
    if isinstance(model, Fused) and model.config.mode == "product" and model.classes:
        known = supervision(setting, setting.folds[job.fold], job.model, "none")[0].classes[rows]
        counts = np.bincount(known[known >= 0], minlength=len(setting.classes))
        model.fit_prior(torch.from_numpy(counts / counts.sum()))
    if entry.encoder_from:
        start_encoder(
            model, load(model_directory(setting, below(recipe, job, entry.encoder_from)))[0], job.model
        )
    if entry.train is not None and entry.train.init_from:
        start, told = load(entry.train.init_from)
        if start.classes and told.get("classes", setting.classes) != setting.classes:
            raise UserError(
                f"init_from tells apart {', '.join(told['classes'])}, this protocol {', '.join(setting.classes)}",
                where=entry.train.init_from,
                hint="give a model of the same classes in the same order",
            )
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"init_from does not fit the model of {job.model}: {str(error).splitlines()[1].strip()}",
                where=entry.train.init_from,
                hint="give a model directory of the same `model` configuration",
            ) from None
    return model


def _external(setting: Setting, config: ExternalConfig, classes: bool, dimensions: bool) -> SERModel:
    """A teacher whose answers lie in files; refused where a view would be given another view's answer unsaid."""
    from ser.models.external import read

    if setting.policy.count and not config.any_view:
        raise UserError(
            "its files answer the clean utterance, and this run trains on views of it",
            where=config.files,
            hint="views: {count: 0}, or any_view: true to give every view the clean answer",
        )
    return read(config, setting.classes if classes else (), dimensions)


def model_directory(setting: Setting, job: Job) -> Any:
    """Where a finished training's model lies."""
    return directory(setting.recipe, job) / "model"


def _projectors(model: SERModel, entry: Any, sources: dict[str, TargetSource]) -> Projectors | None:
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


def _source(setting: Setting, job: Job, name: str, rows: np.ndarray) -> TargetSource:
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


def metas_of(setting: Setting, job: Job) -> dict[str, dict[str, Any]]:
    """`meta` of every model that a training builds on: teachers and components by name, and weights to start from."""
    entry = setting.recipe.models[job.model]
    found = {
        name: load_meta(model_directory(setting, below(setting.recipe, job, name))) for name in entry.needs
    }
    if entry.train is not None and entry.train.init_from:
        found[f"init_from {entry.train.init_from}"] = load_meta(entry.train.init_from)
    return found


def _exposure(setting: Setting, job: Job, rows: np.ndarray, model: SERModel) -> exposure.Exposure:
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
