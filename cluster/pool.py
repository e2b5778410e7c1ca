"""Many trainings on a few long-lived Ray workers, and many units of targets as Ray tasks.

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
from typing import Any

from cluster.place import Home
from cluster.room import Room, leaving
from cluster.session import PATIENCE
from ser.checkpoint import committed
from ser.job import Job, directory
from ser.produce import Done, Work
from ser.quarantine import Quarantine
from ser.recipe import Recipe
from ser.stopping import WITHIN, StopFlag, Stopped, saving
from shards.errors import UserError

MOST_DEATHS = 3
HELD = 300.0  # seconds for which a worker of a shared cluster is kept over several trainings
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


class Pool:
    """At most `most` workers of a recipe's size. One gets work when it is there; until then others do it.

    Args:
        recipe: The resolved recipe.
        most: Workers at once.
        home: Where they work.
        held: Seconds after which a worker is given back after its training, so that who shares the cluster gets a turn.
    """

    def __init__(self, recipe: Recipe, most: int, home: Home, held: float = math.inf):
        import ray

        want = recipe.cluster
        self.actor = ray.remote(TrainWorker).options(
            num_cpus=want.cpus_per_task, num_gpus=want.gpus_per_task, max_concurrency=2
        )
        self.recipe, self.most, self.home, self.held = recipe, most, home, held
        self.coming: dict[Any, Any] = {}  # what answers when it is there -> worker
        self.running: dict[Any, tuple[Any, Job]] = {}
        self.since: dict[Any, float] = {}
        self.nodes: dict[Any, str] = {}
        self.told: set[Any] = set()
        self.lost = 0  # in a row, before they were there

    def hire(self, needed: int) -> None:
        """Ask for workers until `needed` of them are there or coming; let those go that nothing is left for."""
        while len(self.coming) + len(self.running) < min(self.most, needed):
            worker = self.actor.remote(self.home)
            self.coming[worker.where.remote()] = worker
        while self.coming and len(self.coming) + len(self.running) > needed:
            self.end(self.coming.popitem()[1])

    def give(self, worker: Any, job: Job) -> None:
        """Start a training on a worker that is there."""
        self.since.setdefault(worker, time.monotonic())
        self.running[worker.run.remote(self.recipe, job)] = worker, job

    def keeps(self, worker: Any) -> bool:
        """Whether a worker that is done with a training may do another."""
        return worker not in self.told and time.monotonic() - self.since[worker] < self.held

    def ask(self, node: str | None = None) -> bool:
        """Ask those that train, on one machine or on all, to save and stop; whether there were any not asked before."""
        found = {
            worker for worker, _ in self.running.values() if node in (None, self.nodes[worker])
        } - self.told
        for worker in found:
            worker.stop.remote()
        self.told |= found
        return bool(found)

    def end(self, worker: Any) -> None:
        """Give back a worker and what it has of the cluster."""
        import ray

        self.since.pop(worker, None)
        self.nodes.pop(worker, None)
        self.told.discard(worker)
        ray.kill(worker)

    def came(self, reference: Any) -> Any:
        """The worker that is there now; None where it died on the way.

        Raises:
            UserError: That happened too often.
        """
        import ray
        from ray.exceptions import RayActorError

        worker = self.coming.pop(reference)
        try:
            self.nodes[worker] = ray.get(reference)
        except RayActorError as error:
            self.lost += 1
            if self.lost >= 10 * MOST_DEATHS:
                raise UserError(
                    f"workers died {self.lost} times before they began: {str(error).splitlines()[0]}",
                    hint="is this package installed on every machine of the cluster?",
                ) from None
            return None
        self.lost = 0
        return worker

    def close(self) -> None:
        """End them all."""
        for worker in [*self.coming.values(), *(worker for worker, _ in self.running.values())]:
            self.end(worker)


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
    pool = Pool(recipe, workers, home or Home(os.getcwd()), HELD if shared else math.inf)
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
                    if waiting and not asked and (worker not in pool.since or pool.keeps(worker)):
                        pool.give(worker, waiting.pop(0))
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
