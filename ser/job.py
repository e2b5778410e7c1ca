"""One training of a recipe: its name, its directory, and the identity that says whether what lies there still fits."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser.checkpoint import sha256, write_json
from ser.contents import of_folder
from ser.hubs import is_folder, pretrained_parts
from ser.models.config import ExternalConfig, ModelConfig, ProbeConfig
from ser.recipe import ModelRecipe, Recipe, TargetsConfig, TrainConfig
from ser.setting import Setting, supervision
from ser.start import text_source
from ser.strict import read_yaml, validate
from ser.values import overlap, set_dotted
from shards.batch import texts
from shards.errors import UserError

# Beside chosen values, by model: the digest of the grid that they were chosen from.
GRIDS = ".grids"
# A product of trained models is put together, not trained; inference settings are all that is used of this.
ASSEMBLED = TrainConfig(steps=1, tensorboard=False)
# How a training is run, not what it computes: changing these neither repeats a finished training nor drops a checkpoint.
OPERATIONAL = {
    "workers", "workers_min", "zero_stage", "offload", "loader_workers", "threads", "log_every", "tensorboard", "checkpoint_every",
    "checkpoint_background", "keep_checkpoints", "max_quarantined",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Job:
    """Model `model` on fold `fold` with seed `seed`.

    Attributes:
        part: Cross-fitting: the part of the training speakers that this copy does not hear.
        trial: Search: dotted train keys and values tried, as JSON; None is the real training.
    """

    fold: str
    model: str
    seed: int
    part: int | None = None
    trial: str | None = None

    def __str__(self) -> str:
        part = "" if self.part is None else f" part {self.part}"
        trial = "" if self.trial is None else f" {self.trial}"
        return f"{self.fold} {self.model} seed {self.seed}{part}{trial}"


def directory(recipe: Recipe, job: Job) -> Path:
    """Where a training lives inside the run."""
    name = f"seed-{job.seed}"
    if job.part is not None:
        name += f"-part-{job.part}"
    if job.trial is not None:
        name += f"-trial-{hashlib.sha256(job.trial.encode()).hexdigest()[:8]}"
    return recipe.directory / "folds" / job.fold / job.model / name


def train_config(recipe: Recipe, job: Job) -> TrainConfig:
    """Training configuration of a job: the recipe's, then the fold's chosen values, then the trial's."""
    model = recipe.models[job.model]
    if model.train is None:
        return ASSEMBLED
    values = model.train.model_dump()
    changes = {} if job.trial is not None else chosen_values(recipe, job)
    if job.trial is not None:
        changes = json.loads(job.trial)
    for key, value in changes.items():
        set_dotted(values, key, value)
    return validate(TrainConfig, values, where=f"{recipe.name}: models.{job.model}.train")


def chosen_values(recipe: Recipe, job: Job) -> dict[str, Any]:
    """Values that a search chose for this model on this fold.

    A model with a `search` takes this run's own choice, if it was made from the very grid that stands in the recipe;
    another one takes what the recipe's `chosen` folder names. Keys that the user gave by hand (`keep`) stay as given.

    Raises:
        UserError: The `chosen` folder is missing, or a file in it names a model that the recipe does not have.
    """
    model = recipe.models[job.model]
    if model.search:
        found = _read_choices(recipe.directory / "chosen", job.fold)
        made_from = found.get(GRIDS, {}).get(job.model)
        values = found.get(job.model, {}) if made_from == digest(model.search) else {}
    elif recipe.chosen:
        folder = Path(recipe.chosen)
        if not folder.is_dir():
            raise UserError("`chosen` names a folder that is not there", where=recipe.chosen)
        found = _read_choices(folder, job.fold)
        lost = sorted(set(found) - {GRIDS, *recipe.models})
        if lost:
            raise UserError(
                f"chosen values for {', '.join(lost)}, no model of this recipe",
                where=str(folder / f"{job.fold}.yaml"),
                hint=f"models: {', '.join(recipe.models)}",
            )
        values = found.get(job.model, {})
    else:
        values = {}
    return {key: value for key, value in values.items() if not any(overlap(key, k) for k in model.keep)}


def _read_choices(folder: Path, fold: str) -> dict[str, Any]:
    path = folder / f"{fold}.yaml"
    return (read_yaml(path) or {}) if path.is_file() else {}


def jobs(recipe: Recipe, fold: str, model: str) -> list[Job]:
    """All trainings of a model on a fold: its seeds, and for a cross-fitted teacher each part as well."""
    entry = recipe.models[model]
    whole = [Job(fold, model, seed) for seed in recipe.seeds_of(model)]
    parts = [Job(fold, model, recipe.seeds_of(model)[0], part=part) for part in range(entry.cross_fit)]
    return whole + parts


def below(recipe: Recipe, job: Job, name: str) -> Job:
    """The training of model `name` that `job` builds on; a cross-fitted copy is made of its components' copies."""
    crossed = job.part is not None and name in recipe.models[job.model].components
    entry = recipe.models[job.model]
    elsewhere = entry.teacher_fold is not None and name in entry.target_sources
    fold = str(entry.teacher_fold) if elsewhere else job.fold
    return Job(fold, name, recipe.seeds_of(name)[0], part=job.part if crossed else None)


def identity(setting: Setting, job: Job) -> dict[str, Any]:
    """Everything a training depends on, as JSON; two equal identities would train the same weights.

    Of the dataset it holds the fold's own rows, their labels as the model sees them, and the shards that they lie in:
    another corpus may come and go. Teachers enter by the hash of their own identity, so a change anywhere below is seen.
    """
    from ser.produce import features_of  # imports this module

    recipe = setting.recipe
    model: ModelRecipe = recipe.models[job.model]
    # What says nothing by default stays out, so that what is finished stays finished.
    return (
        text_facts(setting, job)
        | _file_facts(setting, job)
        | _folder_facts(model.model)
        | _state_facts(setting, job)
        | {
            # `frames` and `layers` say what is stored of it afterwards
            "model": model.model_dump(
                mode="json", exclude={"train", "search", "seeds", "keep", "frames", "layers"}
            ),
            "train": train_config(recipe, job).model_dump(mode="json", exclude=OPERATIONAL)
            if model.train is not None
            else None,
            "protocol": setting.protocol.model_dump(mode="json", exclude={"about"}),
            "fold": job.fold,
            "rows": _rows_facts(setting, job.fold),
            "labels": _label_facts(setting, job.fold, job.model),
            "seed": job.seed,
            "part": job.part,
            "views": setting.policy.hash(),
            "features": features_of(setting, job.model),
            "targets": recipe.targets.model_dump(mode="json") if model.target_sources else None,
            "teachers": {name: digest(identity(setting, below(recipe, job, name))) for name in model.needs},
            "init_from": _weights_digest(model.train.init_from) if model.train is not None else None,
        }
    )


def _rows_facts(setting: Setting, name: str) -> dict[str, Any]:
    """Digests of a fold's rows and of the shards that hold them.

    Row and shard numbers are part of it: the plan's shuffles go by them. Adding data does not change them.
    """
    if ("rows", name) not in setting.memo:
        fold, dataset = setting.folds[name], setting.dataset
        splits = {"train": fold.train, "dev": fold.dev, "test": fold.test}
        held = np.unique(np.concatenate([np.asarray(dataset.shard)[rows] for rows in splits.values()]))
        setting.memo["rows", name] = {
            **{split: _hash(rows, np.asarray(dataset.key_hash)[rows]) for split, rows in splits.items()},
            "shards": digest([[int(i), dataset.shards[i].sha256] for i in held]),
        }
    return setting.memo["rows", name]


def text_facts(setting: Setting, job: Job) -> dict[str, Any]:
    """What a recogniser heard of the fold's rows, where the model reads that itself (a corpus's own texts are in its shards)."""
    source = text_source(setting.recipe.models[job.model].model)
    if not source.startswith("asr:"):
        return {}
    key = ("text", job.fold, source)
    if key not in setting.memo:
        fold = setting.folds[job.fold]
        rows = np.unique(np.concatenate([fold.train, fold.dev, fold.test]))
        setting.memo[key] = digest(texts(setting.dataset, source, rows))
    return {"text": {source: setting.memo[key]}}


def _state_facts(setting: Setting, job: Job) -> dict[str, Any]:
    """Precision of the hidden states that a probe reads, where it is not the default."""
    dtype = setting.recipe.targets.dtype
    probes = isinstance(setting.recipe.models[job.model].model, ProbeConfig)
    return {"states": dtype} if probes and dtype != TargetsConfig().dtype else {}


def _file_facts(setting: Setting, job: Job) -> dict[str, Any]:
    """Digest of the answers that a teacher which ran elsewhere reads from files."""
    config = setting.recipe.models[job.model].model
    if not isinstance(config, ExternalConfig):
        return {}
    if ("files", config.files) not in setting.memo:
        path = Path(config.files)
        every = sorted(path.glob("*.npy")) if path.is_dir() else [path] if path.is_file() else []
        setting.memo["files", config.files] = digest([[file.name, sha256(file)] for file in every])
    return {"files": setting.memo["files", config.files]}


def _folder_facts(config: ModelConfig) -> dict[str, Any]:
    """Digests of the pretrained folders that a model starts from, by path; hub models have their revision."""
    folders = {str(part.name) for part in pretrained_parts(config) if part.name and is_folder(part.name)}
    return {"folders": {name: digest(of_folder(name)) for name in sorted(folders)}} if folders else {}


def _label_facts(setting: Setting, name: str, model: str) -> dict[str, str]:
    """Digests of the labels that a model is trained on and chosen by."""
    if ("labels", name, model) not in setting.memo:
        fold, dev = setting.folds[name], setting.labels
        shown, rows = supervision(setting, fold, model, "none")
        setting.memo["labels", name, model] = {
            "train": _hash(rows, shown.classes[rows], shown.dimensions[rows], *_some(shown.soft, rows)),
            "dev": _hash(dev.classes[fold.dev], dev.dimensions[fold.dev]),
        }
    return setting.memo["labels", name, model]


def _some(values: np.ndarray | None, rows: np.ndarray) -> list[np.ndarray]:
    return [] if values is None else [values[rows]]


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(setting: Setting, job: Job) -> bool:
    """True when the training lies there whole and is still the one that the recipe asks for."""
    folder = directory(setting.recipe, job)
    return (folder / "DONE").is_file() and read_identity(folder) == identity(setting, job)


def superseded(recipe: Recipe, job: Job, made_with: dict[str, Any] | None) -> Path:
    """Where a finished training goes when the recipe asks for another one in its place."""
    folder = directory(recipe, job)
    below = recipe.directory / "superseded" / folder.relative_to(recipe.directory / "folds")
    return below.with_name(f"{below.name}-{digest(made_with)[:8]}")


def why_superseded(setting: Setting, job: Job) -> list[str] | None:
    """Dotted fields in which the finished training that lies there differs from the one asked for; None without one."""
    folder = directory(setting.recipe, job)
    if not (folder / "DONE").is_file():
        return None
    old, new = leaves(read_identity(folder) or {}), leaves(identity(setting, job))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)) or None


def leaves(value: Any, path: str = "") -> dict[str, str]:
    """Nested mappings as {dotted path: JSON of the leaf}; lists of mappings by number."""
    if isinstance(value, dict) and value:
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        return {path: json.dumps(value, sort_keys=True)}
    return {
        k: v for name, one in items for k, v in leaves(one, f"{path}.{name}" if path else str(name)).items()
    }


def read_identity(folder: Path) -> dict[str, Any] | None:
    """Identity that a training directory was made with; None when there is none."""
    path = folder / "job.json"
    return json.loads(path.read_text()) if path.is_file() else None


def write_identity(folder: Path, value: dict[str, Any]) -> None:
    """Record what a training directory is made with."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "job.json", value)


def _weights_digest(folder: str | None) -> dict[str, str] | None:
    """Hashes of the files of a model to start from; None without one (a missing one is refused when it is loaded)."""
    path = Path(folder) / "model.json" if folder else None
    return json.loads(path.read_text())["files"] if path is not None and path.is_file() else None


def _hash(*arrays: np.ndarray) -> str:
    """16 hex digits of the sha256 of arrays with their types and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        found.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]
