"""A row of any table to an Utterance: what the generic readers (manifest, audiofolder, audformat) share.

Guarantees: every error names the table and line; a missing cell (null, empty, NaN) is None, never 0; columns that are
no field of an utterance are kept in `extra`; a key that is not given is made of corpus, path and start.
"""

import difflib
import json
import math
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from shards.corpora._common import check_counts, complain, keep_present, label_counts, some
from shards.errors import UserError
from shards.utterance import FIELDS, Utterance, Vote, make_key

NUMBERS = ("start", "end", "age", "duration", "valence", "arousal", "dominance")


@dataclass(frozen=True)
class Mapper:
    """How rows become utterances.

    Attributes:
        corpus: Name given to rows that have none.
        base: Folder that relative audio paths start from.
        columns: Utterance field to column; a field that is not named takes the column of its own name, if any.
        defaults: Utterance field to the value of rows that have none ({"language": "de", "scale": [1, 7]}).
        labels: Allowed labels; empty allows all.
    """

    corpus: str
    base: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        for name in (*self.columns, *self.defaults):
            if name not in FIELDS or name == "extra":
                near = difflib.get_close_matches(name, FIELDS, n=2, cutoff=0.5) or FIELDS
                raise UserError(
                    f"an utterance has no field {name!r}",
                    where="columns or defaults",
                    hint=f"use {some(near)}",
                )

    def utterance(self, row: Mapping[str, object], where: str) -> Utterance:
        """One row.

        Raises:
            UserError: A cell that cannot be what its field needs; `where` is printed.
        """
        cells = {name: _cell(row.get(self.columns.get(name, name))) for name in FIELDS if name != "extra"}
        values = {name: self.defaults.get(name) if cell is None else cell for name, cell in cells.items()}
        if values["audio"] is None:
            raise UserError(
                f"no audio in column {self.columns.get('audio', 'audio')!r}; the columns are {', '.join(map(str, row))}",
                where=where,
                hint="name the column: columns: {audio: <column>}",
            )
        try:
            fields: dict[str, Any] = {
                name: float(value) if value is not None else None for name, value in _pick(values, NUMBERS)
            }
            fields["scale"] = _scale(values["scale"])
            fields["votes"] = _votes(values["votes"])
        except (ValueError, TypeError) as error:
            raise UserError(
                f"a cell is not what its field needs: {error}", where=where, hint="mend the row"
            ) from error
        words = [name for name in FIELDS if name not in (*NUMBERS, "scale", "votes", "extra")]
        fields |= {name: _word(value) for name, value in _pick(values, words)}
        if self.labels and fields["label"] is not None and fields["label"] not in self.labels:
            raise UserError(
                f"the label {fields['label']!r} is outside the vocabulary",
                where=where,
                hint=f"use {some(self.labels, 12)}, or add it to labels",
            )
        relative = fields["audio"].replace("\\", "/")
        stem = str(PurePosixPath(relative).with_suffix("")).lstrip("./")
        fields["corpus"] = fields["corpus"] or self.corpus
        if fields["key"] is None:
            cut = "" if fields["start"] is None else f"-{round(fields['start'] * 1000)}"
            fields["key"] = make_key(fields["corpus"], stem + cut)
        fields["recording"] = fields["recording"] or stem
        fields["text_source"] = "none" if fields["text"] is None else fields["text_source"] or "human"
        if "://" not in relative:
            fields["audio"] = str(self.base / relative)
        used = {self.columns.get(name, name) for name in FIELDS}
        extra = {str(name): _scalar(value) for name, value in row.items() if name not in used}
        try:
            return Utterance(**fields, extra=extra)
        except UserError as error:
            raise UserError(error.what, where=where, hint=error.hint or "mend the row") from error


def finish(
    corpus: str,
    rows: Iterable[tuple[str, Utterance]],
    counts: str,
    where: Path,
    expected: Mapping[str, int] | None = None,
) -> list[Utterance]:
    """Checks keys, audio files and counts of (place, utterance) pairs; order is kept."""
    places: dict[str, str] = {}
    utterances, twice = [], []
    for place, utterance in rows:
        key = utterance.key.lower()
        if key in places:
            twice.append(f"{utterance.key} ({places[key]} and {place})")
            continue
        places[key] = place
        utterances.append(utterance)
    if twice:
        complain(counts, f"{corpus}: {len(twice)} keys stand twice: {some(twice)}", where)
    if not utterances:
        raise UserError(
            f"{corpus}: the table has no rows", where=str(where), hint="give a table with a row an utterance"
        )
    check_counts(corpus, label_counts(utterances), {"expected": expected} if expected else {}, counts, where)
    return keep_present(corpus, utterances, counts, where)


def _pick(values: Mapping[str, object], names: Iterable[str]) -> list[tuple[str, Any]]:
    return [(name, values[name]) for name in names]


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return None if isinstance(value, str) and not value.strip() else value


def _word(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with holes comes as floats
    return str(value).strip()


def _scalar(value: object) -> str | float | int | bool | None:
    value = _cell(value)
    return value if value is None or isinstance(value, str | float | int | bool) else str(value)


def _scale(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.replace("-", ",").split(",")
    low, high = map(float, value)
    return low, high


def _votes(value: Any) -> tuple[Vote, ...]:
    """Votes of a list of labels or of {"label", "rater"}, of {label: count}, or of "a|b|c"."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = (
            json.loads(value)
            if value.lstrip()[:1] in ("[", "{")
            else [x.strip() for x in value.split("|") if x.strip()]
        )
    if isinstance(value, Mapping):
        return tuple(Vote(str(label)) for label, n in value.items() for _ in range(int(n)))
    votes = []
    for item in value:
        if isinstance(item, Mapping):
            rater = item.get("rater")
            votes.append(Vote(str(item["label"]), None if rater is None else str(rater)))
        else:
            votes.append(Vote(str(item)))
    return tuple(votes)


def relative_to(folder: Path, base: Path, name: str) -> str:
    """A path that is relative to folder, seen from base."""
    prefix = folder.relative_to(base).as_posix()
    return name if prefix == "." else posixpath.join(prefix, name)
