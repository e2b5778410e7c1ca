"""Transcripts beside a dataset: what a recogniser heard, for models that read it (`text_from: asr:<model>`).

    transcripts/<source>/facts.json          which recogniser, its weights, its settings; written first, must stay the same
    transcripts/<source>/000000.parquet      key and text of each row of a shard, in its order; its commit mark

Guarantees: no shard, index or plan changes; a shard's transcripts are one file put whole, which names the shard's sha256,
so a stopped transcription goes on where it was and a shard that was rewritten is due again; an empty transcript is no text.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.dataset import Dataset, ShardInfo
from shards.errors import UserError
from shards.store import Store
from shards.utterance import TEXT_SOURCE_PATTERN

FACTS = "facts.json"
_KEPT: WeakKeyDictionary[Dataset, dict[str, pa.ChunkedArray]] = WeakKeyDictionary()


def folder(source: str) -> str:
    """Folder of a text source such as "asr:openai/whisper-small".

    Raises:
        UserError: It is no `asr:<model>`.
    """
    if not source.startswith("asr:") or not TEXT_SOURCE_PATTERN.fullmatch(source):
        raise UserError(f"text source {source!r} is not asr:<model>", where="transcripts")
    return "transcripts/" + re.sub(r"[^A-Za-z0-9_.-]", "+", source.removeprefix("asr:"))


def settle(store: Store, source: str, facts: Mapping[str, Any]) -> None:
    """Write what the transcripts are made by, or check that those already begun were made alike.

    Raises:
        UserError: Naming the facts that differ.
    """
    path = f"{folder(source)}/{FACTS}"
    wanted = json.loads(json.dumps({"source": source, **facts}))
    if not store.exists(path):
        store.put(path, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    found = json.loads(store.read(path))
    differ = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differ:
        raise UserError(
            f"the transcripts that lie there were made otherwise: {', '.join(differ)} differ",
            where=store.path(folder(source)),
            hint="call the model by another name (--name), or delete that folder",
        )


def due(dataset: Dataset, source: str) -> list[ShardInfo]:
    """Shards without transcripts, or whose transcripts belong to an earlier content."""
    return [shard for shard in dataset.shards if _read(dataset.store, source, shard) is None]


def write(dataset: Dataset, source: str, shard: ShardInfo, texts: Sequence[str | None]) -> None:
    """Commit the transcripts of one shard, a text or None for each of its rows in order."""
    rows = np.arange(shard.rows.start, shard.rows.stop)
    assert len(texts) == len(rows), "a text or None for every row"
    said = [text.strip() or None if text is not None else None for text in texts]
    table = pa.table({"key": dataset.keys(rows), "text": pa.array(said, pa.string())})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"shard_sha256": shard.sha256, "source": source}), sink)
    dataset.store.put(_name(source, shard), sink.getvalue())


def _name(source: str, shard: ShardInfo) -> str:
    return f"{folder(source)}/{shard.number:06d}.parquet"


def _read(store: Store, source: str, shard: ShardInfo) -> pa.Table | None:
    name = _name(source, shard)
    if not store.exists(name):
        return None
    table = pq.read_table(io.BytesIO(store.read(name)))
    same = (table.schema.metadata or {}).get(b"shard_sha256") == shard.sha256.encode()
    return table if same and len(table) == shard.rows.stop - shard.rows.start else None


def read(dataset: Dataset, source: str) -> pa.ChunkedArray:
    """What a recogniser heard of every row, null where it heard nothing; read once a dataset and kept with it.

    Raises:
        UserError: A shard has no transcripts of this source.
    """
    kept = _KEPT.setdefault(dataset, {})
    if source not in kept:
        tables = [_read(dataset.store, source, shard) for shard in dataset.shards]
        lacking = sum(table is None for table in tables)
        if lacking:
            raise UserError(
                f"{lacking} of {len(tables)} shards have no transcripts of {source}",
                where=dataset.store.path(folder(source)),
                hint=f"ser transcribe {dataset.url} --model {source.removeprefix('asr:')}",
            )
        parts = [table["text"] for table in tables if table is not None]
        kept[source] = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
    return kept[source]


def licence(dataset: Dataset, source: str) -> str:
    """Licence of the recogniser, as it was known when it wrote."""
    return json.loads(dataset.store.read(f"{folder(source)}/{FACTS}")).get("licence", "licence not stated")


def adopt(dataset: Dataset, source: str, tables: Sequence[str]) -> None:
    """Take over transcripts that a recogniser wrote elsewhere, for the shards that have none yet.

    Args:
        source: What wrote them, such as "asr:openai/whisper-small".
        tables: Files of tab-separated lines, no header: key (with or without the corpus in front) and text. Rows that no
            table names have no text.

    Raises:
        UserError: No such file, a line that is not key, tab, text, or lines for utterances that are not there.
    """
    said = {key: (text, path) for path in tables for key, text in _table(Path(path)).items()}
    settle(dataset.store, source, {"imported": True})
    found: list[list[str | None]] = []
    for shard in dataset.shards:
        keys = dataset.keys(np.arange(shard.rows.start, shard.rows.stop))
        names = [_called(key, shard.corpus, said) for key in keys]
        found.append([said.pop(name)[0] if name in said else None for name in names])
    for gone in dataset.quarantined():
        said.pop(_called(gone["key"], gone["corpus"], said), None)
    if said:
        key, (_, path) = next(iter(said.items()))
        raise UserError(
            f"{len(said)} transcripts fit no utterance, for example {key!r}",
            where=path,
            hint="the first column is the utterance's key, as `ser data DATASET` prints it",
        )
    for shard in due(dataset, source):
        write(dataset, source, shard, found[shard.index])


def _called(key: str, corpus: str, said: Mapping[str, Any]) -> str:
    return key if key in said else key.removeprefix(f"{corpus}-")


def _table(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise UserError(f"the transcripts cannot be read: {error.strerror}", where=str(path)) from None
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError("not key, tab, text", where=f"{path}:{number}", hint="one utterance a line")
    if not rows:
        raise UserError("the table of transcripts is empty", where=str(path))
    return dict(rows)
