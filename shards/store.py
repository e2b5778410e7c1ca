"""Reading and writing a folder of files that lies on disk or behind any fsspec URL.

Guarantees: `put` and `create` publish a file whole or not at all (local: temporary name, sync, rename, sync of the folder;
elsewhere one PUT), also under SIGKILL and on a full disk; `list` never shows unfinished files; nothing here trusts a
listing cache. Remote ranges of a named version are read in blocks of 4 MiB, neighbours in one request, and kept in the bounded
local cache. Remote calls are tried again while a fault may pass (`shards.remote`). A Store can be pickled and used after fork.
Gives up: two writers of one name are not arbitrated, the last one wins, but for `claim`. Credentials and endpoints come from
the environment (AWS_ENDPOINT_URL, AWS_*, FSSPEC_*) and the drivers' usual files, never from recipes or datasets.
"""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import fsspec

from shards import atomic
from shards.cache import Cache
from shards.remote import connect, persist

T = TypeVar("T")
BLOCK = 4 << 20
SPAN = 32 << 20  # bytes asked for in one request, at most
GAP = 256 << 10  # uncached remote ranges closer than this are fetched as one


class Store:
    """A folder of files. Names are relative, with "/" between the parts.

    Args:
        url: Local path or fsspec URL (`s3://bucket/folder`).
        cache: Where remote bytes are kept; default the machine's (`$SER_CACHE`, `$SER_CACHE_BYTES`).

    Raises:
        UserError: The URL's protocol is unknown, its driver is not installed, or a password stands in it.
    """

    def __init__(self, url: str | os.PathLike, cache: Cache | None = None):
        self.url = os.fspath(url).rstrip("/") or "/"
        protocol = self.url.split("://", 1)[0] if "://" in self.url else "file"
        self.is_local = protocol in ("file", "local")
        self.cache = cache or Cache()
        self._sizes: dict[tuple[str, str], int] = {}
        self._fs, self._pid = None, -1
        if self.is_local:
            self.root = os.path.abspath(self.url.split("://", 1)[-1])
        else:
            _, self.root = connect(self.url)

    def __getstate__(self):
        return {"url": self.url, "directory": self.cache.directory, "limit": self.cache.limit}

    def __setstate__(self, state):
        self.__init__(state["url"], Cache(state["directory"], state["limit"]))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, name: str) -> str:
        """Full path of a name, as its file system spells it."""
        return f"{self.root}/{name}" if name else self.root

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system, opened anew in each process: async drivers do not survive a fork."""
        if self._fs is None or self._pid != os.getpid():
            self._fs, self._pid = connect(self.url)[0], os.getpid()
        return self._fs

    def _ask(self, call: Callable[[Any], T]) -> T:
        """What the remote file system says, asked again while a fault may pass."""
        return persist(lambda: call(self.fs), self.url)

    # Reading

    def read(self, name: str) -> bytes:
        """A whole file, past every cache. Raises FileNotFoundError."""
        if self.is_local:
            with open(self.path(name), "rb") as file:
                return file.read()
        return self._ask(lambda fs: fs.cat_file(self.path(name)))

    def read_range(self, name: str, offset: int, size: int, version: str | None = None) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends before that."""
        return self.read_ranges(name, [(offset, size)], version)[0]

    def read_ranges(
        self, name: str, ranges: Sequence[tuple[int, int]], version: str | None = None
    ) -> list[bytes]:
        """Several (offset, size) ranges of one file, in the order asked; short where the file ends.

        Args:
            version: Names the content (its sha256, say). With it, remote blocks are kept in the local cache; without it
                every remote call asks the server.
        """
        if self.is_local:
            descriptor = os.open(self.path(name), os.O_RDONLY)
            try:
                return [os.pread(descriptor, size, offset) for offset, size in ranges]
            finally:
                os.close(descriptor)
        if version is None:
            return self._read_spans(name, ranges)
        return self._read_blocks(name, ranges, version)

    def _read_spans(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        total = self.size(name)
        spans: list[list[int]] = []
        span_of = [0] * len(ranges)
        for i in sorted(range(len(ranges)), key=lambda i: ranges[i]):
            start, stop = ranges[i][0], min(total, ranges[i][0] + ranges[i][1])
            if spans and start <= spans[-1][1] + GAP and stop - spans[-1][0] <= SPAN:
                spans[-1][1] = max(spans[-1][1], stop)
            else:
                spans.append([start, stop])
            span_of[i] = len(spans) - 1
        got = self._fetch(name, [(start, stop) for start, stop in spans])
        return [
            got[s][max(0, offset - spans[s][0]) : max(0, offset - spans[s][0]) + size]
            for (offset, size), s in zip(ranges, span_of)
        ]

    def _fetch(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        found: list[Any] = [None if stop > start else b"" for start, stop in spans]

        def ask(fs: fsspec.AbstractFileSystem) -> None:
            """Only what is still missing: of many ranges some always meet the fault."""
            due = [i for i, data in enumerate(found) if data is None]
            starts, stops = [spans[i][0] for i in due], [spans[i][1] for i in due]
            got = fs.cat_ranges([self.path(name)] * len(due), starts, stops, on_error="return")
            for i, data in zip(due, got):
                found[i] = data if isinstance(data, bytes) else None
            for data in got:
                if isinstance(data, BaseException):
                    raise data

        if None in found:
            self._ask(ask)
        return found

    def _read_blocks(self, name: str, ranges: Sequence[tuple[int, int]], version: str) -> list[bytes]:
        total = self._sizes.get((name, version))
        if total is None:
            total = self._sizes[name, version] = self.size(name)
        needed = sorted(
            {
                block
                for offset, size in ranges
                if size > 0 and offset < total
                for block in range(offset // BLOCK, (min(total, offset + size) - 1) // BLOCK + 1)
            }
        )
        prefix = self._cache_name(name, version)
        missing = [
            block
            for block in needed
            if not self._holds(f"{prefix}-{block}", min(BLOCK, total - block * BLOCK))
        ]
        runs: list[list[int]] = []
        for block in missing:
            if runs and block == runs[-1][1] and (block + 1 - runs[-1][0]) * BLOCK <= SPAN:
                runs[-1][1] = block + 1
            else:
                runs.append([block, block + 1])
        fresh: dict[int, bytes] = {}
        spans = [(first * BLOCK, min(total, last * BLOCK)) for first, last in runs]
        for (first, last), data in zip(runs, self._fetch(name, spans)):
            for block in range(first, last):
                fresh[block] = data[(block - first) * BLOCK : (block - first + 1) * BLOCK]
                self.cache.put(f"{prefix}-{block}", fresh[block])

        def part(block: int, start: int, stop: int) -> bytes:
            if block in fresh:
                return fresh[block][start:stop]
            try:
                descriptor = os.open(self.cache.directory / f"{prefix}-{block}", os.O_RDONLY)
            except FileNotFoundError:  # dropped by another process since
                return self._fetch(name, [(block * BLOCK + start, block * BLOCK + stop)])[0]
            try:
                return os.pread(descriptor, stop - start, start)
            finally:
                os.close(descriptor)

        return [
            b"".join(
                part(block, max(0, offset - block * BLOCK), min(BLOCK, stop - block * BLOCK))
                for block in range(offset // BLOCK, -(-stop // BLOCK) if offset < stop else 0)
            )
            for offset, stop in ((offset, min(total, offset + size)) for offset, size in ranges)
        ]

    def _holds(self, entry: str, size: int) -> bool:
        path = self.cache.get(entry)
        try:
            return path is not None and os.stat(path).st_size == size
        except FileNotFoundError:
            return False

    def _cache_name(self, name: str, version: str) -> str:
        return hashlib.sha256(f"{self.url}\0{name}\0{version}".encode()).hexdigest()[:32]

    def local(self, name: str) -> str | None:
        """A real local file to map: itself, or a cached copy; None where the cache is too small for it.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if self.is_local:
            path = self.path(name)
            os.stat(path)
            return path
        info = self._ask(lambda fs: fs.info(self.path(name)))
        entry = self._cache_name(name, _state(info))
        return self.cache.get(entry) or self.cache.fill(
            entry, info["size"], lambda path: self._ask(lambda fs: fs.get_file(self.path(name), path))
        )

    @contextmanager
    def copy(self, name: str) -> Iterator[str]:
        """A local file with the stored bytes as they are now, past every cache, for as long as the context lasts."""
        if self.is_local:
            os.stat(self.path(name))
            yield self.path(name)
            return
        with tempfile.TemporaryDirectory(prefix="ser-copy-") as folder:
            path = os.path.join(folder, "copy")
            self.get(name, path)
            yield path

    def get(self, name: str, path: str | os.PathLike) -> None:
        """Copies a file as it is now to a local path; not atomic there. Raises FileNotFoundError."""
        if self.is_local:
            shutil.copyfile(self.path(name), path)
        else:
            self._ask(lambda fs: fs.get_file(self.path(name), os.fspath(path)))

    def exists(self, name: str) -> bool:
        """True where a file of this name stands."""
        if self.is_local:
            return os.path.isfile(self.path(name))
        try:
            # Not `isfile`, which takes any failure for a no.
            return self._ask(lambda fs: fs.info(self.path(name)))["type"] == "file"
        except FileNotFoundError:
            return False

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        if self.is_local:
            return os.stat(self.path(name)).st_size
        return self._ask(lambda fs: fs.info(self.path(name)))["size"]

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names of the finished files in folder `prefix` and below; empty where there is no such folder."""
        top = self.path(prefix)
        if self.is_local:
            found = [os.path.join(at, file) for at, _, files in os.walk(top) for file in files]
        else:
            found = self._ask(lambda fs: fs.find(top) if fs.exists(top) else [])
        names = (str(path)[len(self.root) + 1 :] for path in found)
        return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith(atomic.TEMPORARY))

    # Writing

    def put(self, name: str, data: bytes) -> None:
        """Stores a whole file, atomically. Raises UserError on a full disk."""
        if self.is_local:
            with self.create(name) as file:
                file.write(data)
        else:
            self._ask(lambda fs: fs.pipe_file(self.path(name), data))

    def upload(self, path: str | os.PathLike, name: str) -> None:
        """Stores a local file whole."""
        if self.is_local:
            with atomic.replacing(self.path(name)) as temporary:
                shutil.copyfile(path, temporary)
        else:
            self._ask(lambda fs: fs.put_file(os.fspath(path), self.path(name)))

    def claim(self, name: str, data: bytes) -> bool:
        """Stores a file where there is none; False where there is. Of all that try at once, one succeeds.

        `data` must be the caller's own: it tells whether a claim whose answer was lost had succeeded.
        """
        try:
            if self.is_local:
                with open(self.path(name), "xb") as file:
                    file.write(data)
            else:
                self._ask(lambda fs: fs.pipe_file(self.path(name), data, mode="create"))
            return True
        except FileExistsError:
            return not self.is_local and self.read(name) == data

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write; published whole when the context ends well, gone when it does not.

        Raises:
            UserError: The disk is full.
        """
        path = self.path(name)
        if self.is_local:
            with atomic.create(path) as file:
                yield file
            return
        # without a name, so that nothing is left of a writer that is killed; drivers open it by its number
        with tempfile.TemporaryFile() as file:
            try:
                yield file
                file.flush()
                self._ask(lambda fs: (file.seek(0), fs.put_file(f"/dev/fd/{file.fileno()}", path)))
            except OSError as error:
                atomic.raise_if_full(error, path)
                raise

    def delete(self, name: str) -> None:
        """Removes a file; not an error where there is none."""
        try:
            if self.is_local:
                os.unlink(self.path(name))
            else:
                self._ask(lambda fs: fs.rm_file(self.path(name)))
        except FileNotFoundError:
            pass

    def forget(self, name: str, version: str | None = None) -> None:
        """Drops what this machine's cache holds of one version of a file; by default what `local` keeps of it now."""
        if not self.is_local:
            try:
                version = (
                    _state(self._ask(lambda fs: fs.info(self.path(name)))) if version is None else version
                )
            except FileNotFoundError:
                return
            self.cache.drop(self._cache_name(name, version))

    def clean(self, prefix: str, deep: bool = False) -> None:
        """Removes what killed writers left in folder `prefix`, with `deep` below it too; live writers are left alone."""
        if self.is_local:
            atomic.clean(self.path(prefix), deep)


def _state(info: dict) -> str:
    """What tells one content of a remote file from the next."""
    return "|".join(str(info.get(k)) for k in ("size", "ETag", "etag", "mtime", "LastModified", "generation"))


def opened(url: str) -> str | BinaryIO:
    """One remote file to read: a cached copy's path, or its bytes where the cache is too small.

    Raises:
        FileNotFoundError: There is none.
        UserError: The store cannot be reached or refuses.
    """
    store = Store(url)
    return store.local("") or io.BytesIO(store.read(""))
