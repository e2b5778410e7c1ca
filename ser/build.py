"""Everything that one training needs, gathered before its first step: rows, plan, labels, targets, model, objective."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ser import exposure
from ser.agreement import agree, check_classes, check_dev, check_tuning, outputs
from ser.checkpoint import write_json
from ser.distributed import World
from ser.frames import frame_sizes
from ser.inputs import needs_of
from ser.job import Job, below, directory, train_config
from ser.layers import layer_stores
from ser.loss import Objective, Supervision, Transcripts
from ser.models import SERModel, build, load
from ser.models.config import ExternalConfig
from ser.models.fused import Fused
from ser.models.projectors import Projectors
from ser.models.speech import Speech
from ser.models.streams import with_sizes
from ser.normalising import check_mel, fit_normalisation
from ser.produce import stores_read
from ser.protocol import Fold, Labels
from ser.recipe import TrainConfig
from ser.setting import Setting, restricted, supervision
from ser.sources import parts_of
from ser.start import encoder_parameters, reads_text, start_encoder, text_source
from ser.taught import embedding_scales, exposure_of, languages_of, model_directory, projectors_for, source_of
from shards import law
from shards.batch import texts as transcripts_of
from shards.columns import HAS_TEXT
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import key_hash
from shards.loader import Needs
from shards.plan import Plan, PlanConfig
from shards.targets import TargetStore
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
    sources = {name: source_of(setting, job, name, rows) for name in entry.target_sources}
    model = _model(setting, job, rows, features)
    blank = copy.deepcopy(model)
    projectors = projectors_for(model, entry, sources)
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
    plan = plan_of(setting, job, config, rows if len(rows) else fold.train, labels)
    total = config.steps if config.steps is not None else plan.total_steps(config.epochs or 1)
    heard = exposure_of(setting, job, rows, model)
    return Ingredients(
        setting, job, config, whole, fold.dev, rows, plan, total, needs, features, model, blank, trainable,
        encoder_parameters(model), objective,
        {name: term.weight for name, term in objective.terms.items()}, heard,
        [] if entry.ready else sorted({x for x in dataset.fields(["licence"], rows).column("licence").unique().to_pylist() if x}),
    )  # fmt: skip


def plan_of(setting: Setting, job: Job, config: TrainConfig, rows: np.ndarray, labels: Supervision) -> Plan:
    """The global steps of a training over `rows`."""
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
