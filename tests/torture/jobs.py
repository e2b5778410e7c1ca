"""The jobs under torture: pack, targets, train, sweep, a sweep of many trials, and a training that is submitted to Slurm. Each is a
command of `ser` over a tiny corpus, small enough for a minute.

A job is made ready once (what comes before the stage under torture is finished), and a copy of that is tortured. What it
gives is told as name -> bytes, to be compared with what the undisturbed job gave: the same names and the same bytes.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import tiny

LABELS = [{"loss": "cross_entropy"}, {"loss": "ccc"}]
RATE = "models.sound.train.optimizer.lr"
TRIALS = {"sweep": 4, "study": 64}
# Beginnings and ends of names that a killed process may leave for a moment, and that must be gone when the job has ended.
TEMPORARY = (".tmp", ".converting-", "ser-put-", "ser-copy-", "lease.json", "-ray")
# Facts of where and when, not of what: other at each call.
ASIDE = ("runs/", "environment.json", "recipe.yaml", "data.json", "sweep.html", "sweep.json", "best.yaml")
Found = dict[str, bytes | str]


@dataclass(frozen=True)
class Job:
    """One kind of work.

    Attributes:
        name: "pack", "targets", "train", "sweep", "study", which is a longer sweep, or "slurm", which is the training as a job
            of two machines.
        ready: Verb that makes what comes before, None for nothing.
        verb: The command under torture.
        victims: Who is killed, or what happens: "disk", "clock" and "network".
        phases: When.
        rounds: At most so many, where one takes long; None for as many as asked.
    """

    name: str
    ready: str | None
    verb: str
    victims: tuple[str, ...]
    phases: tuple[str, ...]
    rounds: int | None = None


JOBS = {
    job.name: job
    for job in (
        Job(
            "pack", None, "pack", ("driver", "worker", "raylet", "s3", "disk", "clock", "network"),
            ("write", "commit", "idle"),
        ),
        Job(
            "targets", "train", "targets", ("driver", "worker", "raylet", "s3", "disk", "clock", "network"),
            ("write", "commit", "idle"),
        ),
        Job(
            "train", "pack", "train", ("driver", "actor", "raylet", "disk", "clock", "network"),
            ("write", "commit", "collective", "checkpoint", "idle"),
        ),
        Job(
            "sweep", "pack", "sweep", ("driver", "worker", "trial", "raylet", "disk", "clock"),
            ("write", "commit", "checkpoint", "idle"),
        ),
        Job("study", "pack", "sweep", ("driver", "raylet"), ("commit",), rounds=2),
        Job("slurm", "pack", "train", ("slurm-node",), ("write", "commit", "collective", "checkpoint", "idle"), rounds=5),
    )
}  # fmt: skip


def write_recipe(job: str, folder: Path, corpus: Path, dataset: str) -> Path:
    """The recipe of a job in `folder`; `corpus` is shared by all."""
    folder.mkdir(parents=True, exist_ok=True)
    few = tiny.training(6, slots=2, slot_seconds=3.0, checkpoint_every=2, evaluate_every=2)
    sound = {"role": "teacher", "model": tiny.CONV, "objective": LABELS, "train": few}
    models: dict[str, Any] = {"sound": sound}
    if job in ("train", "slurm"):
        sound["train"] = few | {"workers": 2, "zero_stage": 2}
    if job == "targets":  # asked of the teacher only because somebody reads them
        terms = [{"loss": "kl", "teacher": "sound"}]
        models["student"] = {"role": "student", "model": tiny.CONV, "objective": terms, "train": few}
    values = tiny.recipe_values(folder, dataset, models, cluster={"cpus": 2})
    options = {"corpus": "tiny"}
    values["data"] = {
        "path": dataset, "corpora": [{"reader": "manifest", "root": str(corpus), "options": options}], "shard_seconds": 4.0,
    }  # fmt: skip
    if job in TRIALS:
        sound["role"] = "baseline"
        values["sweep"] = {
            "space": {RATE: {"low": 1e-3, "high": 1e-1, "log": True}}, "trials": TRIALS[job],
            "objectives": [{"model": "sound", "metric": "ua"}], "sampler": {"kind": "random", "seed": 2},
        }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def copy_ready(ready: Path, folder: Path) -> None:
    """What a ready job has made, for another folder."""
    for name in ("dataset", "run"):
        if (ready / name).is_dir():
            shutil.copytree(ready / name, folder / name, symlinks=True, dirs_exist_ok=True)


def results(job: str, folder: Path, dataset: Callable[[], Found]) -> Found:
    """All that a finished job gave."""
    run = folder / "run"
    found: Found = {}
    if job in ("pack", "targets"):
        found = {name: data for name, data in dataset().items() if not name.startswith(ASIDE)}
    elif job in ("train", "slurm"):
        found = training(run / "folds/session-ses0/sound/seed-0")
    else:
        found = trials(run / "sweep")
    return found


def local_files(folder: Path) -> Found:
    """Path -> bytes below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def training(folder: Path) -> Found:
    """Weights, predictions and events of a training, and the names of all its files."""
    import pyarrow.parquet as pq

    from tests.faults import events

    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return {
        "names": "\n".join(name for name in names if not name.startswith("stacks-")),
        "weights": (folder / "model/model.safetensors").read_bytes(),
        "about": (folder / "model/model.json").read_bytes(),
        "events": json.dumps(events(folder)),
        "predictions": json.dumps(pq.read_table(folder / "predictions.parquet").to_pylist()),
    }


def trials(folder: Path) -> Found:
    """State, parameters and value of every trial of the study, and the weights that it trained."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        study_name="tiny", storage=JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    )
    found: Found = {"states": ", ".join(trial.state.name for trial in study.trials)}
    for trial in study.trials:
        at = folder / f"trials/{trial.number:05d}"
        found[f"{trial.number} value"] = json.dumps([trial.params, trial.values])
        found[f"{trial.number} outcome"] = (at / "outcome.json").read_bytes()
        for path in sorted(at.rglob("model.safetensors")):
            found[f"{trial.number} {path.relative_to(at)}"] = path.read_bytes()
    return found


def leavings(folder: Path) -> list[str]:
    """Temporary files that are still there."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.startswith(TEMPORARY) or path.name.endswith(TEMPORARY)
    )
