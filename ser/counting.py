"""Work in parts of a known number, told to whoever shows it."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def steps(progress: Callable[[int, int], object] | None, total: int) -> Callable[[T], T]:
    """A function that passes on what one part made, and tells `progress` (parts done, parts in all) that it is done."""
    done = 0

    def step(made: T) -> T:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)
        return made

    return step
