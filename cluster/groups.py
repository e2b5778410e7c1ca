"""Trainings of several workers each, as many side by side as the cluster holds.

One begins only where all of its workers find room beside those that run, within `cluster.cpus`; so it does not stand in
line behind its own kind, and of what others hold Ray gives each all of its workers or none: two never wait for each
other's half. Large ones come first, small ones fill what is left, and machines that join get work. One that fails ends
the others, who save first.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from cluster.session import Session
from cluster.train import Training
from ser.job import Job, train_config
from ser.recipe import Recipe
from ser.stopping import Stopped, saving

LOOK = 0.5  # seconds between two looks at what runs
Progress = Callable[[Job, int, int], None]


def train_groups(
    session: Session, recipe: Recipe, jobs: Sequence[Job], progress: Progress | None = None
) -> Iterator[Job]:
    """Train jobs on `train.workers` Ray Train workers each; yields each as it finishes.

    Args:
        session: On whose cluster.
        recipe: The resolved recipe.
        jobs: Which trainings.
        progress: Told (job, steps done, steps in all) now and then.

    Raises:
        UserError: Of a training, as `Training.over` has it; or a cluster that cannot hold one.
        Stopped: A signal asked this process to stop, and trainings have saved where they were; or the cluster cannot hold
            one any more, for as long as `cluster.wait`.
    """
    want = recipe.cluster
    workers = {job: train_config(recipe, job).workers for job in jobs}
    waiting = sorted(jobs, key=lambda job: -workers[job])
    if waiting:
        least = train_config(recipe, waiting[0]).least
        session.room(want.cpus_per_task, want.gpus_per_task, workers[waiting[0]], least).wait()
    running: list[Training] = []
    failures: list[Exception] = []
    asked: list[float] = []
    with contextlib.ExitStack() as ending, saving(lambda: asked.append(time.monotonic())):
        while running or (waiting and not asked):
            while waiting and not asked and (job := _next(session, recipe, waiting, workers, running)):
                waiting.remove(job)
                running.append(Training(session, recipe, job))
                ending.callback(running[-1].close)
            if running:
                running[0].wait(LOOK)
            for one in list(running):
                if asked:
                    one.ask()
                if progress and (steps := one.steps()):
                    progress(one.job, *steps)
                try:
                    over = one.over()
                except Exception as failure:
                    failures.append(failure)
                    asked.append(time.monotonic())  # the others end in order, and this one begins no more
                    over = True
                if over:
                    running.remove(one)
                    one.close()
                    if not failures:
                        yield one.job
        if failures:  # what nobody asked for says more
            raise next((one for one in failures if not isinstance(one, Stopped)), failures[0])


def _next(
    session: Session, recipe: Recipe, waiting: list[Job], workers: dict[Job, int], running: list[Training]
) -> Job | None:
    """The first that finds room beside those that run; where nothing runs the first, which waits for machines or says why not."""
    want = recipe.cluster
    places = session.room(want.cpus_per_task, want.gpus_per_task).now()
    if want.cpus_per_task > 0:
        places = min(places, int(session.resources()["CPU"] / want.cpus_per_task + 1e-9))
    places -= sum(one.world for one in running)
    return next((job for job in waiting if workers[job] <= places), None if running else waiting[0])
