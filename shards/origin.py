"""Whether the corpora that a dataset was packed from are still what they were.

    .recipe    beside dataset.json: the options of the packing, and of each corpus what its files looked like (`Look`)

Guarantees: nothing is decoded, and while names, sizes and times of a corpus's files are as they were nothing is read; a
corpus that was copied or touched is the same; one that is not there any more has not changed. What withdrawn speakers
said is never missed.
Gives up: audio replaced by a file of the same size that differs nowhere near its tasted blocks; audio at URLs, as long as
the table that names it is the same.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from shards.errors import UserError
from shards.index import canonical, facts, facts_of, key_hash, read_index, read_report
from shards.spec import Source
from shards.store import Store

NAME = ".recipe"
BLOCKS, BLOCK = 4, 4096  # of a file that are tasted, and bytes of each
THREADS = 8  # a network file system answers many at once
SHOWN = 4  # a message names one fewer, and that there are more
AGAIN = (
    "pack them anew into another folder (data.path=FOLDER), or put back what was there; new utterances alone would be "
    "added; a dataset whose corpus is moved away is used as it is"
)


@dataclass(frozen=True)
class Look:
    """What a corpus looked like when it was packed.

    Attributes:
        glance: Digest of its files' names, sizes and times.
        outside: Folders of its audio that do not lie below its root.
        tastes: Hash of each utterance's key -> digest of some blocks of its audio file, "" where there is no such file.
    """

    glance: str
    outside: list[str]
    tastes: dict[str, str]


@dataclass
class Known:
    """What `.recipe` holds: options of the packing (none where another command packed), looks by the corpora's names."""

    options: dict[str, float] = field(default_factory=dict)
    corpora: dict[str, Look] = field(default_factory=dict)

    @classmethod
    def load(cls, store: Store) -> "Known":
        """As it stands; empty where there is none that can be read, which costs no more than reading the corpora anew."""
        try:
            told = json.loads(store.read(NAME))
            return cls(told["options"], {name: Look(**look) for name, look in told["corpora"].items()})
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def save(self, store: Store) -> None:
        """One file put whole."""
        store.put(NAME, canonical(asdict(self)))

    def only(self, names: Iterable[str]) -> "Known":
        """What is known of these corpora."""
        return Known(self.options, {name: self.corpora[name] for name in names if name in self.corpora})

    def still(self, name: str, root: str) -> bool:
        """Whether a corpus looks as it did, as far as that is seen without opening a file; or is not there any more."""
        look = self.corpora.get(name)
        return look is not None and (not os.path.exists(root) or look.glance == glance(root, look.outside))


def glance(root: str, outside: Iterable[str] = ()) -> str:
    """Digest of path, size and time of every file below `root` (or of that file) and in the folders `outside`."""
    digest = hashlib.sha256()
    for path, below in _files(root, outside):
        try:
            stat = os.stat(path)
            digest.update(canonical([below, stat.st_size, stat.st_mtime_ns]))
        except OSError:
            digest.update(canonical([below]))  # a link to nowhere
    return digest.hexdigest()


def _files(root: str, outside: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(path, path below its folder) in a fixed order."""
    if os.path.isfile(root):
        yield root, os.path.basename(root)
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            yield (path := os.path.join(folder, name)), os.path.relpath(path, root)
    for folder in outside:
        if os.path.isdir(folder):
            yield from ((os.path.join(folder, name), name) for name in sorted(os.listdir(folder)))


def taste(path: str) -> str:
    """Digest of blocks spread evenly over a file, its first and last bytes among them; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            last = max(0, os.fstat(file.fileno()).st_size - BLOCK)
            digest = hashlib.sha256()
            for i in range(BLOCKS):
                file.seek(last * i // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
            return digest.hexdigest()[:8]
    except (OSError, ValueError):
        return ""


def look(root: str, sources: Sequence[Source]) -> Look:
    """What a corpus looks like now.

    Args:
        root: Its folder or table.
        sources: What was read of it.
    """
    local = sorted({s.utterance.audio for s in sources if "://" not in s.utterance.audio})
    below = os.path.join(os.path.abspath(root), "")
    outside = sorted({os.path.dirname(path) for path in local if not os.path.abspath(path).startswith(below)})
    with ThreadPoolExecutor(THREADS) as pool:
        tasted = dict(zip(local, pool.map(taste, local), strict=True))
    tastes = {_hash(s.utterance.key): tasted.get(s.utterance.audio, "") for s in sources}
    return Look(glance(root, outside), outside, tastes)


def _hash(key: str) -> str:
    return f"{key_hash(key):016x}"


@dataclass(frozen=True, slots=True)
class Held:
    """A row of the dataset's index, so far as it says where it came from."""

    key: str
    corpus: str
    source: str
    shard: int
    row: int
    alive: bool


@dataclass(frozen=True)
class Difference:
    """How what a corpus gives differs from what a dataset holds.

    Attributes:
        new: Neither held nor quarantined before.
        changed: Held, but made from other fields or a file of another size.
        unseen: Held, not withdrawn, and not given.
    """

    new: list[Source]
    changed: list[tuple[Held, Source]]
    unseen: list[Held]


def compare(store: Store, meta: Mapping[str, Any], sources: Iterable[Source]) -> Difference:
    """What differs between a dataset and what its corpora give; withdrawn speakers are left out."""
    gone = withdrawn(meta)
    held: dict[str, Held] = {}
    tried: set[tuple[str, str]] = set()
    for shard in meta["shards"]:
        number, corpus = shard["number"], shard["corpus"]
        columns = read_index(store, number, ["key", "source", "speaker"]).to_pydict()
        for row, (key, source, speaker) in enumerate(zip(*columns.values(), strict=True)):
            held[key.lower()] = Held(key, corpus, source, number, row, f"{corpus}/{speaker}" not in gone)
        if shard["quarantined"]:
            report = read_report(store, number)
            tried |= {(e["key"].lower(), e["source"]) for e in (report.quarantined if report else ())}
    new, changed, unseen = [], [], dict(held)
    for source in sources:
        folded = source.utterance.key.lower()
        unseen.pop(folded, None)
        there = held.get(folded)
        if f"{source.utterance.corpus}/{source.utterance.speaker}" in gone:
            continue
        if there is None and (folded, source.digest) not in tried:
            new.append(source)
        elif there is not None and there.source != source.digest:
            changed.append((there, source))
    return Difference(new, changed, [h for h in unseen.values() if h.alive])


def withdrawn(meta: Mapping[str, Any]) -> frozenset[str]:
    """Speakers ("corpus/speaker") that left a dataset."""
    return frozenset(entry["speaker"] for entry in meta["withdrawn"])


@dataclass(frozen=True)
class Given:
    """What was read of one corpus: its name in `Known`, its root, and its utterances as they look now."""

    name: str
    root: str
    sources: list[Source]
    look: Look


def lacking(store: Store, meta: Mapping[str, Any], known: Known, given: Sequence[Given]) -> list[Source]:
    """What corpora give and a dataset does not hold yet.

    Args:
        known: How they and those that are not given looked when they were packed.
        given: Those that no longer look so, or were never seen.

    Raises:
        UserError: What the dataset holds of them was changed or is gone, and which utterances those are.
    """
    found = compare(store, meta, [source for one in given for source in one.sources])
    changed = [f"{there.key}: {_fields(store, there, source)}" for there, source in found.changed[:SHOWN]]
    sized = {source.utterance.key for _, source in found.changed}
    replaced = [
        key for one in given for key in _replaced(one, known.corpora.get(one.name)) if key not in sized
    ]
    changed += [f"{key}: audio" for key in replaced]
    gone = _gone(found.unseen, known, given)
    parts = [f"{len(sized) + len(replaced)} utterances changed ({_some(changed)})"] if changed else []
    parts += [f"{len(gone)} are gone ({_some(gone)})"] if gone else []
    if parts:
        raise UserError(
            f"the corpora are no longer what was packed: {', '.join(parts)}",
            where=f"{', '.join(one.root for one in given)}, packed in {store.url}",
            hint=AGAIN,
        )
    return found.new


def _replaced(one: Given, before: Look | None) -> Iterator[str]:
    """Keys whose audio tastes otherwise than it did."""
    for key in (source.utterance.key for source in one.sources if before):
        if before and before.tastes.get(_hash(key), "") not in ("", one.look.tastes[_hash(key)]):
            yield key


def _gone(unseen: Iterable[Held], known: Known, given: Sequence[Given]) -> list[str]:
    """Keys that came from one of these corpora, and do not come any more.

    A corpus that was never seen answers for all that the dataset holds by its name, but for what others gave.
    """
    read = {one.name: one for one in given}
    others = {key for name, look in known.corpora.items() if name not in read for key in look.tastes}
    before = {key for name in read if (look := known.corpora.get(name)) for key in look.tastes}
    named = {s.utterance.corpus for one in given if one.name not in known.corpora for s in one.sources}
    return [
        held.key
        for held in unseen
        if (key := _hash(held.key)) not in others and (key in before or held.corpus in named)
    ]


def _fields(store: Store, there: Held, source: Source) -> str:
    """Which fields of an utterance changed; its audio if none did."""
    row = read_index(store, there.shard).slice(there.row, 1).to_pylist()[0]
    then, now = facts_of(row), facts(source.utterance, None)
    differ = [name for name in now if name != "duration" and canonical(now[name]) != canonical(then[name])]
    return " and ".join(differ) or "audio"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return "; ".join(names[: SHOWN - 1]) + ("; ..." if len(names) >= SHOWN else "")
