"""Taking a speaker out of a dataset: at once by a tombstone, for good by erasing.

Guarantees: a tombstone replaces `dataset.json` alone and keeps every row's number; `erase` writes what remains of the touched
shards under new numbers, commits, then deletes the old shards, their index and every target made from them; killed
anywhere, the same command finishes the work, and audio of a withdrawn speaker is never committed again.
Gives up: copies elsewhere (backups, other machines' caches, trained models) are out of reach.
"""

import difflib
import hashlib
from collections.abc import Iterable
from functools import partial

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
from shards.pack import Run, ShardFile, finished, serial, standing
from shards.store import Store


def withdraw(url: str, speaker: str) -> Dataset:
    """Writes a tombstone: from the next opening on, no plan, target or report uses this speaker.

    Args:
        speaker: "corpus/speaker".

    Raises:
        UserError: The dataset has no such speaker.
    """
    store = Store(url)
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
            raise UserError(f"the dataset has no speaker {speaker!r}", where=url, hint=hint)
        meta["generation"] += 1
        meta["withdrawn"].append({"speaker": speaker, "generation": meta["generation"]})
        manifest.save(store, meta)
    return Dataset(store)


def erase(url: str, run: Run = serial) -> Dataset:
    """Removes the audio, rows and targets of all withdrawn speakers from the dataset's files.

    Args:
        run: Maps a function over the shards, in any order (see `shards.pack.pack`).

    Raises:
        UserError: There is no dataset, or an index file is damaged.
    """
    store = Store(url)
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
        tasks = [(report, dead, meta["next_shard"] + i) for i, (report, dead) in enumerate(touched)]
        for folder in ("", "shards", "index"):
            store.clean(folder)
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


def rewrite(store: Store, task: tuple[ShardReport, Iterable[str], int]) -> ShardReport:
    """Writes what a shard holds of other speakers as a shard of another number, audio bytes unchanged.

    Args:
        task: The old shard's report, the speakers to leave out, and the new number.

    Raises:
        UserError: The old shard is missing or damaged, or the disk is full.
    """
    old, speakers, number = task
    speakers = set(speakers)
    spec = hashlib.sha256(
        canonical([FORMAT, "erase", old.sha256, old.index_sha256, sorted(speakers)])
    ).hexdigest()
    done = finished(store, number, spec)
    if done:
        return done
    store.delete(index_name(number))
    table = [row for row in read_index(store, old.number).to_pylist() if row["speaker"] not in speakers]
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
