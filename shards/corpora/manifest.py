"""Any corpus as a table: CSV, TSV, JSON lines or Parquet, a row an utterance, columns named as fields or mapped to them.

The one thing that is needed is `audio` (a path, from the table's folder, or a URL). Other columns of the name of an
utterance's field are used (key, corpus, recording, start, end, speaker, session, language, gender, age, text, text_source,
duration, label, votes, valence, arousal, dominance, scale, licence), `columns` renames ("label": "emotion"), `defaults`
fills what rows lack; all else goes to `extra`. `start` and `end` cut long recordings without copying them. Votes are
"angry|angry|sad", a JSON list of labels or of {"label", "rater"}, or {"angry": 2, "sad": 1}. Text counts as human
unless text_source says otherwise ("asr:<model>").

    read("my/table.csv", columns={"audio": "path", "label": "emotion"}, defaults={"language": "de", "scale": [1, 7]})
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shards.corpora._common import check_mode, rows_of
from shards.corpora._rows import Mapper, finish
from shards.errors import UserError
from shards.utterance import Utterance

NAMES = ("manifest.csv", "manifest.tsv", "manifest.jsonl", "manifest.parquet")


def read(
    root: str | os.PathLike,
    counts: str = "strict",
    corpus: str | None = None,
    columns: Mapping[str, str] | None = None,
    defaults: Mapping[str, object] | None = None,
    labels: Sequence[str] = (),
    expected: Mapping[str, int] | None = None,
) -> Iterator[Utterance]:
    """Utterances in the order of the table.

    Args:
        root: The table, or a folder with manifest.csv, .tsv, .jsonl or .parquet.
        counts: Rules missing files, double keys and `expected`; see `shards.corpora`.
        corpus: The corpus's name; by default the table's own, or its folder's if that is "manifest".
        columns: Utterance field to column.
        defaults: Utterance field to the value of rows without one.
        labels: Allowed labels; empty allows all.
        expected: Number of utterances per label, asserted.

    Raises:
        UserError: No table, unknown field, missing column, or a cell that does not fit, with its line.
    """
    check_mode(counts)
    table = find_table(Path(root))
    name = corpus or (table.stem if table.stem != "manifest" else table.resolve().parent.name)
    mapper = Mapper(name, table.parent, columns or {}, defaults or {}, tuple(labels))
    rows = ((place, mapper.utterance(row, place)) for place, row in table_rows(table))
    return iter(finish(name, rows, counts, table, expected))


def find_table(path: Path) -> Path:
    """The table itself, or the manifest in a folder."""
    if path.is_file():
        return path
    found = [path / name for name in NAMES if (path / name).is_file()]
    if len(found) != 1:
        what = "there is no manifest" if not found else f"there are {len(found)} manifests"
        raise UserError(
            what,
            where=str(path),
            hint=f"give the table's own path, or one of {', '.join(NAMES)} in the folder",
        )
    return found[0]


def table_rows(table: Path) -> Iterator[tuple[str, dict]]:
    """(place, row) of a table of any of the four kinds."""
    suffix = table.suffix.lower()
    if suffix in (".csv", ".tsv"):
        for line, row in rows_of(table, "\t" if suffix == ".tsv" else ","):
            yield f"{table}, line {line}", row
    elif suffix == ".jsonl":
        with open(table, encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield f"{table}, line {line}", _object(text, f"{table}, line {line}")
    elif suffix == ".parquet":
        yield from _parquet(table)
    else:
        raise UserError(
            f"{suffix or 'no suffix'} is no kind of table",
            where=str(table),
            hint="use .csv, .tsv, .jsonl or .parquet",
        )


def _object(text: str, place: str) -> dict:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=place, hint="write one object a line") from error
    if not isinstance(row, dict):
        raise UserError("not a JSON object", where=place, hint="write one object a line")
    return row


def _parquet(table: Path) -> Iterator[tuple[str, dict]]:
    import pyarrow  # only for this kind of table
    import pyarrow.parquet

    try:
        line = 0
        for batch in pyarrow.parquet.ParquetFile(table).iter_batches():
            for row in batch.to_pylist():
                line += 1
                yield f"{table}, row {line}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"not a readable Parquet file: {error}", where=str(table), hint="write it again"
        ) from error
