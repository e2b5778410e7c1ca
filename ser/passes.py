"""What the students' targets cost: teacher answers that were computed, read and thereby saved, and the disk they take.

An answer is one teacher heard on one view of one utterance. Stored targets compute each once; an online teacher is asked
again for every utterance of every step, fold, seed and student. The number of answers that a training read follows from
its plan and is kept with the model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ser.job import Job, below
from ser.produce import teacher_spec
from ser.results import Model
from ser.setting import Setting
from shards.errors import UserError
from shards.targets import PRESENT, TargetStore


def told(setting: Setting, models: Mapping[str, Model]) -> dict[str, Any]:
    """By teacher: answers computed, read and saved (null where a training did not count them), and bytes on disk."""
    config, out = setting.recipe.targets, {}
    used: dict[str, set[Job]] = {}
    reads: dict[str, list[int | None]] = {}
    for name, model in models.items():
        for (fold, seed), training in model.trainings.items():
            counted = training.meta["training"].get("answers")
            for teacher in setting.recipe.models[name].target_sources:
                used.setdefault(teacher, set()).update(
                    _whole_and_parts(setting, Job(fold, name, seed), teacher)
                )
                reads.setdefault(teacher, []).append(counted)
    for teacher, jobs in used.items():
        known = [n for n in reads[teacher] if n is not None]
        read = sum(known) if len(known) == len(reads[teacher]) else None
        if config.source == "online":
            out[teacher] = {"computed": read, "read": read, "saved": None if read is None else 0, "bytes": 0}
            continue
        stores = [store for job in sorted(jobs, key=str) if (store := _store(setting, job)) is not None]
        computed = sum(_present(setting, store) for store in stores)
        out[teacher] = {
            "computed": computed,
            "read": read,
            "saved": None if read is None else read - computed,
            "bytes": sum(store.size() for store in stores),
        }
    return {"source": config.source, "mode": config.mode, "teachers": out}


def _whole_and_parts(setting: Setting, job: Job, teacher: str) -> list[Job]:
    at = below(setting.recipe, job, teacher)
    parts = setting.recipe.models[teacher].cross_fit
    return [at, *(Job(at.fold, teacher, at.seed, part=k) for k in range(parts))]


def _store(setting: Setting, job: Job) -> TargetStore | None:
    try:
        return TargetStore.open(setting.dataset, expect=teacher_spec(setting, job))
    except (UserError, FileNotFoundError):
        return None


def _present(setting: Setting, store: TargetStore) -> int:
    rows = np.arange(len(setting.dataset))
    views = [0] if store.spec.view_invariant else sorted({0, *setting.train_views})
    return sum(int((store.state(rows, view) == PRESENT).sum()) for view in views)
