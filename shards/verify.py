"""Re-reading a whole dataset, past every cache, and naming what is wrong with it.

Guarantees: every byte of every shard, index, file of targets and of plan.arrow is read; each problem names its file and, where it can, its key;
damage in one place does not hide damage in another. Members of a tar are data: their names are compared, never used as paths.
"""

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from shards import columns, manifest
from shards.audio import BadAudio, decode_flac
from shards.errors import UserError
from shards.index import SCHEMA, facts_of, index_name, key_hash, member, read_report, shard_name
from shards.pack import Run, serial
from shards.store import Store
from shards.target_list import check_folder, folders_of
from shards.utterance import SAMPLE_RATE


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file of the dataset, with which utterance ("" for the file itself), and what."""

    file: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key + ': ' if self.key else ''}{self.what}"


def verify(url: str, run: Run = serial) -> list[Problem]:
    """Checks everything in a dataset; an empty list means that all is well.

    Args:
        run: Maps a function over the shards, then over the folders of targets, in any order (see `shards.pack.pack`).

    Raises:
        UserError: There is no dataset, or `dataset.json` itself is damaged.
    """
    store = Store(url)
    meta = manifest.require(store)
    problems: list[Problem] = []
    keys: dict[str, str] = {}
    for name, found, mine in run(partial(check_shard, store), meta["shards"]):
        problems += mine
        for key in found:
            if key.lower() in keys:
                problems.append(Problem(name, key, f"the key occurs in {keys[key.lower()]} too"))
            keys[key.lower()] = name
    problems += check_columns(store, meta, whole=not problems)
    for mine in run(partial(check_targets, store), sorted(folders_of(store))):
        problems += mine
    return sorted(problems, key=lambda p: (p.file, p.key, p.what))


def check_targets(store: Store, place: tuple[str, str]) -> list[Problem]:
    """Checks the files of one (teacher, fingerprint)."""
    return [Problem(name, "", what) for name, what in check_folder(store, place)]


def check_shard(store: Store, entry: dict) -> tuple[str, list[str], list[Problem]]:
    """Checks one shard of a manifest and its index. Returns the tar's name, its keys, and the problems."""
    name, problems = shard_name(entry["number"]), []
    rows = _check_index(store, entry, problems)
    try:
        with store.copy(name) as path:
            _check_tar(path, name, entry, rows, problems)
    except FileNotFoundError:
        problems.append(Problem(name, "", "the shard is missing"))
    except OSError as error:
        problems.append(Problem(name, "", f"cannot be read: {error.strerror or error}"))
    return name, [row["key"] for row in rows or ()], problems


def _check_index(store: Store, entry: dict, problems: list[Problem]) -> list[dict] | None:
    name = index_name(entry["number"])
    try:
        data = store.read(name)
    except FileNotFoundError:
        problems.append(Problem(name, "", "the index file is missing"))
        return None
    if hashlib.sha256(data).hexdigest() != entry["index_sha256"]:
        problems.append(Problem(name, "", "the index file is damaged: its sha256 differs from dataset.json"))
        return None  # what it says of the audio cannot be trusted
    try:
        table = pq.read_table(pa.BufferReader(data))
        if table.schema.remove_metadata() != SCHEMA:
            raise ValueError("its columns are not those of this format")
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        problems.append(Problem(name, "", f"the index file cannot be read: {str(error).splitlines()[0]}"))
        return None
    if len(rows) != entry["rows"]:
        problems.append(Problem(name, "", f"{len(rows)} rows, dataset.json says {entry['rows']}"))
    report = read_report(store, entry["number"])
    if report is None or (report.sha256, report.bytes) != (entry["sha256"], entry["bytes"]):
        problems.append(Problem(name, "", "its record of the shard is not that of dataset.json"))
    for row in rows:
        if row["key_hash"] != key_hash(row["key"]):
            problems.append(Problem(name, row["key"], "the key's hash is wrong"))
        if row["duration"] != row["samples"] / SAMPLE_RATE:
            problems.append(Problem(name, row["key"], "duration and samples disagree"))
    return rows


def _check_tar(path: str, name: str, entry: dict, rows: list[dict] | None, problems: list[Problem]) -> None:
    size = os.stat(path).st_size
    if size != entry["bytes"]:
        problems.append(Problem(name, "", f"{size} bytes, dataset.json says {entry['bytes']}"))
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            problems.append(Problem(name, "", "its sha256 differs from dataset.json"))
        for row in rows or ():
            file.seek(row["offset"])
            data = file.read(row["size"])
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                problems.append(Problem(name, row["key"], "the audio's sha256 differs from the index"))
            try:
                samples = len(decode_flac(data))
                if samples != row["samples"]:
                    problems.append(
                        Problem(name, row["key"], f"{samples} samples, the index says {row['samples']}")
                    )
            except BadAudio as error:
                problems.append(Problem(name, row["key"], str(error)))
    _check_members(path, name, rows, problems)


def _check_members(path: str, name: str, rows: list[dict] | None, problems: list[Problem]) -> None:
    """Walks the tar as a stock reader would: names, order, places and the JSON members."""
    expected = [(f"{row['key']}.{kind}", row, kind) for row in rows or () for kind in ("flac", "json")]
    at = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                wanted, row, kind = expected[at] if at < len(expected) else ("the end", None, "")
                if rows is not None and info.name != wanted:
                    key = row["key"] if row else ""
                    problems.append(
                        Problem(name, key, f"member {at} is {info.name!r}, the index says {wanted!r}")
                    )
                    return
                at += 1
                if row and kind == "flac" and (info.offset_data, info.size) != (row["offset"], row["size"]):
                    problems.append(
                        Problem(name, row["key"], "lies elsewhere in the tar than the index says")
                    )
                if row and kind == "json":
                    text = tar.extractfile(info)  # None where the member is no plain file
                    if text is None or text.read() != member(facts_of(row)):
                        problems.append(Problem(name, row["key"], "its JSON differs from the index"))
    except (tarfile.TarError, EOFError, json.JSONDecodeError) as error:
        problems.append(Problem(name, "", f"not a whole tar: {error}"))
        return
    if rows is not None and at < len(expected):
        problems.append(
            Problem(name, expected[at][1]["key"], f"the tar ends before member {expected[at][0]!r}")
        )


def check_columns(store: Store, meta: dict, whole: bool) -> list[Problem]:
    """Compares plan.arrow with what the index gives. `whole` says that the index can be trusted."""
    if not store.is_local or not store.exists(columns.NAME):
        return []  # it is made when the dataset is opened
    hint = "delete it, it is made again from the index"
    try:
        columns.Columns(store.path(columns.NAME), meta)
    except (pa.ArrowException, OSError, ValueError) as error:
        what = "is older than dataset.json" if "another content" in str(error) else f"cannot be read: {error}"
        return [Problem(columns.NAME, "", f"{what.splitlines()[0]}; {hint}")]
    if whole:
        try:
            if columns.build(store, meta) != store.read(columns.NAME):
                return [Problem(columns.NAME, "", f"is damaged: it differs from the index; {hint}")]
        except UserError as error:
            return [Problem(columns.NAME, "", str(error))]
    return []
