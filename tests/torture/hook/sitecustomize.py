"""On PYTHONPATH of a job under torture: counts the phases of its work in every process, and strikes once at a drawn moment.

SER_TORTURE holds JSON: `work`, the folder (or URL) whose files count; `counts`, a folder with a file a phase that grows by a
byte a moment; and for a fault `phase`, `at` (which moment, from 1), `victim`, `flag` (a file made by whoever strikes, so
that it happens once), `s3` (pid of the server), `full` (file to fill the disk with), `clock` (libfaketime's file) and `jump`,
`cut` (host -> the command that takes it off the network).
"""

import contextlib
import errno
import importlib.abc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

TOLD = json.loads(os.environ.get("SER_TORTURE", "{}"))
MODULES = (
    "shards.atomic",
    "shards.store",
    "ser.writing",
    "ser.checkpoint",
    "ser.distributed",
    "launch.display",
)
ME = " ".join(sys.orig_argv)
MARK = os.environ.get("SER_TEST_MARK", "").encode()


def moment(phase: str) -> None:
    """One more moment of a phase, over all processes of the job."""
    counter = os.open(os.path.join(TOLD["counts"], phase), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(counter, b".")
    at = os.fstat(counter).st_size
    os.close(counter)
    if phase == TOLD.get("phase") and at >= TOLD["at"]:
        strike()


def strike() -> None:
    """Do what was drawn, once."""
    try:
        flag = os.open(TOLD["flag"], os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    victim, pid = TOLD["victim"], None
    if victim not in ("disk", "clock", "network"):
        pid = find(victim)
    about = {"pid": pid, "by": title(os.getpid()), "of": title(pid), "ray": os.environ.get("RAY_TMPDIR")}
    about["node"] = os.environ.get("SLURMD_NODENAME")
    os.write(flag, json.dumps(about).encode())
    os.close(flag)
    if victim == "disk":
        fill()
    elif victim == "clock":
        with open(TOLD["clock"], "w") as file:
            file.write(TOLD["jump"])
        time.sleep(1.5)  # libfaketime looks once a second
    elif victim == "network":
        # this host, unless it is the one that the command was typed on
        command = TOLD["cut"].get(os.environ.get("SER_TEST_HOST")) or TOLD["cut"]["h2"]
        subprocess.run(command, check=True)
    elif victim == "slurm-node":
        time.sleep(600)  # whoever reads the flag kills this machine, this process with it
    elif pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def fill() -> None:
    """Leave no byte on the small disk."""
    with open(TOLD["full"], "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def find(victim: str) -> int | None:
    """Pid of the victim among the job's own processes; whoever works at this moment goes first."""
    if victim == "s3":
        return TOLD["s3"]
    if victim == "slurm-node":
        return os.getpid()
    if victim == "driver":
        return int(os.environ["SER_TORTURE_DRIVER"])
    ray_worker = "default_worker.py" in ME
    if victim in ("worker", "actor") and ray_worker:
        return os.getpid()
    if victim == "trial" and not ray_worker and os.environ.get("SER_TORTURE_DRIVER") != str(os.getpid()):
        return os.getpid()
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        told = title(pid)
        wanted = {
            "raylet": "/raylet/raylet --" in told,
            "worker": told.startswith("ray::") and "Agent" not in told,
            "actor": told.startswith("ray::") and "TrainWorker" in told,
        }
        if wanted.get(victim) and ours(pid):
            return pid
    return None


def ours(pid: int) -> bool:
    """Whether a process belongs to this job."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return MARK in file.read()
    except OSError:
        return False


def title(pid: int | None) -> str:
    """What a process calls itself."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError as error:
        return "" if error.errno in (errno.ENOENT, errno.ESRCH) else str(error)


# -- where the phases are --------------------------------------------------------------------------------------------


def before(owner, name: str, phase: str, when=lambda *args: True) -> None:
    """A moment before each call."""
    original = getattr(owner, name)

    def wrapper(*args, **kwargs):
        if when(*args):
            moment(phase)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def after(owner, name: str, phase: str) -> None:
    """A moment after each call."""
    original = getattr(owner, name)

    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        moment(phase)
        return result

    setattr(owner, name, wrapper)


def inside(owner, name: str, phase: str, when=lambda *args: True) -> None:
    """A moment when the body of a context is through and its end is still to come: written, not yet published."""
    original = getattr(owner, name)

    @contextlib.contextmanager
    def wrapper(*args, **kwargs):
        with original(*args, **kwargs) as value:
            yield value
            if when(*args):
                moment(phase)

    setattr(owner, name, wrapper)


def within(*paths) -> bool:
    return any(str(path).startswith(TOLD["work"]) for path in paths)


def patch(name: str, module) -> None:
    if name == "shards.atomic":
        inside(module, "replacing", "write", within)
    elif name == "shards.store":  # object stores; local files go through `atomic`
        inside(module.Store, "create", "write", lambda self, *_: not self.is_local)
        for point in (before, after):
            original = module.Store.put
            point(module.Store, "put", "write" if point is before else "commit")
            module.Store.put = remote(original, module.Store.put)
    elif name == "ser.writing":
        after(module.Writing, "_write", "checkpoint")
    elif name == "ser.checkpoint":
        before(module, "_commit", "checkpoint")
    elif name == "ser.distributed":
        for function in ("any_rank", "sum_ranks", "barrier"):
            before(module, function, "collective", lambda *args: args[-1].size > 1)
    elif name == "launch.display":
        before(module.Bar, "update", "idle", lambda self, done, *_: done > 0)


def remote(local, other):
    """`local` for stores on this machine, `other` for the rest."""
    return lambda self, *args: (local if self.is_local else other)(self, *args)


class Hook(importlib.abc.MetaPathFinder):
    """Patches modules as they are imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in MODULES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(name, module)

        spec.loader.exec_module = exec_module
        return spec


if TOLD:
    if "launch.cli" in ME:
        os.environ["SER_TORTURE_DRIVER"] = str(os.getpid())
    for rename in ("replace", "rename"):
        before(os, rename, "commit", within)
    sys.meta_path.insert(0, Hook())
