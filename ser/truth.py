"""The truth of every row under a protocol: classes, soft labels and dimensions from a corpus's own labels.

Guarantees: a label that the protocol neither maps nor ignores is an error that names it, never a silent loss; missing is
-1 or NaN, never a class or a number. Gives up: votes count alike, whoever cast them.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import UserError

if TYPE_CHECKING:
    from ser.protocol import Protocol

DIMENSIONS = ("valence", "arousal", "dominance")
# What utterances may be told apart by; "official" is extra.split.
FIELD = r"^(speaker|session|corpus|language|gender|recording|official|extra\.[A-Za-z0-9_]+)$"


@dataclass(frozen=True)
class Labels:
    """Truth of every dataset row under a protocol; rows outside its scope have none.

    Attributes:
        names: Class names in order, K of them.
        classes: (n,) int64, -1 missing.
        soft: (n, K) float32, rows sum to 1 or are 0 where missing; None unless votes are asked for.
        dimensions: (n, 3) float32 valence, arousal, dominance in [0, 1], NaN missing.
        scope: (n,) bool, rows that take part (labelled or not).
    """

    names: tuple[str, ...]
    classes: np.ndarray
    soft: np.ndarray | None
    dimensions: np.ndarray
    scope: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """(n,) bool, rows with a class or a rating: those that can be tested on."""
        return (self.classes >= 0) | np.isfinite(self.dimensions).any(1)


def field(dataset: Any, name: str, rows: np.ndarray | None = None) -> list:
    """Values of an index field or of `extra.<name>` ("official" is extra.split), None where missing."""
    name = "extra.split" if name == "official" else name
    column, _, key = name.partition(".")
    values = dataset.fields([column], rows)[column].to_pylist()
    if not key:
        return values
    cache: dict[str | None, Any] = {None: None}
    for text in values:
        if text not in cache:
            cache[text] = json.loads(text).get(key)
    return [cache[text] for text in values]


def in_scope(protocol: "Protocol", dataset: Any) -> np.ndarray:
    """(n,) bool: rows of the protocol's corpora and subset that are not withdrawn.

    Raises:
        UserError: A corpus that the dataset does not have, or nothing is left.
    """
    scope = np.array(dataset.alive, dtype=bool)
    if protocol.corpora:
        lost = sorted(set(protocol.corpora) - set(dataset.corpora))
        if lost:
            raise UserError(
                f"the dataset has no corpus {', '.join(lost)}",
                where=f"protocol {protocol.name}",
                hint=f"it has {', '.join(dataset.corpora)}: pack the missing one, or choose another protocol",
            )
        codes = [dataset.corpora.index(name) for name in protocol.corpora]
        scope &= np.isin(np.asarray(dataset.corpus), codes)
    for name, wanted in protocol.subset.items():
        options = wanted if isinstance(wanted, list) else [wanted]
        keep = np.flatnonzero(scope)
        values = field(dataset, name, keep)
        # True == 1 in Python; a subset means the value that it names.
        allowed = {(type(option) is bool, option) for option in options}
        scope[keep] = [(type(value) is bool, value) in allowed for value in values]
    if not scope.any():
        raise UserError(
            "no utterance is left", where=f"protocol {protocol.name}", hint="check corpora and subset"
        )
    return scope


def labels(protocol: "Protocol", dataset: Any) -> Labels:
    """Classes, soft labels and dimensions of every row.

    Raises:
        UserError: An own label that is neither mapped nor ignored, or a rating without or outside its scale.
    """
    scope = in_scope(protocol, dataset)
    count, size = len(scope), len(protocol.classes)
    classes, soft = np.full(count, -1, dtype=np.int64), None
    rows = np.flatnonzero(scope)
    corpus = np.asarray(dataset.corpus)[rows]
    ignored = np.zeros(count, dtype=bool)
    if size:
        lookup = _Lookup(protocol, dataset.corpora)
        if protocol.label_from != "votes":
            found = _own_labels(protocol, dataset, rows, corpus, lookup)
            classes[rows] = np.maximum(found, -1)
            ignored[rows] = found == _IGNORED
        if protocol.soft or protocol.label_from == "votes":
            counts = _votes(dataset, rows, corpus, lookup, size)
            total = counts.sum(1, keepdims=True)
            if protocol.soft:
                soft = np.zeros((count, size), dtype=np.float32)
                soft[rows] = counts / np.maximum(total, 1)
            if protocol.label_from == "votes":
                alone = (counts == counts.max(1, keepdims=True)).sum(1) == 1
                classes[rows] = np.where(alone & (total[:, 0] > 0), counts.argmax(1), -1)
        lookup.refuse_unmapped(protocol)
    dimensions = np.full((count, 3), np.nan, dtype=np.float32)
    for name in protocol.dimensions:
        proxy = protocol.proxies.get(name)
        if proxy is None:
            value = _scaled(protocol, dataset, name, rows, corpus)
        else:
            told = field(dataset, proxy.field, rows)
            value = np.array([proxy.values.get(str(v), np.nan) for v in told], dtype=np.float64)
        dimensions[rows, DIMENSIONS.index(name)] = value
    if protocol.ignored_rows == "drop":
        scope = scope & ~ignored
        dimensions[ignored] = np.nan
        if soft is not None:
            soft[ignored] = 0
    return Labels(tuple(protocol.classes), classes, soft, dimensions, scope)


_MISSING, _IGNORED = -1, -2


class _Lookup:
    """(corpus, own label) -> class number, -1 for null, -2 for ignored; remembers what it could not map."""

    def __init__(self, protocol: "Protocol", corpora: list[str]):
        self.codes = {own: i for i, labels in enumerate(protocol.classes.values()) for own in labels}
        self.codes |= dict.fromkeys(protocol.ignored, _IGNORED)
        self.corpora = corpora
        self.unmapped: set[str] = set()

    def __call__(self, corpus: int, own: Any) -> int:
        if own is None:
            return _MISSING
        full = f"{self.corpora[corpus]}/{own}"
        code = self.codes.get(full, self.codes.get(str(own)))
        if code is None:
            self.unmapped.add(full)
            return _MISSING
        return code

    def refuse_unmapped(self, protocol: "Protocol") -> None:
        if self.unmapped:
            names = sorted(self.unmapped)
            raise UserError(
                f"own labels neither in a class nor ignored: {', '.join(names)}",
                where=f"protocol {protocol.name}",
                hint=f"put them under a class, or write `ignored: [{', '.join(n.split('/', 1)[1] for n in names)}]`",
            )


def _own_labels(
    protocol: "Protocol", dataset: Any, rows: np.ndarray, corpus: np.ndarray, lookup: _Lookup
) -> np.ndarray:
    if protocol.label_from == "label":
        own = np.asarray(dataset.label)[rows]
        vocabulary = [name.partition("/") for name in dataset.labels]
        codes = np.full(len(vocabulary) + 1, _MISSING, dtype=np.int64)  # the last is for null, code -1
        for code in np.unique(own[own >= 0]):
            name, _, label = vocabulary[code]
            codes[code] = lookup(dataset.corpora.index(name), label)
        return codes[own]
    values = field(dataset, protocol.label_from, rows)
    return np.array([lookup(c, value) for c, value in zip(corpus, values, strict=True)], dtype=np.int64)


def _votes(dataset: Any, rows: np.ndarray, corpus: np.ndarray, lookup: _Lookup, size: int) -> np.ndarray:
    """(m, K) float64 votes for each class; votes for ignored labels do not count."""
    counts = np.zeros((len(rows), size))
    known: dict[tuple[int, str], int] = {}
    for i, (c, votes) in enumerate(zip(corpus, field(dataset, "votes", rows), strict=True)):
        for vote in votes or ():
            at = (int(c), vote["label"])
            if at not in known:
                known[at] = lookup(*at)
            if known[at] >= 0:
                counts[i, known[at]] += 1
    return counts


def _scaled(
    protocol: "Protocol", dataset: Any, name: str, rows: np.ndarray, corpus: np.ndarray
) -> np.ndarray:
    """(m,) float64 in [0, 1], NaN where not rated."""
    table = dataset.fields([name, "scale"], rows)
    native = np.array([np.nan if v is None else v for v in table[name].to_pylist()], dtype=np.float64)
    own = table["scale"].to_pylist()
    borders = [protocol.scales.get(dataset.corpora[c]) or s for c, s in zip(corpus, own, strict=True)]
    rated = np.isfinite(native)
    bad = rated & np.array([b is None for b in borders], dtype=bool)
    if bad.any():
        names = sorted({dataset.corpora[c] for c in corpus[bad]})
        raise UserError(
            f"{name} of {', '.join(names)} has no scale",
            where=f"protocol {protocol.name}",
            hint=f"write `scales: {{{names[0]}: [LOWEST, HIGHEST]}}`",
        )
    low, high = (np.array([b[i] if b else np.nan for b in borders], dtype=np.float64) for i in (0, 1))
    value = (native - low) / (high - low)
    out = rated & ~((value >= 0) & (value <= 1))
    if out.any():
        (row,) = dataset.keys(rows[out][:1])
        raise UserError(
            f"{name} {native[out][0]:g} of {row} lies outside its scale {low[out][0]:g}..{high[out][0]:g}",
            where=f"protocol {protocol.name}",
            hint="mend `scales`",
        )
    return value
