"""Batches for one rank, in the plan's order, loaded ahead by worker processes.

Guarantees: what is yielded depends on the plan and the dataset only, not on the number of workers; the union over
ranks is the same for every world; starting at step N reads nothing of the steps before it; at most
`workers * prefetch` slots are held ahead. Workers end when their parent ends, however it ends (SIGKILL included), and
leave nothing in /dev/shm or the temporary folder. The global random state is not touched.

Gives up: workers are not forked from this process, because the threads of Ray, DeepSpeed and CUDA in it do not survive
that; they are forked from Python's forkserver, a process of its own that imports torch once (seconds; later loaders
start in a fraction of one), stays until this process ends, and removes its socket if nobody else could. So a script
that makes a Loader needs the usual `if __name__ == "__main__":`.
"""

import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from multiprocessing import connection, forkserver
from multiprocessing.context import BaseContext
from multiprocessing.util import get_temp_dir

import torch
from torch.utils.data import DataLoader, get_worker_info

from shards.batch import Batch, Needs, check_views, load_slot
from shards.dataset import Dataset
from shards.errors import UserError
from shards.parcel import Boxes, Parcel
from shards.plan import Plan
from shards.slots import Slot, slots_of
from shards.views import ViewPolicy

__all__ = ["Batch", "Loader", "Needs", "check_views", "iterate", "load_slot", "worker_context"]


class Loader:
    """Iterates (global step, this rank's batches of that step, in slot order).

    Args:
        dataset: The dataset, opened.
        plan: Global steps of M slots over rows of that dataset.
        needs: What a batch holds.
        policy: The views; None for none.
        rank, world: This process and how many there are; world must divide M.
        start_step, stop_step: Half-open range of global steps.
        workers: Worker processes; 0 loads in this process.
        prefetch: Slots each worker holds ready.
        pin_memory: Page-locked batches, for copies to a GPU that do not block.

    Raises:
        UserError: world does not divide M; stored targets of other views.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        needs: Needs,
        policy: ViewPolicy | None,
        rank: int,
        world: int,
        start_step: int = 0,
        stop_step: int = 0,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ):
        check_views(needs, policy)
        self.dataset, self.plan, self.needs, self.policy = dataset, plan, needs, policy
        self.slots = slots_of(rank, world, plan.config.slots)
        self.steps = range(start_step, stop_step)
        self.workers, self.prefetch, self.pin_memory = workers, prefetch, pin_memory

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        # Slots are taken from the plan here and sent to the workers, a few kilobytes each: the plan with its columns
        # stays in this process, and a worker knows nothing but the dataset.
        mine = (slot for step in self.steps for slot in self._of(step))
        batches = iterate(
            self.dataset, mine, self.needs, self.policy, self.workers, self.prefetch, self.pin_memory
        )
        try:
            for step in self.steps:
                yield step, [next(batches) for _ in self.slots]
        finally:
            batches.close()

    def _of(self, step: int) -> list[Slot]:
        slots = self.plan.step(step)
        return [slots[i] for i in self.slots]


def iterate(
    dataset: Dataset,
    slots: Iterable[Slot],
    needs: Needs,
    policy: ViewPolicy | None = None,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of any slots, in order; `slots` may be a generator and is read `workers * prefetch` ahead.

    Close the iterator (or exhaust it) to end its workers at once.

    Raises:
        UserError: As `load_slot`, from whichever process; stored targets of other views.
    """
    check_views(needs, policy)
    # A worker is sent its next slot before the batch it has delivered is opened here, hence one box more.
    boxes, items = Boxes(workers, prefetch + 1), None
    try:
        items = iter(
            DataLoader(
                _Source(dataset, needs, policy, boxes),
                batch_size=None,
                sampler=slots,
                num_workers=workers,
                collate_fn=_as_is,  # pyright: ignore[reportArgumentType]  # the stub knows batch_size only
                multiprocessing_context=worker_context() if workers else None,
                prefetch_factor=prefetch if workers else None,
                worker_init_fn=partial(_end_with_parent, _own_folder()) if workers else None,
                generator=torch.Generator(),  # else each pass draws from the global random state
            )
        )
        for item in items:
            found = boxes.open(item) if isinstance(item, Parcel) else item
            if isinstance(found, UserError):
                raise found
            yield found.pin_memory() if pin_memory else found
    finally:
        end = getattr(items, "_shutdown_workers", None)
        if end is not None:
            end()
        boxes.close()


class _Source(torch.utils.data.Dataset):
    """Slot -> Batch. Pickled once to each worker; the dataset reopens its files there."""

    def __init__(self, dataset: Dataset, needs: Needs, policy: ViewPolicy | None, boxes: Boxes):
        self.dataset, self.needs, self.policy, self.boxes = dataset, needs, policy, boxes

    def __getitem__(self, slot: Slot) -> Batch | Parcel:
        worker = get_worker_info()
        if worker is None:
            return load_slot(self.dataset, slot, self.needs, self.policy)
        try:
            content: Batch | UserError = load_slot(self.dataset, slot, self.needs, self.policy)
        except UserError as error:
            content = error  # torch would bury its text in a traceback
        return self.boxes.pack(worker.id, content)


def _as_is(item: Batch | Parcel) -> Batch | Parcel:
    return item


def worker_context() -> BaseContext:
    """How workers are started: the forkserver, with what they need imported beforehand (if it does not run yet)."""
    context = multiprocessing.get_context("forkserver")
    # torch by itself too: the server skips what it cannot import, and may not have this process's sys.path.
    context.set_forkserver_preload(["torch", "torch.utils.data", "scipy.signal", "shards.loader"])
    return context


def _clear_away(imported_by: int) -> None:
    """In the forkserver, at its end: removes its socket and the folder around it, if who started it was killed.

    Elsewhere it does nothing: a process that started a forkserver knows its id, one that was forked is not the one that
    imported this file, and any other has no address.

    Args:
        imported_by: Id of the process that imported this file.
    """
    server = forkserver._forkserver
    address, started = getattr(server, "_forkserver_address", None), getattr(server, "_forkserver_pid", None)
    if os.getpid() == imported_by and started is None and isinstance(address, str):
        with contextlib.suppress(OSError):
            os.unlink(address)
            os.rmdir(os.path.dirname(address))  # only if nothing else is in it


atexit.register(_clear_away, os.getpid())


def _own_folder() -> str | None:
    """Where this process keeps multiprocessing's sockets; None where it shares its parent's folder."""
    return get_temp_dir() if multiprocessing.parent_process() is None else None


def _end_with_parent(folder: str | None, worker: int) -> None:
    """Ends this worker the moment its parent is gone, and removes the parent's folder of sockets if it could not.

    torch alone would watch the forkserver instead, which in turn lives until its last worker ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
