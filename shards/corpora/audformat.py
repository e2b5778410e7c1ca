"""audEERING's audformat: a header db.yaml, tables db.<table>.csv or .parquet (filewise or segmented), and media files.

Specification: audeering.github.io/audformat. Read by this project itself: pickled tables (db.<table>.pkl) are refused,
since opening them would run code; no other package is needed.

The utterances are the rows of one table (`table=`, else the only one, else the one with the label's column); other
tables are joined by file, segmented ones by file, start and end. Columns are found by name (emotion, speaker,
transcription, gender, age, valence, ...) or named: columns={"label": "table.column"}. Labels of a scheme may carry facts
(speaker 3: gender, age, language), inline or in a misc table; they are used. Minimum and maximum of the dimensions'
schemes are the scale. Columns of the label's scheme with other raters become `votes`. Languages are ISO 639-3 there
and 639-1 here, where such a code is known. A segment's missing end is the end of the file.
"""

import datetime
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shards.corpora._common import check_mode, corpus_root, some
from shards.corpora._rows import Mapper, finish
from shards.corpora.manifest import table_rows
from shards.errors import UserError
from shards.utterance import Utterance

GUESSES = {
    "label": ("emotion", "emotion.categories", "label", "category"),
    "speaker": ("speaker", "speaker_id"),
    "session": ("session",),
    "language": ("language",),
    "gender": ("gender", "sex"),
    "age": ("age",),
    "text": ("transcription", "transcript", "text"),
    "duration": ("duration",),
    "valence": ("valence",),
    "arousal": ("arousal", "activation"),
    "dominance": ("dominance",),
}
LANGUAGES = dict(
    zip(
        [
            "deu",
            "eng",
            "fra",
            "fre",
            "ger",
            "pol",
            "fin",
            "urd",
            "ita",
            "spa",
            "por",
            "nld",
            "dut",
            "swe",
            "dan",
            "nor",
            "ces",
            "cze",
            "tur",
            "ell",
            "gre",
            "rus",
            "zho",
            "chi",
            "cmn",
            "jpn",
            "kor",
            "hin",
            "fas",
            "per",
            "ara",
            "est",
            "hun",
            "ben",
        ],
        [
            "de",
            "en",
            "fr",
            "fr",
            "de",
            "pl",
            "fi",
            "ur",
            "it",
            "es",
            "pt",
            "nl",
            "nl",
            "sv",
            "da",
            "no",
            "cs",
            "cs",
            "tr",
            "el",
            "el",
            "ru",
            "zh",
            "zh",
            "zh",
            "ja",
            "ko",
            "hi",
            "fa",
            "fa",
            "ar",
            "et",
            "hu",
            "bn",
        ],
        strict=True,
    )
)
TIME = re.compile(r"(?:(-?\d+) days?)?\s*(?:(\d+):(\d+):(\d+(?:\.\d+)?))?")
INDEX = ("file", "start", "end")


def read(
    root: str | os.PathLike,
    counts: str = "strict",
    corpus: str | None = None,
    table: str | None = None,
    columns: Mapping[str, str] | None = None,
    defaults: Mapping[str, object] | None = None,
    labels: Sequence[str] = (),
    expected: Mapping[str, int] | None = None,
) -> Iterator[Utterance]:
    """Utterances in the order of the table; `columns` values are "column" or "table.column", the rest as in `manifest`."""
    check_mode(counts)
    folder = corpus_root(root, "audformat")
    path = folder / "db.yaml"
    if not path.is_file():
        raise UserError("audformat: no db.yaml", where=str(folder), hint="give the folder of the database")
    header = _header(path)
    if not isinstance(header, dict) or not header.get("tables"):
        raise UserError(
            "audformat: the header names no tables", where=str(path), hint="save the database again"
        )
    name = corpus or str(header.get("name") or folder.name)
    chosen = _columns(header, dict(columns or {}), table, path)
    main = _main(header, chosen, table, path)
    known = {
        "language": _language(header.get("languages")),
        "licence": header.get("license"),
        "scale": _scale(header, chosen),
    }
    mapper = Mapper(name, folder, {}, {**known, **(defaults or {})}, tuple(labels))
    pairs = ((place, mapper.utterance(row, place)) for place, row in _joined(folder, header, main, chosen))
    return iter(finish(name, pairs, counts, path, expected))


def _columns(
    header: dict, named: dict[str, str], table: str | None, path: Path
) -> dict[str, tuple[str, str]]:
    """Utterance field to (table, column): the named ones, else the guesses, in the main table first."""
    tables = {
        str(key): [str(name) for name in (value.get("columns") or {})]
        for key, value in header["tables"].items()
    }
    order = sorted(tables, key=lambda key: key != table)
    result = {}
    for field in {**GUESSES, **named}:
        tried = [named[field]] if field in named else list(GUESSES[field])
        hits = [
            (home, column)
            for wish in tried
            for home in order
            for column in tables[home]
            if wish in (column, f"{home}.{column}")
        ]
        if hits:
            result[field] = hits[0]
        elif field in named:
            have = [f"{home}.{column}" for home in order for column in tables[home]]
            raise UserError(
                f"audformat: no column {named[field]!r}", where=str(path), hint=f"use one of {some(have, 20)}"
            )
    return result


def _main(header: dict, chosen: dict[str, tuple[str, str]], table: str | None, path: Path) -> str:
    tables = [str(key) for key in header["tables"]]
    main = table or (tables[0] if len(tables) == 1 else chosen["label"][0] if "label" in chosen else None)
    if main not in tables:
        what = f"audformat: no table {main!r}" if main else "audformat: which table holds the utterances?"
        raise UserError(what, where=str(path), hint=f"table: one of {some(tables, 20)}")
    return main


def _joined(
    folder: Path, header: dict, main: str, chosen: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, dict]]:
    """Rows of the main table with everything else about them, under the names of utterance fields."""
    others = {home: _indexed(folder, home) for home, _ in chosen.values() if home != main}
    facts = {field: _facts(folder, header, *place) for field, place in chosen.items()}
    raters = _raters(header, main, chosen)
    taken = {column for home, column in chosen.values() if home == main} | set(raters)
    for place, raw in _table(folder, main):
        row = {
            "audio": raw["file"],
            "start": _seconds(raw.get("start"), place),
            "end": _seconds(raw.get("end"), place),
        }
        row["start"] = row["start"] or None
        whole = str(raw["file"])
        segment = (whole, row["start"], row["end"])
        for field, (home, column) in chosen.items():
            source = (
                raw
                if home == main
                else others[home].get(segment) or others[home].get((whole, None, None)) or {}
            )
            row[field] = source.get(column)
        for field in chosen:
            for fact, value in facts[field].get(str(row[field]), {}).items():
                if fact in GUESSES and row.get(fact) in (None, ""):
                    row[fact] = value
        if row.get("language"):
            row["language"] = LANGUAGES.get(str(row["language"]), row["language"])
        votes = [
            {"label": raw[column], "rater": rater} for column, rater in raters.items() if raw.get(column)
        ]
        row["votes"] = votes or None
        yield (
            place,
            {**{k: v for k, v in raw.items() if k not in taken and k not in INDEX and k not in row}, **row},
        )


def _table(folder: Path, name: str) -> Iterator[tuple[str, dict]]:
    for suffix in (".csv", ".parquet"):
        if (path := folder / f"db.{name}{suffix}").is_file():
            for place, row in table_rows(path):
                if "file" not in row:
                    raise UserError(
                        "audformat: the table has no column file", where=place, hint="save the database again"
                    )
                yield place, row
            return
    pickled = (folder / f"db.{name}.pkl").is_file()
    raise UserError(
        f"audformat: table {name} is {'pickled, and opening a pickle can run code' if pickled else 'missing'}",
        where=str(folder),
        hint="save the database as csv: db.save(folder, storage_format='csv')",
    )


def _indexed(folder: Path, name: str) -> dict[tuple, dict]:
    return {
        (str(row["file"]), _seconds(row.get("start"), place) or None, _seconds(row.get("end"), place)): row
        for place, row in _table(folder, name)
    }


def _facts(folder: Path, header: dict, table: str, column: str) -> dict[str, dict]:
    """{label: facts} of a column's scheme, where its labels are a mapping or lie in a misc table."""
    labels = _scheme(header, table, column).get("labels")
    if isinstance(labels, dict):
        return {str(label): facts for label, facts in labels.items() if isinstance(facts, dict)}
    if isinstance(labels, str):
        path = next((p for s in (".csv", ".parquet") if (p := folder / f"db.{labels}{s}").is_file()), None)
        if path is not None:
            return {str(next(iter(row.values()))): row for _, row in table_rows(path)}
    return {}


def _scheme(header: dict, table: str, column: str) -> dict:
    scheme = (header["tables"][table]["columns"].get(column) or {}).get("scheme_id")
    return (header.get("schemes") or {}).get(scheme) or {}


def _raters(header: dict, main: str, chosen: dict[str, tuple[str, str]]) -> dict[str, str]:
    """{column: rater} of the main table's other columns of the label's scheme."""
    home, label = chosen.get("label", (None, None))
    if home != main:
        return {}
    columns = header["tables"][main]["columns"]
    scheme = (columns[label] or {}).get("scheme_id")
    return {
        column: str(facts["rater_id"])
        for column, facts in columns.items()
        if column != label and facts and scheme and facts.get("scheme_id") == scheme and facts.get("rater_id")
    }


def _scale(header: dict, chosen: dict[str, tuple[str, str]]) -> list[float] | None:
    """The one range of the dimensions' schemes; two different ones are refused by the range check of the rows."""
    for field in ("valence", "arousal", "dominance"):
        scheme = _scheme(header, *chosen[field]) if field in chosen else {}
        if "minimum" in scheme and "maximum" in scheme:
            return [scheme["minimum"], scheme["maximum"]]
    return None


def _header(path: Path) -> object:
    """db.yaml as plain values; dates stay text.

    Raises:
        UserError: Not YAML, or a tag that asks for more than plain values; names line and column.
    """
    import yaml  # this corpus alone is described in YAML

    try:
        return _plain(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"audformat: the header cannot be read: {getattr(error, 'problem', None) or error}",
            where=f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path),
            hint="save the database again",
        ) from None


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _language(languages: object) -> str | None:
    if isinstance(languages, list) and len(languages) == 1:
        return LANGUAGES.get(str(languages[0]), str(languages[0]))
    return None


def _seconds(value: object, place: str) -> float | None:
    """Seconds of "0 days 00:00:01.5", of a timedelta, or of a number; None for an empty cell or NaT."""
    if value is None or value in ("", "NaT"):
        return None
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    text = str(value).strip()
    match = TIME.fullmatch(text)
    if match and match[0]:
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{text!r} is no time", where=place, hint="write 0 days 00:00:01.5 or seconds"
        ) from None
