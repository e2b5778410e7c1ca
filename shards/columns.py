"""plan.arrow: the few columns that plans, folds and range reads need, memory-mapped.

Guarantees: derived from the index alone and rebuilt whenever it is missing, unreadable or of another content; opening does
not depend on the number of rows but for the page cache; equal indexes give equal bytes. Row order is shard order and,
within a shard, tar order.
Gives up: codes are ranks in sorted vocabularies, so they change when a corpus is added; only the strings may be stored.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import UserError
from shards.index import FORMAT, read_index
from shards.store import Store

NAME = "plan.arrow"
HAS_VALENCE, HAS_AROUSAL, HAS_DOMINANCE, HAS_TEXT = 1, 2, 4, 8
NUMBERS = {
    "key_hash": pa.uint64(),
    "samples": pa.int64(),
    "label": pa.int32(),
    "language": pa.int32(),
    "speaker": pa.int32(),
    "recording": pa.int32(),
    "corpus": pa.int32(),
    "shard": pa.int32(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "bits": pa.uint8(),
}
VOCABULARIES = ("label", "language", "speaker", "recording", "corpus")
_OWN = ("label", "speaker", "recording")  # ids that mean something inside their corpus only
_READ = ["key_hash", "samples", "offset", "size", *VOCABULARIES, "valence", "arousal", "dominance", "text"]


def build(store: Store, meta: Mapping) -> bytes:
    """plan.arrow of the shards that a manifest names, as bytes.

    Raises:
        UserError: An index file is missing, damaged, or not as long as the manifest says.
    """
    numbers = [shard["number"] for shard in meta["shards"]]
    with ThreadPoolExecutor(1 if store.is_local else 16) as pool:
        tables = list(pool.map(lambda number: read_index(store, number, _READ), numbers))
    for shard, table in zip(meta["shards"], tables):
        if len(table) != shard["rows"]:
            raise UserError(
                f"index {shard['number']:06d} has {len(table)} rows, dataset.json says {shard['rows']}",
                where=store.url,
                hint=f"ser verify {store.url}",
            )
    if not tables:
        table = pa.table({name: [] for name in _READ})
    else:
        table = pa.concat_tables(tables)
    columns = {name: table[name].to_numpy() for name in ("key_hash", "samples", "offset", "size")}
    columns["shard"] = np.repeat(np.arange(len(tables), dtype=np.int32), [len(t) for t in tables])
    columns["bits"] = sum(
        (table[name].is_valid().to_numpy().astype(np.uint8) * np.uint8(bit))
        for name, bit in zip(("valence", "arousal", "dominance", "text"), (1, 2, 4, 8))
    )
    about = {"content_hash": meta["content_hash"], "format": str(FORMAT)}
    for name in VOCABULARIES:
        values = table[name]
        if name in _OWN:
            parts = [table["corpus"], values.cast(pa.string()), pa.scalar("/")]
            values = pc.call_function("binary_join_element_wise", parts)
        columns[name], words = _encode(values)
        about[f"vocabulary:{name}"] = json.dumps(words, ensure_ascii=False)
    schema = pa.schema([pa.field(n, t, nullable=False) for n, t in NUMBERS.items()], metadata=about)
    arrays = [pa.array(np.ascontiguousarray(columns[name]), type=kind) for name, kind in NUMBERS.items()]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return sink.getvalue().to_pybytes()


def _encode(values: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Codes int32 into the sorted distinct values; -1 for null."""
    words = sorted(word for word in values.unique().to_pylist() if word is not None)
    options = pc.SetLookupOptions(value_set=pa.array(words, pa.string()))
    codes = pc.call_function("index_in", [values], options)
    return codes.fill_null(-1).to_numpy().astype(np.int32), words


class Columns:
    """The mapped columns: read-only numpy arrays by name, vocabularies decoded when first asked for."""

    def __init__(self, path: str, meta: Mapping):
        """Raises pyarrow.ArrowException, OSError or ValueError where the file is not the plan of this manifest."""
        with pa.memory_map(path) as file:
            table = pa.ipc.open_file(file).read_all()
        self._about = table.schema.metadata or {}
        rows = sum(shard["rows"] for shard in meta["shards"])
        if (
            self._about.get(b"content_hash") != meta["content_hash"].encode()
            or self._about.get(b"format") != str(FORMAT).encode()
            or {field.name: field.type for field in table.schema} != NUMBERS
            or len(table) != rows
        ):
            raise ValueError("made from another content")
        self.numbers = {name: _view(table[name], kind) for name, kind in NUMBERS.items()}
        self._words: dict[str, list[str]] = {}

    def vocabulary(self, name: str) -> list[str]:
        """The strings behind a column of codes."""
        if name not in self._words:
            self._words[name] = json.loads(self._about[f"vocabulary:{name}".encode()])
        return self._words[name]


def _view(column: pa.ChunkedArray, kind: pa.DataType) -> np.ndarray:
    if not len(column):
        return np.empty(0, kind.to_pandas_dtype())
    return column.chunk(0).to_numpy(zero_copy_only=True)


def open_columns(store: Store, meta: Mapping) -> Columns:
    """The columns of a dataset, made anew where the file is missing, unreadable or old.

    They lie beside `dataset.json` where that is a local folder one may write to, else in the machine's cache.

    Raises:
        UserError: The index cannot be read, or there is no space for the file.
    """
    beside = store.is_local and os.access(store.root, os.W_OK)
    entry = f"plan-{FORMAT}-{meta['content_hash'][:32]}"
    places = [store.path(NAME)] if store.is_local else []
    if not beside:
        places += filter(None, [store.cache.get(entry)])
    for path in places:
        try:
            return Columns(path, meta)
        except (pa.ArrowException, OSError, ValueError):
            continue
    data = build(store, meta)
    if beside:
        store.put(NAME, data)
        return Columns(store.path(NAME), meta)
    path = store.cache.put(entry, data)
    if path is None:
        raise UserError(
            f"the columns of this dataset take {len(data)} bytes, more than the whole cache",
            where=str(Path(store.cache.directory)),
            hint=f"export SER_CACHE_BYTES={4 * len(data)}",
        )
    return Columns(path, meta)
