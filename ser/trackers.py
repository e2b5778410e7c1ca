"""Where a training's numbers go besides `events.jsonl`: Weights & Biases and MLflow, if the recipe's `trackers` names them.

Guarantees: `events.jsonl` stays the truth: a tracker that fails while a training runs is dropped with a warning and never
stops or changes it. A resumed training goes on in the tracker's own run, found by an id of its directory. What is sent is
the training's metrics, its model and training keys, fold and seed; credentials come from the tracker's own variables and
files (WANDB_API_KEY, MLFLOW_TRACKING_URI, ...).
Gives up: a resumed training repeats the steps after its checkpoint; MLflow keeps both points of such a step, wandb the first.
Trainings of several processes that start together want an MLflow server: a file of its own database can be locked then.
"""

import contextlib
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ser.job import Job, train_config
from ser.recipe import Recipe
from shards.errors import UserError

OPTIONAL = ("wandb", "mlflow")


class Tracker(Protocol):
    """What takes metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step by name, `train/loss` for instance."""
        ...

    def close(self, whole: bool) -> None:
        """The training is over (`whole`), or stops to go on later."""
        ...


def check(recipe: Recipe) -> None:
    """Refuse trackers that are not installed, before anything starts.

    Raises:
        UserError: With what to install.
    """
    for name in OPTIONAL:
        if name in recipe.trackers and importlib.util.find_spec(name) is None:
            raise UserError(
                f"the recipe asks for the tracker {name}, which is not installed",
                where=f"{recipe.name}: trackers",
                hint=f"pip install 'ser-distill[{name}]', or leave it out of trackers",
            )


def started(recipe: Recipe, job: Job, folder: Path) -> list[Tracker]:
    """The recipe's trackers for one training, those that cannot start left out with a warning."""
    make: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "mlflow": MLflow}
    check(recipe)
    found = []
    for name in OPTIONAL:
        if name in recipe.trackers:
            try:
                found.append(make[name](recipe, job, folder))
            except Exception as error:
                _dropped(name, error)
    return found


def tell(trackers: list[Tracker], step: int, values: Mapping[str, float]) -> None:
    """Hand numbers to every tracker; one that fails is taken out of the list."""
    for tracker in list(trackers):
        try:
            tracker.log(step, values)
        except Exception as error:
            trackers.remove(tracker)
            _dropped(type(tracker).__name__.lower(), error)


def end(trackers: list[Tracker], whole: bool) -> None:
    """Close every tracker; none keeps a training from ending."""
    for tracker in trackers:
        try:
            tracker.close(whole)
        except Exception as error:
            _dropped(type(tracker).__name__.lower(), error)


def _dropped(name: str, error: Exception) -> None:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(f"tracker {name} is left out from here on: {first}", stacklevel=3)


def _identity(folder: Path) -> str:
    """Of a training's directory, the same at every restart."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _told(recipe: Recipe, job: Job) -> dict[str, Any]:
    """What a tracker may know of a training."""
    return {
        "recipe": recipe.name, "fold": job.fold, "model": job.model, "seed": job.seed, "part": job.part, "trial": job.trial,
        "train": train_config(recipe, job).model_dump(mode="json"),
        "network": recipe.models[job.model].model.model_dump(mode="json"),
    }  # fmt: skip


class Wandb:
    """A run of Weights & Biases: project the recipe's name, group the model; WANDB_MODE=offline writes to disk alone."""

    def __init__(self, recipe: Recipe, job: Job, folder: Path):
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", recipe.name), group=job.model, name=str(job), id=_identity(folder),
            resume="allow", dir=str(folder), config=_told(recipe, job), reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(dict(values), step=step)

    def close(self, whole: bool) -> None:
        """See `Tracker`."""
        self.run.finish(exit_code=0)


class MLflow:
    """A run of an MLflow experiment of the recipe's name; without MLFLOW_TRACKING_URI in `mlflow.db` of the run directory."""

    def __init__(self, recipe: Recipe, job: Job, folder: Path):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]  # an extra
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        here = f"sqlite:///{(recipe.directory / 'mlflow.db').resolve()}"
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or here)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", recipe.name)
        experiment = self._experiment(name)
        mine = f"tags.ser_training = '{_identity(folder)}'"
        found = self.client.search_runs([experiment], filter_string=mine, max_results=1)
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        tags = {"ser_training": _identity(folder), "model": job.model, "fold": job.fold}
        self.id = self.client.create_run(experiment, tags=tags, run_name=str(job)).info.run_id
        told = _told(recipe, job)
        told = told.pop("train") | told
        self.client.log_batch(self.id, params=[Param(key, str(value)[:500]) for key, value in told.items()])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        with contextlib.suppress(MlflowException):  # another training may make it at this moment
            if self.client.get_experiment_by_name(name) is None:
                return self.client.create_experiment(name)
        return self.client.get_experiment_by_name(name).experiment_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        import time

        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self, whole: bool) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.id, "FINISHED" if whole else "KILLED")
