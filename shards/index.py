"""The index: a row an utterance, one Parquet file a shard, and what is derived from it.

Guarantees: the same rows give the same bytes (one pyarrow version); the file carries its shard's record (spec, tar sha256,
counts, quarantine) in its own metadata, so that it alone says whether its shard is finished; a damaged file is a
`UserError` that names it.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.store import Store
from shards.utterance import SAMPLE_RATE, Utterance

FORMAT = 1  # raise it whenever the same utterances would give other bytes in a tar or an index

_VOTE = pa.struct([("label", pa.string()), ("rater", pa.string())])
FACTS = pa.schema(
    [
        ("key", pa.string()),
        ("corpus", pa.string()),
        ("recording", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("speaker", pa.string()),
        ("session", pa.string()),
        ("language", pa.string()),
        ("gender", pa.string()),
        ("age", pa.float64()),
        ("text", pa.string()),
        ("text_source", pa.string()),
        ("duration", pa.float64()),
        ("label", pa.string()),
        ("votes", pa.list_(_VOTE)),
        ("valence", pa.float64()),
        ("arousal", pa.float64()),
        ("dominance", pa.float64()),
        ("scale", pa.list_(pa.float64())),
        ("licence", pa.string()),
        ("extra", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        *FACTS,
        ("key_hash", pa.uint64()),
        ("samples", pa.int64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("source", pa.string()),
    ]
)
_RECORD = b"shard"


def key_hash(key: str) -> int:
    """First 64 bits of sha256(key): its order is the order of sha256(key), that of rows within a corpus."""
    return struct.unpack(">Q", hashlib.sha256(key.encode()).digest()[:8])[0]


def shard_name(number: int) -> str:
    """Name of a shard's tar inside the dataset."""
    return f"shards/{number:06d}.tar"


def index_name(number: int) -> str:
    """Name of a shard's index inside the dataset."""
    return f"index/{number:06d}.parquet"


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no blanks: the bytes that are hashed. Raises ValueError on NaN and infinity."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def facts(utterance: Utterance, duration: float | None) -> dict:
    """What the dataset tells about an utterance: its fields less `audio`, with the measured duration in seconds."""

    def number(value: float | None) -> float | None:
        return None if value is None else float(value)

    row = {name: getattr(utterance, name) for name in FACTS.names if name not in ("votes", "scale", "extra")}
    for name in ("start", "end", "age", "valence", "arousal", "dominance"):
        row[name] = number(row[name])
    row["duration"] = duration
    row["votes"] = [{"label": vote.label, "rater": vote.rater} for vote in utterance.votes]
    row["scale"] = None if utterance.scale is None else [float(border) for border in utterance.scale]
    row["extra"] = dict(utterance.extra)
    return row


def member(row: Mapping) -> bytes:
    """The `<key>.json` of a tar from `facts`."""
    return canonical(row)


def index_row(row: Mapping, samples: int, offset: int, flac: bytes, source: str) -> dict:
    """A row of the index from `facts` and the place of the FLAC bytes in the tar."""
    return {
        **row,
        "extra": canonical(row["extra"]).decode(),
        "key_hash": key_hash(row["key"]),
        "samples": samples,
        "offset": offset,
        "size": len(flac),
        "sha256": hashlib.sha256(flac).hexdigest(),
        "source": source,
    }


def facts_of(row: Mapping) -> dict:
    """`facts` from a row of the index."""
    return {**{name: row[name] for name in FACTS.names}, "extra": json.loads(row["extra"])}


@dataclass(frozen=True)
class ShardReport:
    """What is known of a finished shard; kept in its index file.

    Attributes:
        number: Of the files; never used twice in a dataset.
        corpus: The one corpus in it.
        spec: sha256 of what it was made from.
        rows, seconds: Utterances in it and their measured duration.
        bytes, sha256: Of the tar.
        index_sha256: Of the index file.
        quarantined: {key, speaker, reason, source} of each utterance left out because its audio is broken.
        summary: Counts of labels, languages, speakers, ...: name -> value -> utterances.
        written: False where the shard was found finished.
    """

    number: int
    corpus: str
    spec: str
    rows: int
    seconds: float
    bytes: int
    sha256: str
    index_sha256: str = ""
    quarantined: tuple[dict, ...] = ()
    summary: dict[str, dict[str, int]] = field(default_factory=dict)
    written: bool = True


def summarise(table: pa.Table) -> dict[str, dict[str, int]]:
    """Counts of each value of the columns a reader of dataset.json asks for; null is left out."""

    def counts(column: pa.ChunkedArray) -> dict[str, int]:
        found = {
            str(item["values"]): item["counts"]
            for item in column.value_counts().to_pylist()
            if item["values"]
        }
        return dict(sorted(found.items()))

    names = ("label", "language", "speaker", "gender", "licence", "text_source")
    out = {name: counts(table[name]) for name in names}
    scales = pa.array(
        [None if s is None else "..".join(f"{x:g}" for x in s) for s in table["scale"].to_pylist()]
    )
    out["scale"] = counts(scales) if scales.null_count < len(scales) else {}
    out["rated"] = {n: len(table) - table[n].null_count for n in ("valence", "arousal", "dominance")}
    return out


def write_index(store: Store, report: ShardReport, rows: Sequence[Mapping]) -> ShardReport:
    """Writes a shard's index, the mark that the shard is finished. Returns the report with all its counts."""
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    table = pa.table(columns, schema=SCHEMA)
    record = asdict(report) | {
        "rows": len(rows),
        "seconds": sum(columns["samples"]) / SAMPLE_RATE,
        "summary": summarise(table),
        "format": FORMAT,
    }
    del record["index_sha256"], record["written"]
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_RECORD: canonical(record)}), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    store.put(index_name(report.number), data)
    return _report(record, data)


def _report(record: dict, data: bytes, written: bool = True) -> ShardReport:
    record = {name: value for name, value in record.items() if name != "format"}
    digest = hashlib.sha256(data).hexdigest()
    return ShardReport(
        **{**record, "quarantined": tuple(record["quarantined"])}, index_sha256=digest, written=written
    )


def read_report(store: Store, number: int) -> ShardReport | None:
    """The report of a finished shard, from its index; None where there is none that can be read."""
    try:
        data = store.read(index_name(number))
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata
        return _report(json.loads(metadata[_RECORD]), data, written=False)
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError, ValueError, TypeError):
        return None


def read_index(store: Store, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one shard's index.

    Raises:
        UserError: The file is missing or damaged.
    """
    name = index_name(number)
    try:
        table = pq.read_table(pa.BufferReader(store.read(name)), columns=list(columns) if columns else None)
    except FileNotFoundError as error:
        raise UserError(
            "an index file is missing", where=store.path(name), hint=f"ser verify {store.url}"
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"an index file is damaged: {str(error).splitlines()[0]}",
            where=store.path(name),
            hint=f"ser verify {store.url} names all damage; restore the file from a copy or pack anew",
        ) from error
    wanted = SCHEMA.names if columns is None else columns
    if table.column_names != list(wanted):
        raise UserError("an index file has other columns than this format", where=store.path(name))
    return table


def merge(summaries: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Sums of summaries."""
    total: dict[str, dict[str, int]] = {}
    for summary in summaries:
        for name, counts in summary.items():
            into = total.setdefault(name, {})
            for value, count in counts.items():
                into[value] = into.get(value, 0) + count
    return {name: dict(sorted(counts.items())) for name, counts in total.items()}
