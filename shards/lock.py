"""One writer at a time: a lock on a file, which the kernel releases when its holder ends, by SIGKILL too.

Guarantees: while one process holds a path, another is refused at once, told who holds it; processes started by the holder,
by fork or exec, do not hold it and so never keep it after the holder's end. A lock that is given back leaves no file.
Gives up: where no lock can be had (a remote address, a file system without locks or one that cannot be written), nothing
is arbitrated. File systems shared by machines differ in whether a lock on one is seen on another.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shards.errors import UserError

PAUSE = 0.1  # seconds between two tries
_held: dict[int, int] = {}  # descriptor -> process that took it


def _after_fork() -> None:
    # The copies that a child gets by fork would hold the lock as well as the parent's.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def hold(path: str | os.PathLike, busy: str, otherwise: str, patience: float = 0.0) -> Iterator[None]:
    """Hold `path` while the context lasts.

    Args:
        path: A file of its own for the lock, never inside a folder that may be replaced meanwhile.
        busy: What is wrong when another process holds it.
        otherwise: What else to do than to wait for it or to stop it.
        patience: Seconds for which a holder that may be about to end is waited for.

    Raises:
        UserError: Another process holds it: which, on which machine, since when.
    """
    path = os.fspath(path)
    descriptor, made = _take(path, busy, otherwise, time.monotonic() + patience)
    try:
        yield
    finally:
        if descriptor is not None and _held.pop(descriptor, None) == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(path)  # while it is held: nobody else's
            os.close(descriptor)
            if made:
                with contextlib.suppress(OSError):  # not empty, as it should be
                    os.rmdir(os.path.dirname(path))


def holder(path: str | os.PathLike) -> dict[str, str] | None:
    """Who holds `path` now ({pid, host, since}, as far as it has said so); None where nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _read(descriptor) if error.errno == errno.EWOULDBLOCK else None
    else:
        return None
    finally:
        os.close(descriptor)


def _take(path: str, busy: str, otherwise: str, end: float) -> tuple[int | None, bool]:
    """The descriptor that holds the lock, None where there are no locks; and whether the folder was made for it."""
    folder = os.path.dirname(path) or "."
    made = not os.path.isdir(folder)
    while True:
        try:
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return None, False
        _held[descriptor] = os.getpid()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(descriptor) if error.errno == errno.EWOULDBLOCK else None
            del _held[descriptor]
            os.close(descriptor)
            if holder is None:
                return None, False
            if time.monotonic() < end:
                time.sleep(PAUSE)
                continue
            raise _refusal(path, busy, otherwise, holder) from None
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        except FileNotFoundError:
            pass
        # The holder before removed the file between our opening and locking it.
        del _held[descriptor]
        os.close(descriptor)
    about = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(about).encode(), 0)
    return descriptor, made


def _read(descriptor: int) -> dict[str, str]:
    """Who holds the lock, as far as it has said so."""
    for _ in range(10):
        try:
            return json.loads(os.pread(descriptor, 4096, 0))
        except ValueError:  # it has just taken it
            time.sleep(PAUSE / 10)
    return {}


def _refusal(path: str, busy: str, otherwise: str, holder: dict[str, str]) -> UserError:
    pid, host = holder.get("pid", "?"), holder.get("host", "?")
    here = host == os.uname().nodename
    stop = f"kill {pid}" if here else f"kill {pid}, on {host}"
    return UserError(
        busy,
        where=f"{path}: held by process {pid} on {host} since {holder.get('since', '?')}",
        hint=f"wait until it ends, or stop it ({stop}), or {otherwise}",
    )
