"""A run's folder on this machine, whose committed state is kept in an object store.

The work is done in a local folder, as ever. What is committed there (a checkpoint by its COMMIT, a training by its DONE, ...)
is copied to the store in an order in which each prefix is a state that a run can go on from; a machine without the folder gets it from there.

Guarantees: whatever moment the copying stops at, the store holds no mark of a set that is not whole, nothing of two
identities in one training, and every training that it held finished before. Of two machines one owns the folder (`shards.owner`). A
local folder that somebody else has worked on since, elsewhere, is not used again.
Gives up: a machine that is lost takes along what it had committed since the last copy, some seconds' work, which is done again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from shards import atomic
from shards.errors import UserError
from shards.owner import FOLDER, LASTS, Owner
from shards.store import Store

RECORD = ".mirror.json"
COMMIT, IDENTITY, RESULTS = "COMMIT", "job.json", ".results"
# In the order in which they may be believed; a set's mark lies in the folder of the set.
MARKS = (COMMIT, IDENTITY, "DONE", RESULTS)
ASIDE = "superseded/"
EVERY = 3.0  # seconds between two looks for something new
AT_ONCE = 8  # transfers
TRIES = 5
Stamp = tuple[int, int]  # size in bytes, and time of change in ns; of marks, the content's digest
Step = tuple[str, list[str]]  # "put" or "drop", and names


def scan(folder: Path) -> dict[str, Stamp]:
    """Files that are worth copying: not what is hidden, temporary, half a checkpoint or made again at will."""
    found: dict[str, Stamp] = {}
    for at, folders, files in os.walk(folder, followlinks=True):
        inside = os.path.relpath(at, folder)
        if os.path.basename(at) == "checkpoints":
            folders[:] = [f for f in folders if os.path.isfile(os.path.join(at, f, COMMIT))]
        folders[:] = [f for f in folders if not f.startswith((".", "universal-"))]
        for name in files:
            if (name.startswith(".") and name != RESULTS) or name.endswith((".tmp", ".lock")):
                continue
            with contextlib.suppress(FileNotFoundError):
                found[name if inside == "." else f"{inside}/{name}"] = _stamp(os.path.join(at, name))
    return found


def _stamp(path: str) -> Stamp:
    if kind(path):
        return stamp_of(Path(path).read_bytes())
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def stamp_of(mark: bytes) -> Stamp:
    """Of a mark's content: one that is written again with the same words still holds."""
    return len(mark), int.from_bytes(hashlib.sha256(mark).digest()[:7], "big")


def plan(local: Mapping[str, Stamp], remote: Mapping[str, Stamp | None]) -> list[Step]:
    """What makes `remote` equal to `local`, so that it may be broken off after any part of any step.

    Args:
        local: The folder, as `scan` gives it.
        remote: Names in the store, with the stamp of the local file that each was copied from, None where that is not known.

    Returns:
        Steps, one after the other; the names of one step in any order. First what was set aside gets whole; then marks
        that no longer hold go; new contents come before their marks; what is gone goes last.
    """
    due = [name for name in local if remote.get(name) != local[name]]
    gone = [name for name in remote if name not in local]
    names = sorted(remote)
    stale = [
        mark
        for mark in remote
        if kind(mark) and any(remote[n] != local.get(n) for n in (mark, *_set(names, mark)))
    ]

    def of(names: list[str], which: str, aside: bool) -> list[str]:
        return sorted(n for n in names if kind(n) == which and n.startswith(ASIDE) == aside)

    broken = [name for name in stale if name in local]
    steps = [("drop", of(broken, each, True)) for each in reversed(MARKS)]
    steps += [("put", of(due + broken, each, True)) for each in ("", *MARKS)]
    steps += [("drop", of(stale, each, False)) for each in (RESULTS, IDENTITY, "DONE")]
    steps += [("drop", of(broken, COMMIT, False)), ("put", of(due, "", False))]
    steps += [("put", of(due + broken, COMMIT, False)), ("drop", of(gone, COMMIT, False))]
    steps += [("put", of(due + broken, each, False)) for each in MARKS[1:]]
    steps += [("drop", of(gone, each, True)) for each in reversed(MARKS)]
    steps += [("drop", of(gone, "", aside)) for aside in (True, False)]
    return [(what, sorted(set(names))) for what, names in steps if names]


def kind(name: str) -> str:
    """Which mark a file is, "" for none."""
    base = name.rpartition("/")[2]
    return base if base in MARKS else ""


class Mirror:
    """Keeps `folder` in `store`; made by `mirrored`."""

    def __init__(self, url: str, folder: Path, lasts: float = LASTS):
        self.store, self.folder = Store(url), folder
        self.owner = Owner(self.store, lasts)
        self._guard, self._end, self._seen = threading.Lock(), threading.Event(), {}

    def settle(self, say: Callable[[str], object]) -> None:
        """Own the run; take its state from the store, unless this folder is where it was last worked on."""
        self.owner.take(say)
        record = self._record()
        if record["number"] != self.owner.before or not self.owner.before:
            names = [name for name in self.store.list() if not name.startswith(FOLDER + "/")]
            if names:
                say(f"taking {len(names)} files of {self.store.url} to {self.folder}")
            record["files"] = self._take(names)
        self._write_record(record["files"])

    def _take(self, names: list[str]) -> dict[str, Stamp]:
        """Replace the folder by what the store holds: beside it first, then by one renaming."""
        fresh = self.folder.with_name(self.folder.name + ".taking")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        here = {name: fresh / name for name in names}
        for path in here.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self.store.get(name, here[name]), names))
        shutil.rmtree(self.folder, ignore_errors=True)
        fresh.rename(self.folder)
        return scan(self.folder)

    def push(self) -> None:
        """Copy what is committed.

        Raises:
            UserError: The store cannot be reached, or another process owns the run.
        """
        with self._guard:
            for _ in range(TRIES):  # a run that commits faster than it is copied is caught up with later
                if self._push():
                    return

    def _push(self) -> bool:
        """True when all was copied; False when what was to be copied has changed meanwhile: look again."""
        self.owner.check()
        known = self._record()["files"]
        local = scan(self.folder)
        ours = sorted(local)
        held = {n: known.get(n) for n in self.store.list() if not n.startswith(FOLDER + "/")}
        for name in (n for n, stamp in held.items() if kind(n) and stamp is None):
            held[name] = stamp_of(self.store.read(name))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for what, names in plan(local, dict(held)):
                self.owner.check()
                if what == "drop":
                    list(pool.map(self.store.delete, names))
                    held = {name: stamp for name, stamp in held.items() if name not in set(names)}
                else:
                    if kind(names[0]):
                        now = scan(self.folder)
                        if any(local[n] != now.get(n) for mark in names for n in _set(ours, mark)):
                            return False
                    done = list(pool.map(self._upload, names))
                    held |= {name: local[name] for name, well in zip(names, done) if well}
                    if not all(done):
                        return False
                self._write_record({name: stamp for name, stamp in held.items() if stamp})
        self._seen = _marks(local)
        return True

    def _upload(self, name: str) -> bool:
        try:
            self.store.upload(self.folder / name, name)
            return True
        except FileNotFoundError:
            return False

    def _record(self) -> dict:
        try:
            record = json.loads((self.folder / RECORD).read_text())
        except FileNotFoundError:
            return {"number": 0, "files": {}}
        return record | {"files": {name: tuple(stamp) for name, stamp in record["files"].items()}}

    def _write_record(self, files: Mapping[str, Stamp]) -> None:
        about = {"url": self.store.url, "number": self.owner.number, "files": files}
        atomic.write(self.folder / RECORD, json.dumps(about))

    def watch(self, warn: Callable[[str], object], lost: Callable[[], object]) -> None:
        """Push whenever something new is committed, until `close`; `lost` is called when the run is another's."""
        told = False
        while not self._end.wait(EVERY):
            if self.owner.lost.is_set():
                lost()
                return
            if _marks(scan(self.folder)) == self._seen:
                continue
            try:
                self.push()
                told = False
            except UserError as error:
                if not told and not self.owner.lost.is_set():
                    warn(f"the run goes on, but is not copied to the object store:\n{error}")
                told = True

    def close(self) -> None:
        """End `watch`."""
        self._end.set()


def _set(names: Sequence[str], mark: str) -> Sequence[str]:
    """The files, of sorted names, that a mark speaks of."""
    folder = mark.rpartition("/")[0]
    below = names[bisect_left(names, folder + "/") : bisect_left(names, folder + "0")] if folder else names
    if kind(mark) == COMMIT:
        return below
    if kind(mark) == RESULTS:
        return [name for name in below if name.startswith("report.")]
    if kind(mark) == IDENTITY:
        return [mark]
    others = ("checkpoints/", "tensorboard/", "best-", "events.jsonl", "stacks-")
    return [name for name in below if not name[len(folder) + 1 :].startswith(others)]


def _marks(files: Mapping[str, Stamp]) -> dict[str, Stamp]:
    return {name: stamp for name, stamp in files.items() if kind(name) or "/" not in name}


@contextmanager
def mirrored(
    url: str,
    folder: Path,
    say: Callable[[str], object],
    warn: Callable[[str], object],
    lost: Callable[[], object],
    lasts: float = LASTS,
) -> Iterator[Mirror]:
    """`folder` as the working copy of the run at `url`, for as long as the context lasts; copied to the end when it ends.

    Args:
        say: Hears what is done.
        warn: Hears what went wrong and does not stop the work.
        lost: Called from another thread when the run is another process's: the work should stop.
        lasts: Seconds without a sign of life after which an owner on another machine is dead.

    Raises:
        UserError: Another process owns the run; or, at the end, the store cannot be reached.
    """
    mirror = Mirror(url, folder, lasts)
    watcher = threading.Thread(target=mirror.watch, args=(warn, lost), name="mirror", daemon=True)
    try:
        mirror.settle(say)
        watcher.start()
        try:
            yield mirror
        finally:
            mirror.close()
            watcher.join()
            mirror.push()
    finally:
        with contextlib.suppress(UserError):  # the next owner waits, then
            mirror.owner.release()
