"""Rows grouped by what must not be split: speaker, session, recording, corpus, language, or any field.

Guarantees: names are sorted, so nothing depends on the order of the data; null is code -1 and no group.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ser.exposure import some
from ser.truth import field
from shards.errors import UserError

_CODES = {"speaker": "speakers", "language": "languages", "corpus": "corpora", "recording": "recordings"}


@dataclass(frozen=True)
class Groups:
    """Values that are kept whole: code of every row (-1 unknown) and names, in sorted order."""

    codes: np.ndarray
    names: list[str]


def groups(dataset: Any, by: str) -> Groups:
    """Rows grouped by a field; speakers, recordings and sessions are named "corpus/own name"."""
    if by in _CODES:
        codes, names = np.asarray(getattr(dataset, by)).astype(np.int64), list(getattr(dataset, _CODES[by]))
    else:
        values = field(dataset, by)
        if by == "session":
            corpus = np.asarray(dataset.corpus)
            values = [
                None if v is None else f"{dataset.corpora[c]}/{v}"
                for c, v in zip(corpus, values, strict=True)
            ]
        text = [None if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        names = sorted({v for v in text if v is not None})
        number = {name: i for i, name in enumerate(names)} | {None: -1}
        codes = np.array([number[v] for v in text], dtype=np.int64)
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.full(len(names) + 1, -1, dtype=np.int64)
    rank[order] = np.arange(len(names))
    return Groups(rank[codes], [names[i] for i in order])


def sharing(dataset: Any, what: str, held: np.ndarray) -> np.ndarray:
    """(n,) bool: rows that share a session, recording or text with the held-out rows."""
    if what == "text":
        number: dict[str | None, int] = {None: -1}
        texts = [" ".join(t.lower().split()) if t else None for t in field(dataset, "text")]
        codes = np.array([number.setdefault(t, len(number) - 1) for t in texts], dtype=np.int64)
    else:
        codes = groups(dataset, what).codes
    return (codes >= 0) & np.isin(codes, np.unique(codes[held]))


def listed(values: Groups, wanted: list[str], scope: np.ndarray, by: str, where: str) -> list[int]:
    """Codes of listed values, named whole ("corpus/03") or by their own name ("03")."""
    present = {int(c) for c in np.unique(values.codes[scope]) if c >= 0}
    out = []
    for name in wanted:
        fit = [c for c in present if name in (values.names[c], values.names[c].split("/", 1)[-1])]
        if len(fit) != 1:
            have = some(sorted(values.names[c] for c in present), 12)
            why = "is in no utterance" if not fit else "is ambiguous"
            raise UserError(
                f"{by} {name!r} {why}",
                where=where,
                hint=f"the data have {have}",
            )
        out.append(fit[0])
    return out


def commonest(values: Groups, rows: np.ndarray) -> str:
    """The most frequent name among rows, "" where none is known."""
    codes = values.codes[rows]
    codes = codes[codes >= 0]
    return values.names[int(np.bincount(codes).argmax())] if len(codes) else ""
