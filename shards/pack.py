"""Packing: utterances become a dataset of tar shards, an index and `dataset.json`.

Guarantees: the bytes of every file are a function of the utterances, their audio and the options, whatever the number of
workers, the order of the input, and how often the work was killed and started again; a finished shard is not made
twice; nothing half-written is ever read (a shard counts once its index stands, the dataset once `dataset.json` does);
adding writes new shards under new numbers and touches no old file but `dataset.json`. Broken audio leaves a hole and is
listed with its reason; too much of it fails the run.
Two packs into one local folder at once: the second is refused.
Gives up: two packs into one remote address at once are not arbitrated. A source file that changed but kept its size is
not noticed on resume. Levels are kept: no loudness normalisation.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, BinaryIO, cast

from shards import manifest
from shards.audio import MAX_SECONDS, BadAudio, encode_flac, load
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import (
    FORMAT,
    ShardReport,
    canonical,
    facts,
    index_name,
    index_row,
    member,
    read_report,
    shard_name,
    write_index,
)
from shards.lock import hold
from shards.origin import compare, withdrawn
from shards.spec import SHARD_SECONDS, ShardSpec, Source, check_options, divide, measure, plan_shards, where
from shards.store import Store
from shards.utterance import SAMPLE_RATE, Utterance

MAX_QUARANTINED = 0.01
MIN_QUARANTINED = 3  # fewer broken files than this never fail a run
__all__ = ["Run", "ShardSpec", "commit", "pack", "plan_shards", "serial", "write_shard"]
LOCK = ".lock"
_HEADER = 512  # bytes of a ustar header, and of the grid that members are padded to

Run = Callable[[Callable[[Any], Any], list], Iterable]


def serial(function: Callable[[Any], Any], items: list) -> Iterator:
    """The plainest `run`: one item after the other, in this process."""
    return map(function, items)


def finished(store: Store, number: int, digest: str) -> ShardReport | None:
    """The report of a shard that stands whole and was made from this spec; else None."""
    report = read_report(store, number)
    if report is None or report.spec != digest:
        return None
    try:
        return report if store.size(shard_name(number)) == report.bytes else None
    except FileNotFoundError:
        return None


def tar_writer() -> Any:
    """WebDataset's tar writer: only writing shards needs that library, reading them does not.

    Raises:
        UserError: It is not installed.
    """
    try:
        from webdataset.writer import TarWriter
    except ImportError as error:
        raise UserError(
            f"shards cannot be written without the library webdataset ({error})",
            where="shards.pack",
            hint="pip install 'ser-distill[train]'",
        ) from error
    return TarWriter


class ShardFile:
    """A tar being written: pairs of `<key>.flac` and `<key>.json` with fixed owner, mode and time.

    Args:
        file: Where to write; the sha256 and length are taken on the way.
    """

    def __init__(self, file):
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self._position = 0
        self._tar = tar_writer()(
            cast(BinaryIO, self), user="ser", group="ser", mode=0o444, mtime=0, compress=False, encoder=False
        )

    def write(self, data: bytes) -> int:
        """Called by the tar writer."""
        self.file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)

    def add(self, key: str, flac: bytes, text: bytes) -> int:
        """Appends an utterance; returns the offset of its FLAC bytes in the tar."""
        self._tar.write({"__key__": key, "flac": flac, "json": text})
        offset = self._position + _HEADER
        for part in (flac, text):
            self._position += _HEADER + -(-len(part) // _HEADER) * _HEADER
        return offset

    def close(self) -> None:
        """Writes the tar's end."""
        self._tar.close()


def write_shard(store: Store, spec: ShardSpec) -> ShardReport:
    """Makes one shard and its index, or finds them made. The same spec gives the same bytes anywhere.

    Raises:
        UserError: The disk is full.
    """
    done = finished(store, spec.number, spec.digest)
    if done:
        return done
    # An index of an earlier, other spec must not vouch for the tar that comes now.
    store.delete(index_name(spec.number))
    rows, quarantined = [], []
    with store.create(shard_name(spec.number)) as file:
        shard = ShardFile(file)
        for source in spec.sources:
            utterance = source.utterance
            try:
                samples = load(utterance, spec.max_seconds)
                flac = encode_flac(samples)
            except (BadAudio, OSError, RuntimeError, ValueError) as error:
                quarantined.append(_quarantine(source, error))
                continue
            row = facts(utterance, len(samples) / SAMPLE_RATE)
            offset = shard.add(utterance.key, flac, member(row))
            rows.append(index_row(row, len(samples), offset, flac, source.digest))
        shard.close()
    report = ShardReport(
        number=spec.number,
        corpus=spec.corpus,
        spec=spec.digest,
        rows=len(rows),
        seconds=0.0,
        bytes=shard.bytes,
        sha256=shard.sha256.hexdigest(),
        quarantined=tuple(quarantined),
    )
    return write_index(store, report, rows)


def pack(
    utterances: Iterable[Utterance],
    out: str,
    shard_seconds: float = SHARD_SECONDS,
    add: bool = False,
    run: Run = serial,
    progress: Callable[[ShardReport, int, int], None] | None = None,
    max_quarantined: float = MAX_QUARANTINED,
    max_seconds: float = MAX_SECONDS,
) -> Dataset:
    """Packs utterances into a dataset, or goes on where a killed run of the same input stopped.

    Args:
        utterances: Any number of corpora, any order. Speakers withdrawn from the dataset are left out.
        out: Folder or fsspec URL.
        shard_seconds: Sum of source durations that closes a shard.
        add: Add to the dataset that stands at `out`; utterances already in it unchanged are skipped.
        run: Maps a function over the shard specs, in any order: `serial`, a pool's imap_unordered, a Ray map.
        progress: Called with (report, shards done, shards in all) as shards are finished.
        max_quarantined: Share of broken utterances that fails the run (never fewer than 3 of them).
        max_seconds: Longer utterances are quarantined.

    Returns:
        The dataset, opened.

    Raises:
        UserError: Duplicate keys, too much broken audio, no space, another dataset at `out`, or another process that
            packs into it.
    """
    store = Store(out)
    tar_writer()  # before anything is read, rather than in the middle of the work
    with alone(store):
        return _pack(
            store, utterances, out, shard_seconds, add, run, progress, max_quarantined, max_seconds
        )  # fmt: skip


def alone(store: Store) -> AbstractContextManager[None]:
    """The context in which no other process packs into the same local folder."""
    if not store.is_local:
        return nullcontext()
    return hold(
        store.path(LOCK),
        "another process writes this dataset",
        "pack into another folder (--out, or data.path of the recipe)",
    )


def _pack(
    store, utterances, out, shard_seconds, add, run, progress, max_quarantined, max_seconds
) -> Dataset:  # fmt: skip
    check_options(shard_seconds, max_seconds)
    old = manifest.load(store)
    gone = withdrawn(old) if old else frozenset()
    # Hashing all that was given, the withdrawn included, lets the same command find its work done after a withdrawal.
    sources = measure(utterances)
    if not sources:
        raise UserError(
            "there is nothing to pack: no utterances were given", where=out, hint="check the corpus folders"
        )
    asked = [FORMAT, shard_seconds, max_seconds, [[s.utterance.key, s.digest] for s in sources]]
    given = hashlib.sha256(canonical(asked)).hexdigest()
    if old and given in old["inputs"]:
        manifest.sweep(store, old)
        return Dataset.open(out)
    if old and not add:
        raise UserError(
            "another dataset stands here already, made from other utterances or options",
            where=out,
            hint="add to it (ser pack --add), or pack into a new folder",
        )
    sources = [s for s in sources if f"{s.utterance.corpus}/{s.utterance.speaker}" not in gone]
    if old:
        sources = _new(store, old, sources)
        if not sources:
            manifest.sweep(store, old)
            return Dataset.open(out)
    specs = divide(sources, shard_seconds, old["next_shard"] if old else 0, max_seconds)
    if old:
        manifest.drop_unborn_targets(store, old)
    for folder in ("", "shards", "index"):
        store.clean(folder)
    made = _make(store, specs, len(sources), run, progress, max_quarantined)
    commit(store, old, made, given)
    return Dataset.open(out)


def _make(store, specs, utterances, run, progress, max_quarantined) -> list[ShardReport]:
    """Runs the specs; fails as soon as too many utterances are quarantined, whatever the order of the results."""
    allowed = max(MIN_QUARANTINED - 1, int(max_quarantined * utterances))
    reports, broken = [], []
    for report in run(partial(write_shard, store), specs):
        reports.append(report)
        broken += report.quarantined
        if progress:
            progress(report, len(reports), len(specs))
        if len(broken) > allowed:
            shown = "; ".join(f"{entry['key']}: {entry['reason']}" for entry in broken[:5])
            raise UserError(
                f"at least {len(broken)} of {utterances} utterances have broken audio, more than the allowed "
                f"{max_quarantined:.2%}: {shown}",
                where=store.url,
                hint="mend or leave out these files, or raise max_quarantined (--max-quarantined, data.max_quarantined of a "
                "recipe; max_seconds where they are too long), then run the same command again",
            )
    return sorted(reports, key=lambda report: report.number)


def commit(store: Store, old: Mapping | None, made: Sequence[ShardReport], given: str) -> dict[str, Any]:
    """Makes finished shards part of the dataset: `dataset.json` last of all, after what no run left is removed."""
    reports = standing(store, old) if old else []
    meta = manifest.build(old, [*reports, *made])
    meta["inputs"] = [*meta["inputs"], given]
    manifest.sweep(store, meta)
    manifest.save(store, meta)
    return meta


def standing(store: Store, meta: Mapping) -> list[ShardReport]:
    """The reports of the shards that a dataset has.

    Raises:
        UserError: The index of one is missing, damaged or not the one that was committed.
    """
    reports = []
    for shard in meta["shards"]:
        report = read_report(store, shard["number"])
        if report is None or report.index_sha256 != shard["index_sha256"]:
            raise UserError(
                "an index file is missing or damaged",
                where=store.path(index_name(shard["number"])),
                hint=f"ser verify {store.url}",
            )
        reports.append(report)
    return reports


def _new(store: Store, old: Mapping, sources: Sequence[Source]) -> list[Source]:
    """The sources that the dataset does not hold; a key that it holds with another content is refused."""
    found = compare(store, old, sources)
    for there, source in found.changed:
        raise UserError(
            f"the key {source.utterance.key!r} is in the dataset already, with other fields or another source file",
            where=f"{store.path(shard_name(there.shard))} and {where(source.utterance)}",
            hint="give the new utterance its own key, or pack into a new folder",
        )
    return found.new


def _quarantine(source: Source, error: Exception) -> dict:
    """Why an utterance was left out. The source's folder is cut from the reason: bytes must not depend on it."""
    reason = str(error) or type(error).__name__
    folder = os.path.dirname(source.utterance.audio)
    if folder:
        reason = reason.replace(folder + "/", "")
    return {
        "key": source.utterance.key,
        "speaker": source.utterance.speaker,
        "reason": reason,
        "source": source.digest,
    }
