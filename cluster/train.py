"""One training on several workers: Ray Train (TorchTrainer) around `ser.train`, DeepSpeed inside.

The run directory is the truth: on a restart after a lost worker or machine the loop reads its own committed checkpoint
there. Ray gets a number to show, never a copy of the checkpoint. A user's mistake is not a lost worker: it is written down
and ends the training instead of being tried again. A request to stop travels as a file, which every rank sees; so does the
notice that a machine is given up, upon which the training saves at the next step boundary and goes on without it; with
fewer workers where no other takes its place and the recipe allows that (`train.workers_min`).
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.elastic import shrinking
from cluster.place import Home, bind_gloo
from cluster.room import leaving
from cluster.session import PATIENCE, Session
from ser.checkpoint import committed, write_json
from ser.job import Job, directory, train_config
from ser.recipe import Recipe
from ser.stopping import WITHIN, StopFlag, Stopped
from shards import atomic
from shards.atomic import raise_where_full, refuse_where_full
from shards.errors import UserError

MOST_IN_VAIN = 3
# files beside Ray's own of a training
STOP, STOPPED, STEPS, STARTS, WORLD, LAST, LEAVE = (
    "stop",
    "stopped",
    "steps",
    "starts",
    "world",
    "last",
    "leave-",
)


class Training:
    """One job on `train.workers` Ray Train workers, which begin when it is made.

    Ray waits for all of them in a thread: there it leaves Ctrl-C to us (its own handler ends the process with code 0), and
    whoever asks `over` again and again looks at what the training writes. Its workers come all at once or not at all, so of
    two that wait for each other's room one goes on. Where `train.workers_min` are enough, those that find no room within
    `cluster.wait` are missed until it starts again.

    Args:
        session: Whose cluster they are on.
        recipe: The resolved recipe.
        job: Which training.

    Raises:
        UserError: The cluster cannot hold the workers, nor does it within `cluster.wait`.
    """

    def __init__(self, session: Session, recipe: Recipe, job: Job):
        want, self.job, self.say = recipe.cluster, job, session.say
        config = train_config(recipe, job)
        self.workers, self.world, self.short = config.workers, config.workers, False
        self.room = session.room(want.cpus_per_task, want.gpus_per_task, self.workers, config.least)
        self.room.enough()
        self.asked: float | None = None
        self.storage = forget(recipe, job)  # of a killed call
        self.storage.mkdir(parents=True)
        self._failures: list[BaseException] = []
        trainer = _trainer(recipe, job, self.room.patience, session.home, self.storage)
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._failures.append(error)

    def wait(self, seconds: float) -> None:
        """Return when Ray is done with it, or after so many seconds."""
        self._thread.join(seconds)

    def steps(self) -> tuple[int, int] | None:
        """(steps done, steps in all), once a worker has told."""
        with contextlib.suppress(OSError, ValueError):
            done, total = (self.storage / STEPS).read_text().split()
            return int(done), int(total)
        return None

    def ask(self) -> None:
        """Ask it to save at the next step boundary and end; asked again, nothing changes."""
        if self.asked is None:
            self.asked = time.monotonic()
            (self.storage / STOP).touch()

    def over(self) -> bool:
        """Whether it has come to its end.

        Raises:
            UserError: As the training raised it; workers that are lost again and again without a checkpoint between; or a
                machine that does not share the folders.
            Stopped: It was asked to, and has saved where it was, or did not within `WITHIN` seconds; or machines were lost
                and none took their place, for which Ray would wait for ever.
            FullDisk: Nothing more can be written.
        """
        if self._thread.is_alive():
            self._look()
            return False
        for refusal in _refusals(self.storage):
            raise UserError(**json.loads(refusal.read_text()))
        failure = self._failures[0] if self._failures else None
        if mistake := _mistake(failure):
            raise mistake
        if isinstance(failure, Exception):
            raise_where_full(failure, self.storage)  # then no worker could write down why
        if failure is not None:
            raise failure
        if (self.storage / STOPPED).is_file():
            raise Stopped((self.storage / STOPPED).read_text())
        return True

    def _look(self) -> None:
        # where no worker can write down why it ends, Ray would start them again for ever
        refuse_where_full(self.storage)
        self.room.enough()
        begun = (self.storage / STARTS).is_file()
        if self.room.count < self.workers:
            self._count()
        self.room.begun(begun or self.short)
        for node in leaving():
            if not (notice := self.storage / f"{LEAVE}{node}").exists():
                notice.touch()
                self.say(
                    "a machine is given up by its cluster: what trains there saves and goes on elsewhere"
                )
        if self.asked is not None and (not begun or time.monotonic() - self.asked > WITHIN):
            raise Stopped("stopped on request, at the last checkpoint; run the same command to go on")

    def _count(self) -> None:
        """Say when fewer workers find room than are asked for, and with how many it goes on."""
        short, before = self.room.now() < self.workers, self.world
        if short and not self.short:
            self.say(
                f"{self.job}: not all of its {self.workers} workers find room; machines are waited for up to "
                f"{self.room.patience:.0f} s (cluster.wait), then it goes on with fewer (train.workers_min)"
            )
        self.short = short
        with contextlib.suppress(OSError, ValueError):
            self.world = int((self.storage / WORLD).read_text())
        if self.world != before:
            self.say(f"{self.job}: trains with {self.world} of {self.workers} workers now")

    def close(self) -> None:
        """Remove what lies beside the training's directory; workers that have not ended find nothing to go on with."""
        shutil.rmtree(self.storage, ignore_errors=True)


def _trainer(recipe: Recipe, job: Job, patience: float, home: Home, storage: Path) -> Any:
    """Ray's trainer of one job; for room for all workers it waits `patience` seconds where fewer are enough."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    want, config = recipe.cluster, train_config(recipe, job)
    gpu = want.gpus_per_task > 0
    return TorchTrainer(
        _loop,
        train_loop_config={
            "recipe": recipe.model_dump_json(),
            "job": job,
            "home": home,
            "storage": str(storage),
        },
        torch_config=_on_its_network(home)(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": want.cpus_per_task, **({"GPU": want.gpus_per_task} if gpu else {})},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=-1),  # `_note_start` counts those that lead nowhere
            callbacks=shrinking(config, want, patience, storage / STARTS, storage / STOP),
        ),
    )


def _mistake(failure: BaseException | None) -> UserError | None:
    """The user's mistake for which the workers did not begin: Ray's own word for it wraps a task's, which wraps ours."""
    task = getattr(failure, "controller_failure", None)
    cause = getattr(task, "cause", task)
    return cause if isinstance(cause, UserError) else None


def _on_its_network(home: Home) -> Any:
    """Ray's configuration of torch whose workers first go home and choose the interface over which gloo talks.

    A machine that does not share the home cannot write down so: what is raised here, unlike in the loop, ends the training.
    """
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(home.enter)
            worker_group.execute(bind_gloo)
            super().on_start(worker_group, backend_config)

    class OnItsNetwork(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    return OnItsNetwork


def forget(recipe: Recipe, job: Job) -> Path:
    """Remove what Ray keeps beside a training's directory, and tell where that is.

    A driver that is killed when its workers are done leaves it, and the training is never started again.
    """
    folder = directory(recipe, job).resolve()
    storage = folder.parent / f".{folder.name}-ray"
    shutil.rmtree(storage, ignore_errors=True)
    return storage


def _loop(config: dict[str, Any]) -> None:
    """What every worker runs; Ray Train has set RANK, WORLD_SIZE and the process group."""
    import ray.train

    from ser.train import train

    storage = Path(config["storage"])
    if _refusals(storage):
        return
    context = ray.train.get_context()
    rank = context.get_world_rank()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    recipe = Recipe.model_validate_json(config["recipe"])
    leave = storage / f"{LEAVE}{ray.get_runtime_context().get_node_id()}"
    try:
        config["home"].enter()
        if rank == 0:
            atomic.write(storage / WORLD, str(context.get_world_size()))
            _note_start(storage, directory(recipe, config["job"]))
        train(recipe, config["job"], _teller(storage / STEPS), PATIENCE, StopFlag(storage / STOP, leave))
    except Stopped as stopped:
        if not (storage / STOP).exists():
            raise  # to be started again, on machines that stay
        if rank == 0:
            atomic.write(storage / STOPPED, str(stopped))
        return
    except UserError as error:
        # Raised all the same: the other workers may wait in a collective. The restart that follows finds the file.
        mine = storage / f"refusal-{rank}.json"
        with contextlib.suppress(OSError):  # on a full disk, or of a driver that has gone
            write_json(mine, {"what": error.what, "where": error.where, "hint": error.hint})
        raise
    except Exception as error:
        if storage.is_dir():
            atomic.write(storage / LAST, f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    ray.train.report({"step": max(committed(directory(recipe, config["job"])), default=0)})


def _note_start(storage: Path, folder: Path) -> None:
    """Write down from which step the workers start, the first time or again.

    Raises:
        UserError: From the same one as the last `MOST_IN_VAIN` times.
    """
    log, newest = storage / STARTS, str(max(committed(folder), default=0))
    starts = [*(log.read_text().split() if log.is_file() else ()), newest]
    atomic.write(log, " ".join(starts))
    if starts[-MOST_IN_VAIN - 1 :].count(newest) > MOST_IN_VAIN:
        last = (storage / LAST).read_text() if (storage / LAST).is_file() else "nothing"
        raise UserError(
            f"the workers of this training were lost {MOST_IN_VAIN} times in a row with no checkpoint between; the last said: {last}",
            where=str(folder),
            hint="look for out-of-memory kills (dmesg), or save more often (train.checkpoint_every)",
        )


def _teller(path: Path) -> Callable[[int, int], None]:
    """Writes how far a training is, once a second."""
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            atomic.write(path, f"{done} {total}")

    return tell


def _refusals(storage: Path) -> list[Path]:
    """Mistakes that workers wrote down."""
    return sorted(storage.glob("refusal-*.json"))
