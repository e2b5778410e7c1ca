"""Packing, verifying and erasing with a Ray task a shard.

Guarantees: the same bytes as `shards.pack` in one process; tasks get specs (keys, paths, fields) and write to the dataset
themselves, so no audio goes through Ray's object store; a task whose worker died is repeated and finds finished shards.
"""

import importlib.util
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


def over(session: Session, num_cpus: float = 1) -> Callable[[Callable[[Any], Any], list], Iterator]:
    """A `run` for `shards.pack.pack`, `verify` and `erase` whose items are Ray tasks of `num_cpus` each."""

    def run(function: Callable[[Any], Any], items: list) -> Iterator:
        return (result for _, result in session.map(function, items, num_cpus=num_cpus))

    return run


class Parallel:
    """A `run` that starts an embedded Ray once it is given more than one item, where Ray is installed; serial otherwise.

    A context manager: Ray ends with it.

    Args:
        cpus: CPUs of the embedded Ray; default all of the machine.
    """

    def __init__(self, cpus: int | None = None):
        self.cpus, self.stack = cpus, ExitStack()
        self.session: Session | None = None

    def __enter__(self) -> "Parallel":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __call__(self, function: Callable[[Any], Any], items: list) -> Iterator:
        if len(items) < 2 or self.cpus == 1 or importlib.util.find_spec("ray") is None:
            return packing.serial(function, items)
        if self.session is None:
            self.session = self.stack.enter_context(Session(cpus=self.cpus))
        return over(self.session)(function, items)


def pack(session: Session, utterances: Iterable[Utterance], out: str, **options: Any) -> Dataset:
    """`shards.pack.pack` with its other arguments by name, a Ray task a shard."""
    return packing.pack(utterances, out, run=over(session), **options)


def verify(session: Session, url: str) -> list[Problem]:
    """`shards.verify.verify`, a Ray task a shard."""
    return verifying.verify(url, run=over(session))


def erase(session: Session, url: str) -> Dataset:
    """`shards.withdraw.erase`, a Ray task a rewritten shard."""
    return withdrawing.erase(url, run=over(session))
