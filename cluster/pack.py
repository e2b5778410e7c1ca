"""Packing, verifying and erasing with a Ray task a shard.

Guarantees: the same bytes as `shards.pack` in one process; tasks get specs (keys, paths, fields) and write to the dataset
themselves, so no audio goes through Ray's object store; a task whose worker died is repeated and finds finished shards.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from cluster.session import Session
from shards import pack as packing
from shards import verify as verifying
from shards import withdraw as withdrawing
from shards.dataset import Dataset
from shards.utterance import Utterance
from shards.verify import Problem

HERE = 5.0  # seconds, about what an embedded Ray takes to start


def over(session: Session, num_cpus: float = 1) -> Callable[[Callable[[Any], Any], list], Iterator]:
    """A `run` for `shards.pack.pack`, `verify` and `erase` whose items are Ray tasks of `num_cpus` each."""

    def run(function: Callable[[Any], Any], items: list) -> Iterator:
        return (result for _, result in session.map(function, items, num_cpus=num_cpus))

    return run


class Parallel:
    """A `run` that works here for some seconds and hands what is left then to an embedded Ray, where Ray is installed.

    So a small dataset never waits for Ray to start; at least the first item is worked on here, however long it takes, and
    unlike those on Ray it is not repeated where it ends the process. One item, or one CPU, is serial to the end. A context
    manager: Ray ends with it.

    Args:
        cpus: CPUs of the embedded Ray; default all of the machine.
        here: Seconds before Ray is started, if several items are left.
    """

    def __init__(self, cpus: int | None = None, here: float = HERE):
        self.cpus, self.here, self.stack = cpus, here, ExitStack()
        self.session: Session | None = None

    def __enter__(self) -> "Parallel":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __call__(self, function: Callable[[Any], Any], items: list) -> Iterator:
        if len(items) < 2 or self.cpus == 1 or importlib.util.find_spec("ray") is None:
            return packing.serial(function, items)
        return self._run(function, items)

    def _run(self, function: Callable[[Any], Any], items: list) -> Iterator:
        began = time.monotonic()
        for at, item in enumerate(items):
            late = self.session is not None or time.monotonic() - began >= self.here
            if late and len(items) - at > 1:
                if self.session is None:
                    self.session = self.stack.enter_context(Session(cpus=self.cpus))
                yield from over(self.session)(function, items[at:])
                return
            yield function(item)


def pack(session: Session, utterances: Iterable[Utterance], out: str, **options: Any) -> Dataset:
    """`shards.pack.pack` with its other arguments by name, a Ray task a shard."""
    return packing.pack(utterances, out, run=over(session), **options)


def verify(session: Session, url: str) -> list[Problem]:
    """`shards.verify.verify`, a Ray task a shard."""
    return verifying.verify(url, run=over(session))


def erase(session: Session, url: str) -> Dataset:
    """`shards.withdraw.erase`, a Ray task a rewritten shard."""
    return withdrawing.erase(url, run=over(session))
