"""A job's process: it runs the command, hands signals on, and writes down what became of it.

    python -m launch.supervise OUTCOME.json COMMAND...

Guarantees: SIGTERM and SIGUSR1, and a file `cancel` beside the outcome, reach the command as SIGUSR1 (save and stop; Ray replaces a driver's handler of SIGTERM by
its own); the outcome names machine and process when it begins, and the exit code when it ends: a file without a code
is that of a killed job. The command's exit code is passed on.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ser.stopping import EXIT_CODE
from shards import atomic

CANCEL = "cancel"  # a file of this name beside the outcome ends the job
_LIBC = ctypes.CDLL(None)
PAUSE = 0.5  # seconds between two looks for a file that says stop
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)


def supervise(
    command: Sequence[str], outcome: Path, env: Mapping[str, str] | None = None, stops: Sequence[Path] = ()
) -> int:
    """Run `command` to its end.

    Args:
        command: Program and arguments.
        outcome: The file in which it is written what became of it.
        env: Its environment; default this process's.
        stops: Files that ask it to save and stop when they are made, as a signal does: a batch system's signals go to one
            process here, to all there, and not across machines.

    Returns:
        Its exit code; 128 + n where signal n ended it.
    """
    begun: dict[str, Any] = {
        "host": os.uname().nodename, "pid": os.getpid(), "started": started(os.getpid()), "begun": now(),
        "job": os.environ.get("SLURM_JOB_ID"), "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)), "code": None,
    }  # fmt: skip
    atomic.write(outcome, json.dumps(begun, indent=1) + "\n")
    process: subprocess.Popen | None = None
    asked = False

    def forward(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGUSR1)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        # A session of its own: a signal to our process group must not reach it twice, or in another shape.
        process = subprocess.Popen(
            list(command),
            env=env,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        atomic.write(outcome, json.dumps(begun | {"child": process.pid}, indent=1) + "\n")
        if asked:
            process.send_signal(signal.SIGUSR1)
        while (code := _wait(process)) is None:
            if not asked and any(stop.exists() for stop in stops):
                forward(signal.SIGUSR1, None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = code if code >= 0 else 128 - code
    if asked and code == 128 + signal.SIGUSR1:
        code = EXIT_CODE  # it was still starting, and did not listen yet: nothing was begun
    atomic.write(outcome, json.dumps(begun | {"code": code, "ended": now()}, indent=1) + "\n")
    return code


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(PAUSE)
    except subprocess.TimeoutExpired:
        return None


def _end_with_parent() -> None:
    """In the child: SIGKILL when the parent is killed, so that no command outlives its job (Linux's prctl)."""
    _LIBC.prctl(1, signal.SIGKILL)


def now() -> str:
    """The time, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def started(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since boot: tells it from a later one of the same number."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


if __name__ == "__main__":
    outcome = Path(sys.argv[1])
    raise SystemExit(supervise(sys.argv[2:], outcome, stops=[outcome.with_name(CANCEL)]))
