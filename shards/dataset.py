"""A packed dataset, open for reading.

Guarantees: rows are numbered densely in shard order and keep their numbers when a speaker is withdrawn or a corpus is added;
what was opened stays as it was (a generation is pinned) while others add or withdraw; audio is read by byte range from the
offsets in the index, never by walking a tar; a broken utterance comes back as `BadAudio` in its place.
Gives up: a generation cannot be opened again once `erase` has removed shards of it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from shards import manifest
from shards.audio import BadAudio, decode_flac
from shards.columns import open_columns
from shards.errors import UserError
from shards.index import SCHEMA, index_name, key_hash, read_index, read_report, shard_name
from shards.store import Store

HELD_BYTES = 64 << 20  # of index columns that `fields` keeps for a few rows at a time


@dataclass(frozen=True)
class ShardInfo:
    """One shard of an open dataset.

    Attributes:
        url: Of its tar.
        index: Position in `Dataset.shards`, the code in the column `shard`.
        rows: Its rows.
        sha256: Of its tar.
        number: Of its files, `000007` in their names.
        corpus: The one corpus in it.
        seconds: Measured duration of its audio.
        bytes: Of its tar.
    """

    url: str
    index: int
    rows: slice
    sha256: str
    number: int
    corpus: str
    seconds: float
    bytes: int


class Dataset:
    """Columns, audio and fields of one generation of a dataset. Open it with `Dataset.open`.

    Attributes:
        url, store, meta: Where it lies, and its `dataset.json`.
        generation, content_hash: Which state this is.
        shards: `ShardInfo` each.
        key_hash: uint64 (n,), first 8 bytes of sha256(key).
        samples: int64 (n,), duration in samples at 16 kHz.
        label, language, speaker, recording, corpus: int32 (n,), codes into `labels` ("corpus/label"), `languages`,
            `speakers` ("corpus/speaker"), `recordings` ("corpus/recording"), `corpora`; -1 where it is missing.
        shard: int32 (n,), position in `shards`.
        offset, size: int64 (n,), place of the FLAC bytes in the tar.
        bits: uint8 (n,), 1 has valence, 2 arousal, 4 dominance, 8 text.
        alive: bool (n,), False where the speaker was withdrawn.
    """

    key_hash: np.ndarray
    samples: np.ndarray
    label: np.ndarray
    language: np.ndarray
    speaker: np.ndarray
    recording: np.ndarray
    corpus: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    bits: np.ndarray

    def __init__(self, store: Store, generation: int | None = None):
        meta = manifest.require(store)
        self.store, self.url, self.meta = store, store.url, meta
        self.generation = meta["generation"] if generation is None else generation
        self._columns = open_columns(store, meta)
        entries = _pinned(meta, self.generation, store.url)
        self.content_hash = manifest.content_hash(entries)
        self.shards: list[ShardInfo] = []
        start = 0
        for entry in entries:
            self.shards.append(
                ShardInfo(
                    url=f"{store.url}/{shard_name(entry['number'])}",
                    index=len(self.shards),
                    rows=slice(start, start + entry["rows"]),
                    sha256=entry["sha256"],
                    number=entry["number"],
                    corpus=entry["corpus"],
                    seconds=entry["seconds"],
                    bytes=entry["bytes"],
                )
            )
            start += entry["rows"]
        self._rows = start
        for name, values in self._columns.numbers.items():
            setattr(self, name, values[:start])
        self._fields: dict[str, pa.ChunkedArray] = {}
        self._held: OrderedDict[int, tuple[pa.Table, int]] = OrderedDict()  # with its bytes

    @classmethod
    def open(cls, url: str, generation: int | None = None) -> "Dataset":
        """Opens a dataset.

        Args:
            url: Its folder, local or remote.
            generation: An earlier state to pin: later shards and later withdrawals are not seen.

        Raises:
            UserError: There is no dataset, it is damaged, or this generation does not exist (any more).
        """
        return cls(url if isinstance(url, Store) else Store(url), generation)

    def __reduce__(self):
        return Dataset, (self.store, self.generation)

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"Dataset({self.url!r}, generation={self.generation}, {len(self)} utterances, {len(self.shards)} shards)"

    labels = property(lambda self: self._columns.vocabulary("label"))
    languages = property(lambda self: self._columns.vocabulary("language"))
    speakers = property(lambda self: self._columns.vocabulary("speaker"))
    recordings = property(lambda self: self._columns.vocabulary("recording"))
    corpora = property(lambda self: self._columns.vocabulary("corpus"))

    @cached_property
    def alive(self) -> np.ndarray:
        """bool (n,), read-only: False where the speaker was withdrawn."""
        gone = {
            entry["speaker"] for entry in self.meta["withdrawn"] if entry["generation"] <= self.generation
        }
        if gone:
            # One entry more than there are speakers, so that code -1 (unknown) finds the last: alive.
            dead = np.array([name in gone for name in self.speakers] + [False])
            out = ~dead[self.speaker]
        else:
            out = np.ones(len(self), bool)
        out.flags.writeable = False
        return out

    def fields(self, columns: Sequence[str], rows: Sequence[int] | np.ndarray | None = None) -> pa.Table:
        """Any columns of the index (`shards.index.SCHEMA`).

        Args:
            rows: Row numbers, in the order wanted: only the index files of their shards are read, and at most
                `HELD_BYTES` of them are kept. None for all: the columns are read whole once and kept.

        Raises:
            UserError: There is no such column, or an index file is damaged.
        """
        unknown = [name for name in columns if name not in SCHEMA.names]
        if unknown:
            raise UserError(
                f"the index has no column {unknown[0]!r}",
                where=self.url,
                hint=f"one of {', '.join(SCHEMA.names)}",
            )
        missing = [name for name in columns if name not in self._fields]
        if missing and rows is not None:
            return self._some(list(columns), np.asarray(rows, np.int64))
        if missing:
            tables = [read_index(self.store, shard.number, missing) for shard in self.shards]
            empty = pa.schema([SCHEMA.field(name) for name in missing]).empty_table()
            whole = pa.concat_tables([empty, *tables]) if tables else empty
            for name in missing:
                self._fields[name] = whole[name]
        table = pa.table({name: self._fields[name] for name in columns})
        return table if rows is None else table.take(pa.array(np.asarray(rows, np.int64)))

    def _some(self, columns: list[str], rows: np.ndarray) -> pa.Table:
        """`fields` of a few rows, from their shards' own index files."""
        parts = [pa.schema([SCHEMA.field(name) for name in columns]).empty_table()]
        place, taken = np.empty(len(rows), np.int64), 0
        shard = np.asarray(self.shard[rows])
        for index in np.unique(shard).tolist():
            at = np.flatnonzero(shard == index)
            local = rows[at] - self.shards[index].rows.start
            parts.append(self._index_of(index, columns).select(columns).take(pa.array(local)))
            place[at] = np.arange(taken, taken + len(at))
            taken += len(at)
        return pa.concat_tables(parts).take(pa.array(place))

    def _index_of(self, index: int, columns: list[str]) -> pa.Table:
        """At least these columns of one shard's index; the least recently used are dropped beyond `HELD_BYTES`."""
        held, size = self._held.pop(index, (None, 0))
        missing = [name for name in columns if held is None or name not in held.column_names]
        if missing:
            info = self.shards[index]
            table = read_index(self.store, info.number, missing)
            if len(table) != info.rows.stop - info.rows.start:
                raise UserError(
                    f"this index file has {len(table)} rows, dataset.json says {info.rows.stop - info.rows.start}",
                    where=self.store.path(index_name(info.number)),
                    hint=f"ser verify {self.url}",
                )
            for name in held.column_names if held is not None else ():
                table = table.append_column(name, held[name])  # pyright: ignore[reportOptionalSubscript]
            held, size = table, table.nbytes
        assert held is not None
        self._held[index] = held, size
        total = sum(size for _, size in self._held.values())
        while total > HELD_BYTES and len(self._held) > 1:
            total -= self._held.popitem(last=False)[1][1]
        return held

    def keys(self, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Keys of rows, in the order asked."""
        return self.fields(["key"], rows)["key"].to_pylist()

    @cached_property
    def _by_hash(self) -> np.ndarray:
        return np.argsort(self.key_hash, kind="stable")

    def row(self, key: str) -> int:
        """Row of a key. Raises UserError where no utterance has it."""
        wanted = np.uint64(key_hash(key))
        order = self._by_hash
        at = int(np.searchsorted(self.key_hash, wanted, sorter=order))
        while at < len(order) and self.key_hash[order[at]] == wanted:
            if self.keys([order[at]]) == [key]:
                return int(order[at])
            at += 1
        raise UserError(f"no utterance has the key {key!r}", where=self.url, hint="keys are case-sensitive")

    def flac(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """FLAC bytes of rows, in the order asked; short or empty where a tar ends before them.

        Raises:
            UserError: A shard is missing.
        """
        rows = np.asarray(rows, np.int64)
        out: list[bytes] = [b""] * len(rows)
        for number in np.unique(self.shard[rows]):
            mine = np.flatnonzero(self.shard[rows] == number)
            mine = mine[np.argsort(self.offset[rows[mine]], kind="stable")]
            info = self.shards[number]
            ranges = [(int(self.offset[r]), int(self.size[r])) for r in rows[mine]]
            try:
                found = self.store.read_ranges(shard_name(info.number), ranges, version=info.sha256)
            except FileNotFoundError as error:
                raise UserError(
                    "a shard is missing", where=info.url, hint=f"ser verify {self.url}"
                ) from error
            for i, data in zip(mine, found):
                out[i] = data
        return out

    def audio(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray | BadAudio]:
        """Audio of rows, in the order asked: float32 (samples,) at 16 kHz, or why there is none.

        Raises:
            UserError: A shard is missing.
        """
        rows = np.asarray(rows, np.int64)
        return [_decode(data, int(n)) for data, n in zip(self.flac(rows), self.samples[rows])]

    def intact(self, shard: int) -> bool:
        """Whether the bytes of a shard (position in `shards`) are those that were packed; reads it whole, past every cache.

        False, too, where it cannot be read to its end.
        """
        info = self.shards[shard]
        try:
            with self.store.copy(shard_name(info.number)) as path, open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == info.sha256
        except OSError:
            return False

    def quarantined(self) -> list[dict]:
        """{shard, corpus, key, speaker, reason} of every utterance that packing left out."""
        out = []
        counts = {shard["number"]: shard["quarantined"] for shard in self.meta["shards"]}
        for shard in self.shards:
            if counts[shard.number]:
                report = read_report(self.store, shard.number)
                for entry in report.quarantined if report else ():
                    about = {name: entry[name] for name in ("key", "speaker", "reason")}
                    out.append({"shard": shard.number, "corpus": shard.corpus, **about})
        return out


def _decode(data: bytes, samples: int) -> np.ndarray | BadAudio:
    try:
        audio = decode_flac(data)
        if len(audio) != samples:
            raise BadAudio("unreadable", f"{len(audio)} samples where the index says {samples}")
        return audio
    except BadAudio as error:
        return error


def _pinned(meta: dict, generation: int, url: str) -> list[dict]:
    """The shards of a generation."""
    if not 1 <= generation <= meta["generation"]:
        raise UserError(
            f"there is no generation {generation}, the dataset is at {meta['generation']}", where=url
        )
    if any(shard["generation"] > generation for shard in meta["removed"]):
        raise UserError(
            f"generation {generation} is gone: shards of it were erased",
            where=url,
            hint=f"use generation {meta['generation']} and make the runs that pinned the old one again",
        )
    return [shard for shard in meta["shards"] if shard["generation"] <= generation]
