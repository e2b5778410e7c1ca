"""A bounded folder of local copies of remote bytes, shared by all processes of one machine.

Guarantees: an entry is seen whole or not at all (temporary name, sync, rename), also after SIGKILL; entries are dropped
least recently used first; a reader that holds an entry open or mapped keeps it after it was dropped. Files that are not
entries by their name are neither counted nor touched: the user may have named a folder that holds others.
Gives up: the bound is kept by scanning the folder each time a process has written 1/64 of the limit, down to 7/8 of it,
so it holds for up to 8 writing processes and grows by 1/64 for each further one. Not for network folders that several
machines share.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from shards.atomic import TEMPORARY, abandoned, replacing
from shards.errors import UserError

DEFAULT_LIMIT = 16 << 30
# What is kept is named by a digest: of remote bytes and their block, of a dataset's columns, of what a file was asked for.
ENTRY = re.compile(r"(plan-\d+-|sha256-)?[0-9a-f]{32,64}(-\d+)?")
HALF = re.compile(re.escape(TEMPORARY) + r".+-\d+-[0-9a-f]{32}")


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
    """Byte strings in a folder, named by `ENTRY`, at most `limit` bytes of them.

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
        assert ENTRY.fullmatch(name), name  # else it would never be dropped
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

    def entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        """What is kept; nothing where there is no folder yet."""
        return self._named(ENTRY)

    def drop(self, prefix: str) -> None:
        """Removes every entry whose name starts with `prefix`."""
        for path, _ in self.entries():
            if path.name.startswith(prefix):
                path.unlink(missing_ok=True)

    def trim(self, keep: str | None = None) -> None:
        """Drops the least recently used entries down to 7/8 of the limit, and the leavings of dead processes."""
        for path, state in self._named(HALF):
            if abandoned(path.name, state.st_mtime):
                path.unlink(missing_ok=True)
        entries = sorted((state.st_mtime_ns, state.st_size, path.name) for path, state in self.entries())
        total = sum(size for _, size, _ in entries)
        for _, size, name in entries:
            if total <= self.limit * 7 // 8:
                break
            if name != keep:
                (self.directory / name).unlink(missing_ok=True)
                total -= size
        self._unscanned = 0

    def _named(self, names: re.Pattern[str]) -> Iterator[tuple[Path, os.stat_result]]:
        """Files here of such names, as they are now."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):  # dropped by another process since
                    if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        yield Path(entry.path), entry.stat()
