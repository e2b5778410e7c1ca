"""Who a model has heard: the sets that decide whether a test is a test.

Guarantees: a model's exposure is closed over every teacher below it; a test utterance overlaps an exposure if its speaker, its
recording or its key stands there, or its whole corpus ("corpus/*"); under STRICT an overlap is refused by name.
Gives up: it knows what was declared and computed here. A hub model whose training data are not known is `unknown`, and
stays so in every model above it; voices that one person recorded in two corpora are two speakers.

Entries are strings: "corpus/speaker" where the speaker is known, else "corpus/recording:ID", else "corpus/key:KEY".
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shards.errors import UserError

Strictness = Literal["STRICT", "LEGACY"]
SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """Something that a reader of the numbers must know.

    Attributes:
        kind: Short word, e.g. "speakers", "recordings", "texts", "exposure", "unknown".
        level: "leak" (refused under STRICT, a red line under LEGACY), "note" otherwise.
        fold: Fold it was seen in; "" for all.
        text: One sentence.
        items: Names behind it, sorted (all of them; the text shows a few).
    """

    kind: str
    level: Literal["leak", "note"]
    fold: str
    text: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exposure:
    """What a model has heard.

    Attributes:
        fit: Entries that its weights, tokenizer or normalisation were fitted on.
        select: Entries that chose among versions of it: early stopping, hyper-parameters, calibration.
        unknown: Names of hub models below it whose training data are not known.
    """

    fit: frozenset[str] = frozenset()
    select: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()

    def union(self, *others: "Exposure") -> "Exposure":
        """This exposure and all others: what a student of these teachers has heard."""
        every = (self, *others)
        return Exposure(
            frozenset().union(*(e.fit for e in every)),
            frozenset().union(*(e.select for e in every)),
            tuple(sorted({name for e in every for name in e.unknown})),
        )

    @property
    def heard(self) -> frozenset[str]:
        """`fit` and `select` together."""
        return self.fit | self.select

    def to_json(self) -> dict[str, Any]:
        """Plain values with a fixed order, equal for equal exposures."""
        return {
            "schema": SCHEMA,
            "fit": sorted(self.fit),
            "select": sorted(self.select),
            "unknown": sorted(self.unknown),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | str) -> "Exposure":
        """From `to_json`'s values or their text.

        Raises:
            UserError: Another schema, or lists that are missing. A model without exposure is not a model that heard nothing.
        """
        try:
            given: Any = json.loads(values) if isinstance(values, str) else values
            if given["schema"] != SCHEMA:
                raise ValueError(f"schema {given['schema']}, expected {SCHEMA}")
            lists = [given[name] for name in ("fit", "select", "unknown")]
            if not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists):
                raise TypeError("fit, select and unknown must be lists of names")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"not an exposure: {error}",
                hint="train the model again, or declare it `unknown` in the recipe",
            ) from None
        return cls(frozenset(lists[0]), frozenset(lists[1]), tuple(sorted(lists[2])))


def closed(own: Exposure, teachers: Mapping[str, Exposure]) -> Exposure:
    """Exposure of a model from what it heard itself and its teachers' (already closed) exposures."""
    return own.union(*teachers.values())


def of_rows(dataset: Any, rows: np.ndarray) -> frozenset[str]:
    """One entry a distinct voice among dataset rows (m,): the speaker, or recording, or key where those are unknown."""
    rows = np.asarray(rows, dtype=np.int64)
    speaker, recording = np.asarray(dataset.speaker)[rows], np.asarray(dataset.recording)[rows]
    known = {dataset.speakers[code] for code in np.unique(speaker[speaker >= 0])}
    left = rows[speaker < 0]
    recorded = np.unique(recording[(speaker < 0) & (recording >= 0)])
    known |= {_qualified(dataset.recordings[code], "recording") for code in recorded}
    bare = left[np.asarray(dataset.recording)[left] < 0]
    return frozenset(known | _keys(dataset, bare))


def _all_entries(dataset: Any, rows: np.ndarray) -> frozenset[str]:
    """Every entry that would mean one of these rows was heard: speaker, recording, key and corpus."""
    rows = np.asarray(rows, dtype=np.int64)

    def names(column: str, vocabulary: list[str]) -> list[str]:
        codes = np.unique(np.asarray(getattr(dataset, column))[rows])
        return [vocabulary[code] for code in codes if code >= 0]

    return frozenset(
        {
            *names("speaker", dataset.speakers),
            *(_qualified(name, "recording") for name in names("recording", dataset.recordings)),
            *_keys(dataset, rows),
            *(f"{name}/*" for name in names("corpus", dataset.corpora)),
        }
    )


def _qualified(name: str, kind: str) -> str:
    corpus, _, rest = name.partition("/")
    return f"{corpus}/{kind}:{rest}"


def _keys(dataset: Any, rows: np.ndarray) -> set[str]:
    if not len(rows):
        return set()
    corpus = np.asarray(dataset.corpus)[rows]
    return {f"{dataset.corpora[c]}/key:{key}" for c, key in zip(corpus, dataset.keys(rows), strict=True)}


def overlap(dataset: Any, rows: np.ndarray, heard: frozenset[str]) -> tuple[str, ...]:
    """Entries of `heard` that cover some of the dataset rows, sorted. A heard corpus ("corpus/*") covers all its rows;
    a heard speaker, recording or key of a whole corpus in `rows` does not count unless it is among the rows."""
    return tuple(sorted(_all_entries(dataset, rows) & heard))


def check_student(
    dataset: Any,
    test_rows: np.ndarray,
    dev_rows: np.ndarray,
    own: Exposure,
    teachers: Mapping[str, Exposure],
    strictness: Strictness,
    allow_unknown: Iterable[str] = (),
    *,
    fold: str = "",
    model: str = "student",
) -> list[Finding]:
    """Everything that exposure says against testing `model` on `test_rows`.

    Args:
        dataset: A `shards.dataset.Dataset`.
        test_rows, dev_rows: (m,) rows of the fold; `dev_rows` are those that choose the student's checkpoint.
        own: What the model itself was fitted and selected on, hyper-parameter searches included in `select`.
        teachers: Every teacher below it, by name, each closed over its own teachers.
        strictness: STRICT refuses leaks and unnamed unknowns; LEGACY returns them.
        allow_unknown: Hub names that the recipe allows to be unknown.
        fold, model: For the messages.

    Returns:
        Findings, leaks first.

    Raises:
        UserError: Under STRICT, naming the model, the fold and what overlaps.
    """
    leaks: list[Finding] = []
    notes: list[Finding] = []
    test, dev = _all_entries(dataset, test_rows), _all_entries(dataset, dev_rows)
    for name, exposure in {model: own, **teachers}.items():
        for how, heard in (("was fitted on", exposure.fit), ("was selected on", exposure.select)):
            shared = tuple(sorted(test & heard))
            if shared:
                text = f"{name} {how} {count(len(shared), 'test entry', 'test entries')} of {called(fold)}: {some(shared)}"
                if how == "was selected on" and name == model:
                    text += " (non-nested selection)"
                leaks.append(Finding("exposure", "leak", fold, text, shared))
        if name == model:
            continue
        shared = tuple(sorted(dev & exposure.fit))
        if shared:
            text = f"{name} was fitted on the dev set that chooses {model} in {called(fold)}: {some(shared)}"
            leaks.append(Finding("exposure", "leak", fold, text, shared))
        shared = tuple(sorted(dev & exposure.select))
        if shared:
            text = f"{name} and {model} are selected on the same dev set in {called(fold)}: {some(shared)}"
            notes.append(Finding("shared dev", "note", fold, text, shared))
    allowed = set(allow_unknown)
    for hub in closed(own, teachers).unknown:
        below = [n for n, e in {model: own, **teachers}.items() if hub in e.unknown]
        text = f"the training data of {hub} are unknown (below {', '.join(below)})"
        fits = hub in allowed
        (notes if fits else leaks).append(Finding("unknown", "note" if fits else "leak", fold, text, (hub,)))
    if leaks and strictness == "STRICT":
        raise refusal(leaks, where=f"{model}, {called(fold)}")
    return leaks + notes


def refusal(leaks: list[Finding], *, where: str) -> UserError:
    """The error of STRICT for these leaks."""
    unknown = [item for finding in leaks if finding.kind == "unknown" for item in finding.items]
    hints = []
    if unknown:
        hints.append(
            f"name it in the recipe: allow_unknown: [{', '.join(unknown)}]; it then stands in every row"
        )
    if len(unknown) < len(leaks):
        hints.append(
            "train and tune every model of a fold on that fold's own training and dev speakers; "
            "strictness: LEGACY in the protocol shows such a number with a red line"
        )
    return UserError("STRICT: " + "\n  ".join(f.text for f in leaks), where=where, hint="; ".join(hints))


def tuning(select: Mapping[str, frozenset[str]], tests: Mapping[str, frozenset[str]]) -> str:
    """How hyper-parameters were chosen, for the report's row.

    Args:
        select: Per fold, the entries that its hyper-parameters were tuned on (`of_rows` of those dev rows).
        tests: Per fold, the entries of its test rows.

    Returns:
        "untuned", "outside" (on speakers in no fold's test), "nested" (no fold saw its own test) or "non-nested".
    """
    if not any(select.values()):
        return "untuned"
    if not frozenset().union(*select.values()) & frozenset().union(*tests.values()):
        return "outside"
    return (
        "non-nested"
        if any(select.get(fold, frozenset()) & test for fold, test in tests.items())
        else "nested"
    )


def who_heard(speaker: str, exposures: Mapping[str, Exposure]) -> dict[str, str]:
    """Which models heard a speaker ("corpus/speaker"): {name: "fit", "select", "fit+select" or "unknown: HUB"}."""
    corpus = speaker.partition("/")[0] + "/*"
    out = {}
    for name, exposure in exposures.items():
        how = [w for w, s in (("fit", exposure.fit), ("select", exposure.select)) if {speaker, corpus} & s]
        if how:
            out[name] = "+".join(how)
        elif exposure.unknown:
            out[name] = f"unknown: {', '.join(exposure.unknown)}"
    return out


def some(names: Iterable[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def count(number: int, one: str, many: str) -> str:
    """ "1 speaker", "3 speakers"."""
    return f"{number} {one if number == 1 else many}"


def called(fold: str) -> str:
    """A fold in a sentence: "fold session-1", and "fold-1" for one that says so itself."""
    return fold if fold.startswith("fold") else f"fold {fold}" if fold else "the fold"
