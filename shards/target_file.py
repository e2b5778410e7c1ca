"""One side-shard: the Arrow file that holds what a teacher said of one view of one shard.

Guarantees: the bytes are a pure function of the contents; a file that is cut short, damaged in its structure, of
another layout or made for other audio is never read as numbers (`MappedFile` raises, `shard_sha256` tells); opening runs
no code and allocates nothing beyond the mapping; rows are numpy views on the mapped file, found by an offset, so that
frames are read at memory speed.

Gives up: flipped bits inside the numbers are found by `MappedFile.check_sum` only, which reads the whole file.

Layout: one record batch; column `state` uint8, then a column an output. A dense output is FixedSizeList of its flattened
shape, zeros where there is nothing; a ragged one (frame, token) is LargeList of such FixedSizeList. No nulls anywhere, no
compression. File metadata: `view`, `shard_sha256`, `fingerprint`, `crc32` of the numbers.
"""

import json
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from shards.errors import UserError
from shards.store import Store
from shards.target_spec import DTYPES, Output, TargetSpec

ABSENT, PRESENT, NO_INPUT, QUARANTINED = 0, 1, 2, 3
DELETE = "delete the file and run the targets again: only its rows are computed anew"


def schema_of(outputs: Sequence[Output]) -> pa.Schema:
    """Arrow schema of a side-shard of these outputs (no metadata)."""
    columns = [pa.field(o.name, o.arrow(), nullable=False) for o in outputs]
    return pa.schema([pa.field("state", pa.uint8(), nullable=False), *columns])


def _numbers(output: Output, values: np.ndarray) -> pa.Array:
    """(N * width) numbers as FixedSizeList, without a copy."""
    flat = np.ascontiguousarray(values, output.numpy).reshape(-1)
    leaf = pa.Array.from_buffers(DTYPES[output.dtype][1], flat.size, [None, pa.py_buffer(flat)])
    item = output.arrow().value_type if output.ragged else output.arrow()
    return pa.Array.from_buffers(item, flat.size // output.width, [None], children=[leaf])


def encode(
    outputs: Sequence[Output],
    states: np.ndarray,
    columns: Mapping[str, Sequence[np.ndarray | None]],
    about: dict,
) -> bytes:
    """A whole side-shard as bytes.

    Args:
        outputs: The layout.
        states: uint8 (n,).
        columns: Output name -> n arrays of `shape` (dense) or (T_i, *shape) (ragged); None where there is nothing.
        about: Metadata texts: view, shard_sha256, fingerprint.
    """
    states = np.ascontiguousarray(states, np.uint8)
    arrays, crc = (
        [pa.Array.from_buffers(pa.uint8(), len(states), [None, pa.py_buffer(states)])],
        zlib.crc32(states.data),
    )
    for output in outputs:
        rows = columns[output.name]
        if output.ragged:
            empty = np.zeros((0, *output.shape), output.numpy)
            filled = [empty if row is None else row for row in rows]
            offsets = np.zeros(len(rows) + 1, np.int64)
            np.cumsum([len(row) for row in filled], out=offsets[1:])
            values = np.concatenate([empty, *filled]).astype(output.numpy, copy=False)
            arrays.append(
                pa.Array.from_buffers(
                    output.arrow(),
                    len(rows),
                    [None, pa.py_buffer(offsets)],
                    children=[_numbers(output, values)],
                )
            )
            crc = zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(offsets.data, crc))
        else:
            values = np.zeros((len(rows), *output.shape), output.numpy)
            for i, row in enumerate(rows):
                if row is not None:
                    values[i] = row
            arrays.append(_numbers(output, values))
            crc = zlib.crc32(values.data, crc)
    schema = schema_of(outputs).with_metadata({**about, "crc32": f"{crc:08x}"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return sink.getvalue().to_pybytes()


class MappedFile:
    """A side-shard mapped into memory. All arrays are read-only views; they keep the mapping alive by themselves.

    Args:
        source: Path of a local file to map, or the bytes of a file.
        outputs: The layout it must have.
        where: What to call the file in errors; default its path.

    Attributes:
        states: uint8 (n,).
        dense: Output name -> (n, *shape).
        ragged: Output name -> (offsets int64 (n + 1,), values (N, *shape)).
        view, shard_sha256, fingerprint: What the file says it is.

    Raises:
        UserError: The file is cut short, damaged, or of another layout than `outputs`.
    """

    def __init__(self, source: str | bytes, outputs: Sequence[Output], where: str = ""):
        self.outputs = tuple(outputs)
        where = where or (source if isinstance(source, str) else "")
        try:
            opened = pa.memory_map(source) if isinstance(source, str) else pa.BufferReader(source)
            with opened, pa.ipc.open_file(opened) as reader:
                self._take(reader)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"this file of targets is damaged ({type(error).__name__}: {reason})",
                where=where,
                hint=DELETE,
            ) from error

    def _take(self, reader: pa.RecordBatchFileReader) -> None:
        # The schema is compared before any number is touched: what follows relies on its types.
        if not reader.schema.equals(schema_of(self.outputs), check_metadata=False):
            raise ValueError(f"its columns are {reader.schema.names}, not those of targets.json")
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches instead of 1")
        about = reader.schema.metadata or {}
        self.view, self.shard_sha256, self.fingerprint, self.crc32 = (
            about[name].decode() for name in (b"view", b"shard_sha256", b"fingerprint", b"crc32")
        )
        batch = reader.get_batch(0)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("nulls")
        self.states = _view(batch.column(0).buffers()[1], np.uint8, batch.num_rows)
        if self.states.size and self.states.max() > QUARANTINED:
            raise ValueError(f"state {self.states.max()}")
        self.dense, self.ragged = {}, {}
        for column, output in zip(batch.columns[1:], self.outputs):
            count = batch.num_rows
            if output.ragged:
                offsets = _view(column.buffers()[1], np.int64, count + 1 if count else 0)
                offsets = offsets if count else np.zeros(1, np.int64)
                count = int(offsets[-1])
                if offsets[0] != 0 or np.any(np.diff(offsets) < 0):
                    raise ValueError(f"offsets of {output.name}")
            values = _view(column.buffers()[-1], output.numpy, count * output.width).reshape(
                count, *output.shape
            )
            if output.ragged:
                self.ragged[output.name] = (offsets, values)
            else:
                self.dense[output.name] = values

    def row(self, output: Output, i: int) -> np.ndarray:
        """Row i of an output, a view on the file."""
        if output.ragged:
            offsets, values = self.ragged[output.name]
            return values[offsets[i] : offsets[i + 1]]
        return self.dense[output.name][i]

    def check_sum(self) -> bool:
        """Whether the numbers are those that were written (reads the whole file)."""
        crc = zlib.crc32(self.states.data)
        for output in self.outputs:
            if output.ragged:
                offsets, values = self.ragged[output.name]
                crc = zlib.crc32(values.data, zlib.crc32(offsets.data, crc))
            else:
                crc = zlib.crc32(self.dense[output.name].data, crc)
        return f"{crc:08x}" == self.crc32


def _view(buffer: pa.Buffer | None, dtype: np.dtype | type, count: int) -> np.ndarray:
    """`count` numbers of a buffer as a view; ValueError where the buffer is too short."""
    if not count:
        return np.zeros(0, dtype)
    if buffer is None:
        raise ValueError("numbers are missing")
    return np.frombuffer(buffer, dtype, count=count)


def open_file(
    store: Store, name: str, spec: TargetSpec, folder: str, cached: bool = True
) -> MappedFile | None:
    """A side-shard, None where there is none. UserError where it is damaged or in another's place.

    `cached=False` leaves no copy of a remote file on this machine.
    """
    where = store.path(name)
    try:
        path = store.local(name) if cached or store.is_local else None
        found = MappedFile(store.read(name) if path is None else path, spec.outputs, where)
    except FileNotFoundError:
        # Not there, or a cached copy that another process dropped between its look-up and our opening it.
        if store.is_local or not store.exists(name):
            return None
        found = MappedFile(store.read(name), spec.outputs, where)
    if (found.fingerprint, found.view) != (spec.fingerprint, folder):
        raise UserError(
            f"this file holds {found.view} of fingerprint {found.fingerprint}; its place is {folder} of {spec.fingerprint}",
            where=where,
            hint=DELETE,
        )
    return found


def read_spec(store: Store, teacher: str, fingerprint: str) -> TargetSpec:
    """The spec that stands in a folder. FileNotFoundError where none does; UserError where it is damaged or edited."""
    name = f"targets/{teacher}/{fingerprint}/targets.json"
    try:
        spec = TargetSpec.from_dict(json.loads(store.read(name)))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"this file does not describe targets: {error}",
            where=store.path(name),
            hint="delete the folder it lies in and run the targets again",
        ) from error
    if (spec.teacher, spec.fingerprint) != (teacher, fingerprint):
        raise UserError(
            f"what this file says has the fingerprint {spec.teacher}/{spec.fingerprint}, not that of its folder",
            where=store.path(name),
            hint="it was edited or moved: delete the folder it lies in and run the targets again",
        )
    return spec
