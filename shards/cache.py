"""A bounded folder of local copies of remote bytes, shared by all processes of one machine.

Guarantees: an entry is seen whole or not at all (temporary name, sync, rename), also after SIGKILL; entries are dropped
least recently used first; a reader that holds an entry open or mapped keeps it after it was dropped.
Gives up: the bound is kept by scanning the folder each time a process has written 1/64 of the limit, down to 7/8 of it,
so it holds for up to 8 writing processes and grows by 1/64 for each further one. Not for network folders that several
machines share.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from shards.atomic import TEMPORARY, abandoned, replacing
from shards.errors import UserError

DEFAULT_LIMIT = 16 << 30


def default_directory() -> Path:
    """`$SER_CACHE`, else `$XDG_CACHE_HOME/ser`, else `~/.cache/ser`; a temporary folder where no home can be written."""
    named = os.environ.get("SER_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) / "ser" if base else Path.home() / ".cache" / "ser"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.gettempdir()) / f"ser-cache-{os.getuid()}"


def scratch(url: str) -> Path:
    """Where the run at `url` is worked on: `$SER_SCRATCH/NAME-HASH`, else beside the cache folder."""
    named = os.environ.get("SER_SCRATCH")
    beside = default_directory()
    base = Path(named) if named else beside.with_name(beside.name + "-runs")
    url = url.rstrip("/")
    return (base / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}").absolute()


def default_limit() -> int:
    """`$SER_CACHE_BYTES`, else 16 GiB."""
    named = os.environ.get("SER_CACHE_BYTES")
    if not named:
        return DEFAULT_LIMIT
    try:
        return int(named)
    except ValueError:
        raise UserError(
            f"SER_CACHE_BYTES={named!r} is not a whole number of bytes",
            where="environment",
            hint=f"export SER_CACHE_BYTES={DEFAULT_LIMIT}",
        ) from None


class Cache:
    """Named byte strings in a folder, at most `limit` bytes of them.

    Args:
        directory: Folder, made when first written; default `default_directory()`.
        limit: Bytes; default `default_limit()`.
    """

    def __init__(self, directory: str | Path | None = None, limit: int | None = None):
        self.directory = Path(directory) if directory else default_directory()
        self.limit = default_limit() if limit is None else limit
        self._unscanned: int | None = (
            None  # bytes written since the last scan; None: never scanned by this process
        )

    def get(self, name: str) -> str | None:
        """Path of an entry, marked as just used, or None. It may vanish any time: open it and expect that."""
        path = self.directory / name
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return str(path)

    def put(self, name: str, data: bytes) -> str | None:
        """Stores an entry and returns its path; None where it is larger than the whole cache."""
        return self.fill(name, len(data), lambda path: Path(path).write_bytes(data))

    def fill(self, name: str, size: int, write: Callable[[str], object]) -> str | None:
        """Like `put`, with the bytes written by `write(temporary path)`.

        Raises:
            UserError: The disk is full.
        """
        if size > self.limit:
            return None
        final = self.directory / name
        with replacing(final) as temporary:
            write(temporary)
        if self._unscanned is not None:
            self._unscanned += size
        if self._unscanned is None or self._unscanned * 64 > self.limit:
            self.trim(keep=name)
        return str(final)

    def drop(self, prefix: str) -> None:
        """Removes every entry whose name starts with `prefix`."""
        for path in self.directory.glob(f"{prefix}*"):
            path.unlink(missing_ok=True)

    def trim(self, keep: str | None = None) -> None:
        """Drops the least recently used entries down to 7/8 of the limit, and the leavings of dead processes."""
        entries = []
        with os.scandir(self.directory) as found:
            for entry in found:
                try:
                    state = entry.stat()
                except FileNotFoundError:
                    continue
                if entry.name.startswith(TEMPORARY):
                    if abandoned(entry.name, state.st_mtime):
                        Path(entry.path).unlink(missing_ok=True)
                else:
                    entries.append((state.st_mtime_ns, state.st_size, entry.name))
        total = sum(size for _, size, _ in entries)
        if total > self.limit * 7 // 8:
            for _, size, name in sorted(entries):
                if total <= self.limit * 7 // 8:
                    break
                if name != keep:
                    (self.directory / name).unlink(missing_ok=True)
                    total -= size
        self._unscanned = 0
