"""A process that starts others and outlives them by no one: each in a process group of its own, and reaped whole.

Guarantees: when a child ends, or whoever asked for it goes away (by SIGKILL too: the pipe to it closes), every process that
the child started is dead before the next word is said, those in other sessions as well; so what they held of a GPU is
free. While a child lives its folder has a lease, and losing that lease ends the child.
Gives up: Linux only. If this process is killed itself, the child dies with it, but what the child had started may not.

It reads a line of JSON for each child from its standard input: {"entry": "module:function", "argument": text, "folder": where
the lease and `log.txt` lie, "cwd": ..., "environment": {...}}, and answers each with a line {"code": exit code, negative for
a signal}. A file `stop` in the folder ends the child when it has saved, at once where it says `now`. Children are forked from here after `preload`, so what is slow to import is imported once.
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cluster.lease import Lease
from ser.stopping import WITHIN

GRACE = 10.0  # seconds in which a training that nobody waits for any more may save where it is
STOP, NOW = "stop", "now"
_DEATH_SIGNAL, _SUBREAPER = 1, 36  # prctl


class Stop(Exception):
    """This process was asked to stop."""


def serve(preload: str) -> None:
    """Until the standard input ends."""
    if os.fork():  # Ray's worker kills its own children as it ends, and this one has work to do then
        os._exit(0)
    _prctl(_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _asked)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # nothing that is imported speaks into the answers
    for module in filter(None, preload.split(",")):
        importlib.import_module(module)
    pending = b""
    while True:
        while b"\n" not in pending:
            more = os.read(requests, 65536)
            if not more:
                return
            pending += more
        line, _, pending = pending.partition(b"\n")
        code = attend(json.loads(line), requests, answers)
        os.write(answers, json.dumps({"code": code}).encode() + b"\n")


def attend(request: dict[str, Any], requests: int, answers: int) -> int:
    """Run one child to its end and reap all that it leaves; its exit code, negative for a signal."""
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(folder)
    pid = os.fork()
    if pid == 0:
        os.close(requests)
        os.close(answers)
        _become(request, folder)
    descriptor = os.pidfd_open(pid)
    watch = select.poll()
    watch.register(descriptor, select.POLLIN)
    watch.register(requests, select.POLLHUP)  # the asker is gone
    try:
        while True:
            found = dict(watch.poll(500))
            if descriptor in found:
                break
            if found or not lease.renew():
                _ask_to_stop(pid, descriptor, lease)
                raise SystemExit(1)
            if (folder / STOP).exists():
                if (folder / STOP).read_text() != NOW:
                    _ask_to_stop(pid, descriptor, lease, WITHIN)
                break
    except Stop:
        _ask_to_stop(pid, descriptor, lease)
        raise SystemExit(1) from None
    finally:
        code = reap(pid)
        os.close(descriptor)
        lease.release()
    return code


def _ask_to_stop(pid: int, descriptor: int, lease: Lease, patience: float = GRACE) -> None:
    """Ask the child to stop, and wait a moment for it. It alone: what it has started may be needed for saving."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    watch = select.poll()
    watch.register(descriptor, select.POLLIN)
    end = time.monotonic() + patience
    while time.monotonic() < end and lease.renew() and not watch.poll(200):
        pass


def reap(pid: int) -> int:
    """Kill a child's group and all that descends from it; the child's exit code, negative for a signal."""
    code = -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    while True:
        # Whoever lost its parent was given to this process, in whatever session it is.
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)


def _children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text().split()]


def _become(request: dict[str, Any], folder: Path) -> None:
    """The child: does what was asked and never returns."""
    code = 1
    try:
        os.setsid()
        _prctl(_DEATH_SIGNAL, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        module, _, function = request["entry"].partition(":")
        code = int(getattr(importlib.import_module(module), function)(request["argument"]) or 0)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _asked(number: int, frame: Any) -> None:
    raise Stop


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    with contextlib.suppress(Stop):
        serve(sys.argv[1])
