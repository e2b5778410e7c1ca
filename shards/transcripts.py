"""Transcripts beside a dataset: what a recogniser heard, read in the place of the corpus's own texts.

    transcripts/<source>/facts.json          which recogniser, its weights, its settings; written first, must stay the same
    transcripts/<source>/000000.parquet      key and text of each row of a shard, in its order; its commit mark

Guarantees: no shard, index or plan changes; a shard's transcripts are one file put whole, which names the shard's sha256,
so a stopped transcription goes on where it was and a shard that was rewritten is due again; an empty transcript is no text.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.columns import HAS_TEXT
from shards.dataset import Dataset, ShardInfo
from shards.errors import UserError
from shards.store import Store
from shards.utterance import TEXT_SOURCE_PATTERN

FACTS = "facts.json"


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


class Retold(Dataset):
    """A dataset whose texts are those of a recogniser; everything else is the dataset's own.

    Raises:
        UserError: A shard has no transcripts of this source.
    """

    def __init__(self, store: Store, generation: int | None, source: str):
        super().__init__(store, generation)
        self.source = source
        tables = [_read(store, source, shard) for shard in self.shards]
        lacking = [shard.number for shard, table in zip(self.shards, tables) if table is None]
        if lacking:
            raise UserError(
                f"{len(lacking)} of {len(self.shards)} shards have no transcripts of {source}",
                where=store.path(folder(source)),
                hint=f"ser transcribe {store.url} --model {source.removeprefix('asr:')}",
            )
        parts = [table["text"] for table in tables if table is not None]
        self._text = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
        has = self._text.is_valid().to_numpy()
        bits = np.where(has, self.bits | HAS_TEXT, self.bits & ~np.uint8(HAS_TEXT)).astype(np.uint8)
        bits.flags.writeable = False
        self.bits = bits

    def __reduce__(self):
        return Retold, (self.store, self.generation, self.source)

    def fields(self, columns: Sequence[str], rows: Sequence[int] | np.ndarray | None = None) -> pa.Table:
        """As `Dataset.fields`, with the recogniser's `text` and `text_source`."""
        table = super().fields(columns, rows)
        text = self._text if rows is None else self._text.take(pa.array(np.asarray(rows, np.int64)))
        if "text" in columns:
            table = table.set_column(table.schema.get_field_index("text"), "text", text)
        if "text_source" in columns:
            said = pa.array(
                [self.source if known else "none" for known in text.is_valid().to_pylist()], pa.string()
            )
            table = table.set_column(table.schema.get_field_index("text_source"), "text_source", said)
        return table
