"""Many trainings on a few long-lived Ray workers, and many units of features and targets.

A small training is over in seconds, so a worker process that imports torch and DeepSpeed once and then runs one
training after the other beats one process each. Progress is read from the workers between waits; a worker that dies
is replaced and its training goes on from its last checkpoint. Work is pulled, so unequal trainings finish together.
A worker goes when nothing is left for it, and on a shared cluster after a while between two trainings, so that the other
jobs there get their turn. One on a machine that is given up saves at the next step boundary, and its training goes on elsewhere.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.crew import HELD, Crew
from cluster.place import Home
from cluster.room import Room, leaving
from cluster.session import PATIENCE
from ser.checkpoint import committed
from ser.job import Job, directory
from ser.produce import Done, Work, compute
from ser.quarantine import Quarantine
from ser.recipe import Recipe
from ser.stopping import WITHIN, StopFlag, Stopped, saving
from shards.errors import UserError

MOST_DEATHS = 3
Progress = Callable[[Job, int, int], None]


@dataclass(frozen=True)
class Trained:
    """A finished training: its job and how long it took."""

    job: Job
    seconds: float


class TrainWorker:
    """Runs trainings of a world of one, one at a time; `progress` and `stop` are heard while one runs."""

    def __init__(self, home: Home | None = None) -> None:
        self.steps, self.home, self.asked = (0, 0), home or Home("."), StopFlag()

    def run(self, recipe: Recipe, job: Job) -> float:
        """Train; returns seconds."""
        from ser.train import train

        began = time.perf_counter()
        self.steps = (0, 0)
        self.home.enter()
        train(recipe, job, report=self._note, patience=PATIENCE, stop=self.asked)
        return time.perf_counter() - began

    def where(self) -> str:
        """Id of the machine that it is on."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def _note(self, done: int, total: int) -> None:
        self.steps = (done, total)

    def progress(self) -> tuple[int, int]:
        """(steps done, steps in all) of the running training."""
        return self.steps

    def stop(self) -> None:
        """Save at the next step boundary and stop."""
        self.asked.request()


def train_all(
    recipe: Recipe,
    jobs: Sequence[Job],
    workers: int,
    progress: Progress | None = None,
    home: Home | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Trained]:
    """Run all trainings over `workers` long-lived Ray actors; yields each as it finishes. `say` hears what is waited for.

    Raises:
        UserError: Of a training, as it raised it; a training whose worker died too often with no checkpoint between; or a cluster that cannot
            hold one.
        Stopped: A signal asked this process to stop, and trainings have saved where they were; or the cluster cannot hold
            one any more, for as long as `cluster.wait`.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    want = recipe.cluster
    shared = want.address is not None
    room = Room(want.cpus_per_task, want.gpus_per_task, patience=want.wait if shared else 0.0, say=say)
    actor = ray.remote(TrainWorker).options(
        num_cpus=want.cpus_per_task, num_gpus=want.gpus_per_task, max_concurrency=2
    )
    create = partial(actor.remote, home or Home(os.getcwd()))
    pool = Crew(create, workers, HELD if shared else math.inf)
    waiting: list[Job] = list(jobs)
    deaths: dict[Job, list[int]] = {job: [] for job in jobs}  # how far each had come
    asked: list[float] = []  # when we were asked to stop
    try:
        with saving(lambda: asked.append(time.monotonic())):
            while pool.running or (waiting and not asked):
                if not pool.running:
                    room.enough()
                pool.hire(len(waiting) + len(pool.running) if not asked else 0)
                done, _ = ray.wait([*pool.coming, *pool.running], num_returns=1, timeout=0.5)
                room.begun(bool(pool.running or done))
                if progress:
                    _show(pool.running, done, progress)
                if asked:
                    pool.ask()
                for node in leaving() if shared else ():
                    if pool.ask(node):
                        say(
                            "a machine is given up by its cluster: what trains there saves and goes on elsewhere"
                        )
                if asked and time.monotonic() - asked[0] > WITHIN:
                    break
                for reference in done:
                    if reference in pool.coming:
                        worker = pool.came(reference)
                    else:
                        worker, job = pool.running.pop(reference)
                        try:
                            seconds = ray.get(reference)
                        except RayTaskError as error:
                            if isinstance(error.cause, Stopped):
                                pool.end(worker)
                                waiting.insert(0, job)
                                continue
                            raise (error.cause if isinstance(error.cause, UserError) else error) from None
                        except RayActorError:
                            deaths[job].append(max(committed(directory(recipe, job)), default=0))
                            if deaths[job].count(deaths[job][-1]) >= MOST_DEATHS:
                                raise UserError(
                                    f"the worker of {job} died {MOST_DEATHS} times with no checkpoint between",
                                    hint="look for out-of-memory kills (dmesg), or lower cluster.cpus",
                                ) from None
                            waiting.insert(0, job)
                            continue
                        yield Trained(job, seconds)
                    if worker is None:
                        continue
                    if waiting and not asked and pool.keeps(worker):
                        job = waiting.pop(0)
                        pool.give(worker, job, recipe, job)
                    else:
                        pool.end(worker)  # others may want what it has
    finally:
        pool.close()


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
    """Compute units of features or targets over the cluster; kilobytes travel, audio does not.

    Features are computed on CPUs, whatever the teachers take: they wait for no GPU, and machines without one share them.

    Raises:
        UserError: More utterances than `data.max_quarantined` allows could not be read; what is committed stays.
    """
    quarantine, want = Quarantine(recipe, work), recipe.cluster
    gpus = want.gpus_per_task if any(item.teacher is not None for item in work) else 0
    for index, done in session.map(
        partial(compute, recipe), work, num_cpus=want.cpus_per_task, num_gpus=gpus
    ):
        quarantine.add(done)
        yield work[index], done
