"""One training of a recipe: its name, its directory, and the identity that says whether what lies there still fits."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.checkpoint import write_json
from ser.recipe import ModelRecipe, Recipe, TrainConfig
from ser.setting import Setting
from ser.strict import read_yaml, validate
from ser.values import set_dotted

# Stored features that a kind of model reads; a fused one reads its components', whose identity it carries.
FEATURES_OF = {"conv": ("mel",), "prosodic": ("prosody",), "fused": ("mel", "prosody")}

# A product of trained models is put together, not trained; inference settings are all that is used of this.
ASSEMBLED = TrainConfig(steps=1, tensorboard=False)
# How a training is run, not what it computes: changing these neither repeats a finished training nor drops a checkpoint.
OPERATIONAL = {
    "workers", "zero_stage", "offload", "loader_workers", "threads", "log_every", "tensorboard", "checkpoint_every",
    "keep_checkpoints", "max_quarantined",
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
    """Values that a search chose for this model on this fold: this run's own search, else those beside the recipe."""
    for folder in (recipe.directory / "chosen", recipe.chosen):
        path = Path(folder) / f"{job.fold}.yaml" if folder else None
        if path is not None and path.is_file():
            values = read_yaml(path) or {}
            if job.model in values:
                return values[job.model]
    return {}


def jobs(recipe: Recipe, fold: str, model: str) -> list[Job]:
    """All trainings of a model on a fold: its seeds, and for a cross-fitted teacher each part as well."""
    entry = recipe.models[model]
    whole = [Job(fold, model, seed) for seed in recipe.seeds_of(model)]
    parts = [Job(fold, model, recipe.seeds_of(model)[0], part=part) for part in range(entry.cross_fit)]
    return whole + parts


def identity(setting: Setting, job: Job) -> dict[str, Any]:
    """Everything a training depends on, as JSON; two equal identities would train the same weights.

    Teachers enter by the hash of their own identity, so a change anywhere below is seen here.
    """
    recipe = setting.recipe
    model: ModelRecipe = recipe.models[job.model]
    fold = setting.folds[job.fold]
    teacher_hashes = {}
    for name in model.needs:
        teacher = Job(job.fold, name, recipe.seeds_of(name)[0])
        teacher_hashes[name] = digest(identity(setting, teacher))
    return {
        "model": model.model_dump(mode="json", exclude={"train", "search", "seeds"}),
        "train": train_config(recipe, job).model_dump(mode="json", exclude=OPERATIONAL)
        if model.train is not None
        else None,
        "protocol": setting.protocol.model_dump(mode="json"),
        "fold": [job.fold, *(_rows_digest(rows) for rows in (fold.train, fold.dev, fold.test))],
        "seed": job.seed,
        "part": job.part,
        "dataset": setting.dataset.content_hash,
        "views": setting.policy.hash(),
        "features": {
            name: config.model_dump(mode="json")
            for name, config in recipe.features.items()
            if name in FEATURES_OF.get(model.model.kind, ())
        },
        "targets": recipe.targets.model_dump(mode="json") if model.target_sources else None,
        "teachers": teacher_hashes,
        "init_from": _weights_digest(model.train.init_from) if model.train is not None else None,
    }


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(setting: Setting, job: Job) -> bool:
    """True when the training lies there whole and is still the one that the recipe asks for."""
    folder = directory(setting.recipe, job)
    return (folder / "DONE").is_file() and read_identity(folder) == identity(setting, job)


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


def _rows_digest(rows: Any) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]
