"""What two splits of a fold share that they should not, and what else a reader of the numbers should know.

`leaks` are refused under STRICT: the same speaker, recording, or (where folds are by session) session in two splits.
`inspect` adds what is only reported: repeated texts, identical audio, classes without an utterance, unknown speakers,
speakers that nearly decide the class, texts that say nothing or everything about it.
Gives up: identical audio means identical FLAC bytes; a copy at another level or cut is not seen.
"""

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ser.exposure import Finding, called, count, some
from ser.grouping import groups
from ser.truth import Labels, field, labels

if TYPE_CHECKING:
    from ser.folds import Fold
    from ser.protocol import Protocol


def leaks(protocol: "Protocol", dataset: Any, fold: "Fold") -> list[Finding]:
    """Speakers, recordings and (for folds by session) sessions in two splits of the fold, one finding a pair and kind."""
    kinds = [("speakers", np.asarray(dataset.speaker), list(dataset.speakers))]
    if protocol.folds.by == "session":
        values = groups(dataset, "session")
        kinds.append(("sessions", values.codes, values.names))
    kinds.append(("recordings", np.asarray(dataset.recording), list(dataset.recordings)))
    out = []
    for kind, codes, names in kinds:
        for (one, rows), (two, others) in combinations(_splits(fold).items(), 2):
            shared = np.intersect1d(codes[rows], codes[others])
            shared = shared[shared >= 0]
            if len(shared):
                items = tuple(sorted(names[c] for c in shared))
                what = count(len(items), kind[:-1], kind)
                text = f"{called(fold.name)}: {what} in both {one} and {two}: {some(items, 12)}"
                out.append(Finding(kind, "leak", fold.name, text, items))
    return out


def inspect(protocol: "Protocol", dataset: Any, folds: list["Fold"]) -> list[Finding]:
    """Everything worth saying about a protocol's folds, leaks first.

    Reads the index columns text and sha256 of all rows: a pass over the whole index.
    """
    truth = labels(protocol, dataset)
    out = [finding for fold in folds for finding in leaks(protocol, dataset, fold)]
    for fold in folds:
        out += _empty_classes(truth, fold)
    out += _shared_values(dataset, folds)
    return out + _unknown_speakers(dataset, folds) + _confounds(dataset, truth) + _left_out(truth, folds)


def _splits(fold: "Fold") -> dict[str, np.ndarray]:
    return {"train": fold.train, "dev": fold.dev, "test": fold.test}


def _empty_classes(truth: Labels, fold: "Fold") -> list[Finding]:
    """Classes that occur in the data and not in a split: recall is then a mean over fewer of them."""
    out = []
    for split, rows in {"labelled train": fold.labelled, "dev": fold.dev, "test": fold.test}.items():
        if not len(rows):
            continue
        present = set(truth.classes[rows])
        lost = tuple(name for i, name in enumerate(truth.names) if i not in present)
        if lost:
            text = f"{called(fold.name)}: no utterance of {', '.join(lost)} in {split}"
            out.append(Finding("empty classes", "note", fold.name, text, lost))
    return out


def _shared_values(dataset: Any, folds: list["Fold"]) -> list[Finding]:
    """Texts and audio bytes of test or dev rows that stand in train, or of test rows in dev."""
    out = []
    texts = [" ".join(t.lower().split()) if t else None for t in field(dataset, "text")]
    for kind, what, values in (
        ("texts", "text", texts),
        ("audio", "identical audio", field(dataset, "sha256")),
    ):
        number: dict[Any, int] = {None: -1}
        codes = np.array([number.setdefault(v, len(number) - 1) for v in values], dtype=np.int64)
        names = {code: v for v, code in number.items()}
        for fold in folds:
            for (one, rows), (two, others) in combinations(_splits(fold).items(), 2):
                if one == "dev" and np.array_equal(rows, others):
                    continue
                shared = np.intersect1d(codes[rows], codes[others])
                shared = shared[shared >= 0]
                if len(shared):
                    hit = int(np.isin(codes[others], shared).sum())
                    text = (
                        f"{called(fold.name)}: {hit} of {len(others)} {two} utterances have a {what} of {one}"
                    )
                    text = text.replace("a identical", "the identical")
                    items = tuple(sorted(names[c] for c in shared))
                    out.append(Finding(kind, "note", fold.name, f"{text} ({len(items)} distinct)", items))
    return out


def _unknown_speakers(dataset: Any, folds: list["Fold"]) -> list[Finding]:
    rows = np.unique(np.concatenate([r for fold in folds for r in _splits(fold).values()]))
    lost = int((np.asarray(dataset.speaker)[rows] < 0).sum())
    if not lost:
        return []
    text = f"{count(lost, 'utterance has', 'utterances have')} no known speaker: kept apart by recording only"
    return [Finding("unknown speakers", "note", "", text)]


def _confounds(dataset: Any, truth: Labels) -> list[Finding]:
    """Whether knowing the speaker, or the text, gives the class: accuracy of each value's commonest class.

    Against it stands that of the commonest class of all; both are counted on the data themselves, so values that
    occur once are left out (they would always be right).
    """
    rows = np.flatnonzero(truth.scope & (truth.classes >= 0))
    if not len(rows):
        return []
    classes, size = truth.classes[rows], len(truth.names)
    chance = np.bincount(classes, minlength=size).max() / len(rows)
    texts = [" ".join(t.lower().split()) if t else None for t in field(dataset, "text", rows)]
    number: dict[Any, int] = {None: -1}
    text_codes = np.array([number.setdefault(t, len(number) - 1) for t in texts], dtype=np.int64)
    out = []
    for kind, codes in (
        ("speaker", np.asarray(dataset.speaker)[rows].astype(np.int64)),
        ("text", text_codes),
    ):
        table = np.zeros((int(codes.max(initial=-1)) + 1, size))
        np.add.at(table, (codes[codes >= 0], classes[codes >= 0]), 1)
        table = table[table.sum(1) > 1]
        if table.sum() < 0.5 * len(rows):
            continue
        right = table.max(1).sum() / table.sum()
        if right > 0.5 + 0.5 * chance:
            text = (
                f"the {kind} nearly decides the class: {right:.0%} right from it alone, {chance:.0%} without"
            )
            out.append(Finding(f"{kind} confound", "note", "", text))
        elif kind == "text" and right < chance + 0.05:
            text = (
                f"the texts say nothing about the class ({right:.0%} right from them, {chance:.0%} without)"
            )
            out.append(Finding("text says nothing", "note", "", f"{text}: a text teacher cannot learn here"))
    return out


def _left_out(truth: Labels, folds: list["Fold"]) -> list[Finding]:
    used = np.zeros(len(truth.scope), dtype=bool)
    for fold in folds:
        for rows in _splits(fold).values():
            used[rows] = True
    tested = np.zeros_like(used)
    for fold in folds:
        tested[fold.test] = True
    out = []
    left = int((truth.scope & ~used).sum())
    if left:
        text = f"{count(left, 'utterance is', 'utterances are')} in no split of any fold"
        out.append(Finding("left out", "note", "", text))
    never = int((truth.scope & truth.known & ~tested).sum())
    if never and len(folds) > 1:
        text = f"{count(never, 'labelled utterance is', 'labelled utterances are')} in no fold's test"
        out.append(Finding("never tested", "note", "", text))
    return out
