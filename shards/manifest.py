"""dataset.json: the commit mark of a dataset. Without it there is no dataset; files that it does not name do not count.

Guarantees: it is replaced whole; equal shards give equal bytes (nothing in it depends on time, place or workers); numbers of
shards are never used twice; everything that a killed run left behind is removed by `sweep`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shards.errors import UserError
from shards.index import FORMAT, ShardReport, index_name, merge, shard_name
from shards.store import Store
from shards.utterance import SAMPLE_RATE

NAME = "dataset.json"


def load(store: Store) -> dict[str, Any] | None:
    """The dataset's manifest, or None where nothing is committed.

    Raises:
        UserError: It is damaged or of a format that this version does not know.
    """
    try:
        data = store.read(NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        meta = json.loads(data)
        known = meta["format"] == FORMAT
        numbers = [shard["number"] for shard in meta["shards"]]
        sound = numbers == sorted(set(numbers)) and all(type(n) is int and n >= 0 for n in numbers)
        sound = sound and meta["content_hash"] == content_hash(meta["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{NAME} is damaged: {error}", where=store.path(NAME), hint="restore it from a copy"
        ) from error
    if not known:
        raise UserError(
            f"the dataset has format {meta['format']}, this version reads format {FORMAT}",
            where=store.path(NAME),
            hint="pack it anew, or use the version that made it",
        )
    if not sound:
        raise UserError(
            f"{NAME} is damaged: its shards do not give its content hash",
            where=store.path(NAME),
            hint="restore it from a copy",
        )
    return meta


def require(store: Store) -> dict[str, Any]:
    """Like `load`, but no dataset is a `UserError`."""
    meta = load(store)
    if meta is None:
        raise UserError(
            f"there is no dataset here: {NAME} is missing",
            where=store.url,
            hint="check the path; a pack that was interrupted becomes a dataset when the same command is run again",
        )
    return meta


def content_hash(shards: Iterable[Mapping]) -> str:
    """sha256 over the shards' sha256s in order."""
    return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def shard_entry(report: ShardReport, generation: int) -> dict[str, Any]:
    """A shard's entry in the manifest."""
    return {
        "number": report.number,
        "corpus": report.corpus,
        "rows": report.rows,
        "seconds": report.seconds,
        "bytes": report.bytes,
        "sha256": report.sha256,
        "index_sha256": report.index_sha256,
        "quarantined": len(report.quarantined),
        "generation": generation,
    }


def describe(reports: Sequence[ShardReport]) -> dict[str, dict]:
    """Per corpus: utterances, hours, quarantine and vocabularies with their counts."""
    out = {}
    for corpus in sorted({report.corpus for report in reports}):
        mine = [report for report in reports if report.corpus == corpus]
        counts = merge(report.summary for report in mine)
        out[corpus] = {
            "utterances": sum(report.rows for report in mine),
            "hours": round(sum(report.seconds for report in mine) / 3600, 6),
            "quarantined": sum(len(report.quarantined) for report in mine),
            "speakers": len(counts.get("speaker", {})),
            "labels": counts.get("label", {}),
            "languages": counts.get("language", {}),
            "genders": counts.get("gender", {}),
            "licences": counts.get("licence", {}),
            "text_sources": counts.get("text_source", {}),
            "scales": counts.get("scale", {}),
            "rated": counts.get("rated", {}),
        }
    return out


def build(old: Mapping | None, reports: Sequence[ShardReport], **changes: Any) -> dict[str, Any]:
    """The next generation's manifest: all shards' reports, ascending by number, and what changes beside them."""
    generation = old["generation"] + 1 if old else 1
    known = {shard["number"]: shard["generation"] for shard in old["shards"]} if old else {}
    shards = [shard_entry(report, known.get(report.number, generation)) for report in reports]
    meta = {
        "format": FORMAT,
        "sample_rate": SAMPLE_RATE,
        "generation": generation,
        "content_hash": content_hash(shards),
        "utterances": sum(shard["rows"] for shard in shards),
        "hours": round(sum(shard["seconds"] for shard in shards) / 3600, 6),
        "quarantined": sum(shard["quarantined"] for shard in shards),
        "corpora": describe(reports),
        "shards": shards,
        "next_shard": max([shard["number"] + 1 for shard in shards], default=0),
        "inputs": [],
        "withdrawn": [],
        "removed": [],
    }
    if old:
        meta["next_shard"] = max(meta["next_shard"], old["next_shard"])
        meta |= {name: old[name] for name in ("inputs", "withdrawn", "removed")}
    return meta | changes


def save(store: Store, meta: Mapping) -> None:
    """Commits a generation: one file put whole."""
    store.put(NAME, (json.dumps(meta, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode())


def sweep(store: Store, meta: Mapping) -> None:
    """Removes what the manifest does not name: leavings of killed runs, erased shards and the targets made from them."""
    named = {name(shard["number"]) for shard in meta["shards"] for name in (shard_name, index_name)}
    for folder in ("shards", "index"):
        store.clean(folder)
        for name in store.list(folder):
            if name not in named:
                store.delete(name)
    store.clean("")
    if meta["removed"]:
        removed = {shard["number"] for shard in meta["removed"]}
        drop_targets(store, lambda number: number in removed)
        for shard in meta["removed"]:
            store.forget(shard_name(shard["number"]), shard["sha256"])


def drop_targets(store: Store, which: Callable[[int], bool]) -> None:
    """Removes the targets of shards by their number, here and in this machine's cache, and what killed writers left."""
    for name in store.list("targets"):
        stem, dot, kind = name.rsplit("/", 1)[-1].partition(".")
        if dot and kind == "arrow" and stem.isdecimal() and which(int(stem)):
            store.forget(name)
            store.delete(name)
    store.clean("targets", deep=True)


def drop_unborn_targets(store: Store, meta: Mapping) -> None:
    """Removes targets of numbers that no shard has had yet: a killed erasure left them, and the number is about to be used."""
    drop_targets(store, lambda number: number >= meta["next_shard"])
