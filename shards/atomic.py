"""Writing a local file whole: the one routine for every file that is its own commit mark.

Guarantees: a reader sees the old file or the new one, also after SIGKILL, a full disk or a power cut: temporary name,
sync, rename, sync of the folder. Two writers of one name never share a temporary file; the last rename wins.
What a killed writer left has a hidden name that tells who was writing, and `clean` removes it once that process is dead.
"""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.errors import FullDisk
from shards.process import started

TEMPORARY = ".tmp-"
LEAST = 65_536  # bytes; with less a disk is full


@contextmanager
def replacing(path: str | os.PathLike, durable: bool = True) -> Iterator[str]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the context ends well.

    The folder is made where it is missing. The temporary file is gone when the context fails. `durable=False` leaves
    out the syncs: for the many small files of a set that has a commit mark with their sha256.

    Raises:
        FullDisk: The disk is full.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, temporary_name())
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(folder)
    except OSError as error:
        raise_if_full(error, path)
        raise
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def create(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """`replacing` as an open file to write."""
    with replacing(path, durable) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()


def write(path: str | os.PathLike, data: bytes | str, durable: bool = True) -> None:
    """Puts a whole file; text as UTF-8. Raises FullDisk."""
    with create(path, durable) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def clean(folder: str | os.PathLike, deep: bool = False) -> None:
    """Removes what killed writers left in a folder, with `deep` below it too; live writers are left alone."""
    for at, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(at, name)
            try:
                if name.startswith(TEMPORARY) and abandoned(name, os.stat(path).st_mtime):
                    os.unlink(path)
            except FileNotFoundError:  # its writer has just finished
                pass
        if not deep:
            return


def sync(path: str | Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raise_if_full(error: OSError, where: str) -> None:
    """Raises `FullDisk` where the error says that the disk or the quota is full; else returns."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise _full(where) from error


def raise_where_full(error: Exception, folder: str | os.PathLike) -> None:
    """`raise_if_full` for errors of libraries that hide the reason: judged by what the disk of `folder` has left."""
    if isinstance(error, OSError):
        raise_if_full(error, os.fspath(folder))
    try:
        refuse_where_full(folder)
    except FullDisk as full:
        raise full from error


def refuse_where_full(folder: str | os.PathLike) -> None:
    """Raises FullDisk where the disk of `folder` has less than `LEAST` left; a folder that is gone says nothing."""
    with contextlib.suppress(FileNotFoundError):
        if shutil.disk_usage(folder).free < LEAST:
            raise _full(os.fspath(folder))


def _full(where: str) -> FullDisk:
    return FullDisk(
        "no space left on the device",
        where=where,
        hint="free some space and run the same command again: finished files are kept, unfinished ones never read",
    )


def temporary_name() -> str:
    """A hidden name that tells which process of which machine is writing."""
    return f"{TEMPORARY}{_host()}-{os.getpid()}-{uuid.uuid4().hex}"


def abandoned(name: str, modified: float) -> bool:
    """Whether the writer of a temporary name is dead; one on another machine counts as dead a day after its last write."""
    host, pid = [*name[len(TEMPORARY) :].rsplit("-", 2), ""][:2]
    if host != _host() or not pid.isdigit():
        return time.time() - modified > 86_400
    return started(int(pid)) is None


def _host() -> str:
    return os.uname().nodename.replace("/", "_")[:64]
