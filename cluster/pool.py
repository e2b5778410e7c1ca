"""Many trainings on a few long-lived Ray workers, and many units of targets as Ray tasks.

A small training is over in seconds, so a worker process that imports torch and DeepSpeed once and then runs one
training after the other beats one process each. Progress is read from the workers between waits; a worker that dies
is replaced and its training goes on from its last checkpoint. Work is pulled, so unequal trainings finish together.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.session import PATIENCE, go_home, refuse_impossible
from ser.job import Job
from ser.produce import Done, Work
from ser.quarantine import Quarantine
from ser.recipe import Recipe
from shards.errors import UserError

MOST_DEATHS = 3
Progress = Callable[[Job, int, int], None]


@dataclass(frozen=True)
class Trained:
    """A finished training: its job and how long it took."""

    job: Job
    seconds: float


class TrainWorker:
    """Runs trainings of a world of one, one at a time; `progress` answers while one runs."""

    def __init__(self, home: str = ".") -> None:
        self.steps, self.home = (0, 0), home

    def run(self, recipe: Recipe, job: Job) -> float:
        """Train; returns seconds."""
        from ser.train import train

        began = time.perf_counter()
        self.steps = (0, 0)
        go_home(self.home)
        train(recipe, job, report=self._note, patience=PATIENCE)
        return time.perf_counter() - began

    def _note(self, done: int, total: int) -> None:
        self.steps = (done, total)

    def progress(self) -> tuple[int, int]:
        """(steps done, steps in all) of the running training."""
        return self.steps


def train_all(
    recipe: Recipe, jobs: Sequence[Job], workers: int, progress: Progress | None = None
) -> Iterator[Trained]:
    """Run all trainings over `workers` long-lived Ray actors; yields each as it finishes.

    Raises:
        UserError: Of a training, as it raised it; a training whose worker died too often; or an embedded cluster that
            cannot hold one.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    if recipe.cluster.address is None:
        refuse_impossible(recipe.cluster.cpus_per_task, recipe.cluster.gpus_per_task)
    home = os.getcwd()
    actor = ray.remote(TrainWorker).options(
        num_cpus=recipe.cluster.cpus_per_task, num_gpus=recipe.cluster.gpus_per_task, max_concurrency=2
    )
    waiting, deaths = list(jobs), dict.fromkeys(jobs, 0)
    idle = [actor.remote(home) for _ in range(min(workers, len(waiting)))]
    running: dict[Any, tuple[Any, Job]] = {}
    try:
        while waiting or running:
            while idle and waiting:
                worker, job = idle.pop(), waiting.pop(0)
                running[worker.run.remote(recipe, job)] = (worker, job)
            done, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            if progress:
                _show(running, done, progress)
            for reference in done:
                worker, job = running.pop(reference)
                try:
                    seconds = ray.get(reference)
                except RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, UserError) else error) from None
                except RayActorError:
                    deaths[job] += 1
                    if deaths[job] >= MOST_DEATHS:
                        raise UserError(
                            f"the worker of {job} died {deaths[job]} times",
                            hint="look for out-of-memory kills (dmesg), or lower cluster.cpus",
                        ) from None
                    waiting.insert(0, job)
                    idle.append(actor.remote(home))
                    continue
                idle.append(worker)
                yield Trained(job, seconds)
    finally:
        for worker in [*idle, *(worker for worker, _ in running.values())]:
            ray.kill(worker)


def _show(running: dict[Any, tuple[Any, Job]], done: list[Any], progress: Progress) -> None:
    import ray
    from ray.exceptions import RayError

    asked = {worker.progress.remote(): job for ref, (worker, job) in running.items() if ref not in done}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0.2) if asked else ([], [])
    for reference in ready:
        try:
            steps, total = ray.get(reference)
        except RayError:
            continue  # a worker that dies is noticed by its own task
        if total:
            progress(asked[reference], steps, total)


def compute_all(session: Any, recipe: Recipe, work: Sequence[Work]) -> Iterator[tuple[Work, Done]]:
    """Compute units of features or targets as Ray tasks; kilobytes travel, audio does not.

    Raises:
        UserError: More utterances than `data.max_quarantined` allows could not be read; what is committed stays.
    """
    quarantine, want = Quarantine(recipe, work), recipe.cluster
    for index, done in session.map(
        _Compute(recipe), work, num_cpus=want.cpus_per_task, num_gpus=want.gpus_per_task
    ):
        quarantine.add(done)
        yield work[index], done


@dataclass(frozen=True)
class _Compute:
    recipe: Recipe

    def __call__(self, work: Work) -> Done:
        from ser.produce import compute

        return compute(self.recipe, work)
