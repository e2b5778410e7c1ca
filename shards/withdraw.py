"""Taking a speaker out of a dataset: at once by a tombstone, for good by erasing.

Guarantees: a tombstone replaces `dataset.json` alone and keeps every row's number; `erase` writes what remains of the touched
shards, of their index and of the targets and features made from them under new numbers, commits, then deletes the old; the
utterances that stay keep every target bit by bit; killed anywhere, the same command finishes the work and finds finished
shards (targets are copied anew, they may have grown); audio of a withdrawn speaker is never committed again.
Gives up: copies elsewhere (backups, other machines' caches, trained models) are out of reach. Targets that another process
writes while shards are being erased may have to be computed again.
"""

import difflib
import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from shards import manifest
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import (
    FORMAT,
    ShardReport,
    canonical,
    facts_of,
    index_name,
    index_row,
    member,
    read_index,
    shard_name,
    write_index,
)
from shards.pack import Run, ShardFile, alone, finished, serial, standing, tar_writer
from shards.store import Store
from shards.target_list import carry, files_by_shard


def withdraw(url: str, speaker: str) -> Dataset:
    """Writes a tombstone: from the next opening on, no plan, target or report uses this speaker.

    Args:
        speaker: "corpus/speaker".

    Raises:
        UserError: The dataset has no such speaker, or another process packs into it.
    """
    store = Store(url)
    with alone(store):
        return _withdraw(store, speaker)


def _withdraw(store: Store, speaker: str) -> Dataset:
    meta = manifest.require(store)
    if speaker not in {entry["speaker"] for entry in meta["withdrawn"]}:
        known = set(Dataset(store).speakers)
        for report in standing(store, meta):
            known |= {
                f"{report.corpus}/{entry['speaker']}" for entry in report.quarantined if entry["speaker"]
            }
        if speaker not in known:
            near = difflib.get_close_matches(speaker, known, 3)
            hint = f"did you mean {', '.join(near)}?" if near else "speakers are named corpus/speaker"
            raise UserError(f"the dataset has no speaker {speaker!r}", where=store.url, hint=hint)
        meta["generation"] += 1
        meta["withdrawn"].append({"speaker": speaker, "generation": meta["generation"]})
        manifest.save(store, meta)
    return Dataset(store)


@dataclass(frozen=True)
class Rewrite:
    """A shard to be written again: its report, the speakers to leave out, the new number, its files of targets."""

    old: ShardReport
    speakers: tuple[str, ...]
    number: int
    targets: tuple[str, ...] = ()


def erase(url: str, run: Run = serial) -> Dataset:
    """Removes the audio, rows and targets of all withdrawn speakers from the dataset's files.

    Args:
        run: Maps a function over the shards, in any order (see `shards.pack.pack`).

    Raises:
        UserError: There is no dataset, or a file that must be rewritten is damaged.
    """
    store = Store(url)
    with alone(store):
        return _erase(store, run)


def _erase(store: Store, run: Run) -> Dataset:
    meta = manifest.require(store)
    gone = {entry["speaker"] for entry in meta["withdrawn"]}
    kept, touched = [], []
    for report in standing(store, meta):
        held = set(report.summary["speaker"]) | {entry["speaker"] for entry in report.quarantined}
        dead = sorted(s for s in held if s is not None and f"{report.corpus}/{s}" in gone)
        if dead:
            touched.append((report, dead))
        else:
            kept.append(report)
    if touched:
        tar_writer()  # refused before anything is removed
        for folder in ("", "shards", "index"):
            store.clean(folder)
        # What an earlier, killed erasure copied may hold speakers that were withdrawn since, under other numbers.
        manifest.drop_unborn_targets(store, meta)
        said = files_by_shard(store)
        tasks = [
            Rewrite(report, tuple(dead), meta["next_shard"] + i, tuple(said.get(f"{report.number:06d}", ())))
            for i, (report, dead) in enumerate(touched)
        ]
        made = sorted(run(partial(rewrite, store), tasks), key=lambda report: report.number)
        removed = [
            {"number": report.number, "sha256": report.sha256, "generation": meta["generation"] + 1}
            for report, _ in touched
        ]
        reports = [*kept, *(report for report in made if report.rows or report.quarantined)]
        meta = manifest.build(
            meta, reports, removed=[*meta["removed"], *removed], next_shard=meta["next_shard"] + len(tasks)
        )
        manifest.save(store, meta)
    manifest.sweep(store, meta)
    return Dataset(store)


def rewrite(store: Store, task: Rewrite) -> ShardReport:
    """Writes what a shard and its targets hold of other speakers under another number, audio and numbers unchanged.

    Raises:
        UserError: The old shard or a file of its targets is missing or damaged, or the disk is full.
    """
    held = read_index(store, task.old.number).to_pylist()
    keep = np.array([row["speaker"] not in task.speakers for row in held], dtype=bool)
    report = _rewrite_shard(store, task, [row for row, kept in zip(held, keep) if kept])
    if report.rows:
        old, new = ((f"{made.number:06d}", made.sha256) for made in (task.old, report))
        carry(store, old, new, keep, task.targets)
    return report


def _rewrite_shard(store: Store, task: Rewrite, table: list[dict]) -> ShardReport:
    """The part of `rewrite` that is audio and index: `table` holds the rows that stay."""
    old, speakers, number = task.old, set(task.speakers), task.number
    spec = hashlib.sha256(
        canonical([FORMAT, "erase", old.sha256, old.index_sha256, sorted(speakers)])
    ).hexdigest()
    done = finished(store, number, spec)
    if done:
        return done
    store.delete(index_name(number))
    ranges = [(row["offset"], row["size"]) for row in table]
    rows = []
    try:
        found = store.read_ranges(shard_name(old.number), ranges)
    except FileNotFoundError as error:
        raise UserError(
            "a shard is missing", where=store.path(shard_name(old.number)), hint=f"ser verify {store.url}"
        ) from error
    with store.create(shard_name(number)) as file:
        shard = ShardFile(file)
        for row, flac in zip(table, found):
            if hashlib.sha256(flac).hexdigest() != row["sha256"]:
                raise UserError(
                    f"the audio of {row['key']} is damaged; erasing would seal the damage",
                    where=store.path(shard_name(old.number)),
                    hint=f"ser verify {store.url} names all damage; restore the shard from a copy first",
                )
            told = facts_of(row)
            offset = shard.add(row["key"], flac, member(told))
            rows.append(index_row(told, row["samples"], offset, flac, row["source"]))
        shard.close()
    report = ShardReport(
        number=number,
        corpus=old.corpus,
        spec=spec,
        rows=len(rows),
        seconds=0.0,
        bytes=shard.bytes,
        sha256=shard.sha256.hexdigest(),
        quarantined=tuple(entry for entry in old.quarantined if entry["speaker"] not in speakers),
    )
    return write_index(store, report, rows)
