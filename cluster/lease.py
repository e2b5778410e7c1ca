"""Who is at work in a folder: a small file, renewed while its writer lives, that others can judge from any machine.

Guarantees: on the machine of the writer a lease lives as long as the process, to the instant (pid and start time, so that
a number given again is not mistaken). Elsewhere it lives for `LASTS` seconds after it was renewed, by the clock of the file
system that holds it, whatever the machines' own clocks say. A holder that could not renew for `FENCE` seconds stops working
before others may take it for dead.
Gives up: no mutual exclusion in the instant of taking it; one driver, which holds a lock, decides who may.
"""

import contextlib
import json
import os
import time
import uuid
from pathlib import Path

from shards.process import place, started

NAME = "lease.json"
RENEW, FENCE, LASTS = 5.0, 20.0, 45.0


class Lease:
    """A lease that this process holds on `folder`."""

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder) / NAME
        self.about = {
            "token": uuid.uuid4().hex,
            **place(),
            "pid": os.getpid(),
            "start": started(os.getpid()),
        }
        self.renewed = time.monotonic()
        self._write()

    def renew(self) -> bool:
        """Say again that the holder lives; False when the lease was lost or could not be renewed for too long."""
        now = time.monotonic()
        if now - self.renewed < RENEW:
            return True
        with contextlib.suppress(OSError):
            if (read(self.path.parent) or self.about)["token"] != self.about["token"]:
                return False
            self._write()
            self.renewed = now
        return now - self.renewed < FENCE

    def release(self) -> None:
        """The work has ended."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _write(self) -> None:
        temporary = self.path.with_name(f".{NAME}-{os.getpid()}")
        temporary.write_text(json.dumps(self.about))
        temporary.replace(self.path)


def read(folder: str | os.PathLike) -> dict | None:
    """What the holder of a folder says of itself; None where there is none."""
    try:
        return json.loads((Path(folder) / NAME).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def alive(folder: str | os.PathLike) -> bool:
    """Whether the holder of a folder may still be at work."""
    about = read(folder)
    if about is None:
        return False
    if {name: about.get(name) for name in place()} == place():
        return started(about["pid"]) == about["start"]
    try:
        return _now(Path(folder)) - (Path(folder) / NAME).stat().st_mtime < LASTS
    except FileNotFoundError:
        return False


def _now(folder: Path) -> float:
    """The time by the clock that stamps files in `folder`."""
    probe = folder / f".clock-{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
