"""Every moment at which a process touches the disk, counted, and SIGKILL at a chosen one of them.

A process that dies inside a write leaves the file that it was about to sync or to rename cut in half.
"""

import os
import random
import signal
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults import patch

HALF = "half written"


def watch(log: str | None = None, at: int = 0, steps: Sequence[str] = ()) -> None:
    """In a process that may be lost: count what it does to files, and die there.

    Args:
        log: File that gets a line a moment: what happens then.
        at: The moment to die at, from 1; 0 for none.
        steps: More to count than syncs, renames and deletions: "module:attribute".
    """
    count = 0

    def tick(what: str, half: str = "") -> None:
        nonlocal count
        count += 1
        if log:
            with open(log, "a") as file:
                file.write(what + "\n")
        if count == at:
            if half:
                os.truncate(half, os.path.getsize(half) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def around(name: str) -> Callable[[Callable], Callable]:
        def make(original: Callable) -> Callable:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if path := _written(name, args):
                    tick(HALF, path)
                tick(f"before {name}")
                result = original(*args, **kwargs)
                tick(f"after {name}")
                return result

            return wrapper

        return make

    for where in ("os:fsync", "os:replace", "os:unlink", *steps):
        patch(where, around(where.rpartition(":")[2]))


def _written(name: str, args: Sequence[Any]) -> str:
    """The file that is whole once this call is made, "" where there is none."""
    if name == "replace":
        return os.fspath(args[0])
    if name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):
        return os.readlink(f"/proc/self/fd/{args[0]}")
    return ""


def drawn(log: Path, kind: str) -> int:
    """One moment of a kind, by a fixed seed."""
    return random.Random(kind).choice(
        [at for at, what in enumerate(log.read_text().splitlines(), 1) if what == kind]
    )
