"""Train, dev and test rows of every fold, as pure functions of (protocol, dataset).

Guarantees: deterministic; rows of each split ascend and are disjoint (except LEGACY's dev = test); test and dev rows have
a label or rating; rows of a test or dev group are never trained on, labelled or not; withdrawn rows are nowhere.
Under STRICT what `ser.leaks.leaks` finds is refused.
Gives up: k-fold is dealt greedily (as scikit-learn's StratifiedGroupKFold), not optimally.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ser.exposure import called, count, refusal, some
from ser.grouping import Groups, commonest, groups, listed, sharing
from ser.leaks import leaks
from ser.truth import Labels
from ser.values import expand
from shards.errors import UserError
from shards.law import hash64
from shards.utterance import make_key

if TYPE_CHECKING:
    from ser.protocol import DevConfig, Protocol


@dataclass(frozen=True)
class Fold:
    """One fold: dataset rows, int64, ascending.

    Attributes:
        name: Fit for a folder's name.
        train: All training speech, unlabelled included.
        dev, test: Rows with a label or rating.
        labelled: Those rows of `train` whose labels show.
    """

    name: str
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    labelled: np.ndarray


def make_folds(protocol: "Protocol", dataset: Any, truth: Labels) -> list[Fold]:
    """Folds of a protocol whose labels are `truth`; see `ser.protocol.folds`."""
    config, where = protocol.folds, f"protocol {protocol.name}"
    known = truth.known & truth.scope
    if not known.any():
        raise UserError(
            "no utterance has a label", where=where, hint="check classes, label_from and dimensions"
        )
    tests = _MAKERS[config.kind](protocol, dataset, truth, known)
    out = []
    for number, (name, test_side) in enumerate(tests):
        pool = truth.scope & ~test_side
        dev_side = np.zeros_like(pool)
        if config.kind == "fixed":
            values = groups(dataset, config.by)
            dev_side = pool & np.isin(values.codes, _named(protocol, values, config.dev, truth))
            pool = pool & np.isin(values.codes, _named(protocol, values, config.train, truth))
        if protocol.dev is not None:
            following = tests[(number + 1) % len(tests)][1]
            dev_side = _dev_side(protocol.dev, dataset, known, pool, test_side, following, number, name)
        if protocol.dev is None or protocol.dev.by != "test":
            for what in config.exclude:
                dev_side = dev_side & ~sharing(dataset, what, test_side)
        train = pool & ~dev_side
        for what in config.exclude:
            train &= ~sharing(dataset, what, (test_side & truth.scope) | dev_side)
        fold = Fold(
            name,
            np.flatnonzero(train),
            np.flatnonzero(dev_side & known),
            np.flatnonzero(test_side & known),
            shown_rows(protocol, dataset, np.flatnonzero(train & known)),
        )
        out.append(fold)
    if protocol.strictness == "STRICT":
        found = [leak for fold in out for leak in leaks(protocol, dataset, fold)]
        if found:
            names = sorted({leak.fold for leak in found})
            first = [leak for leak in found if leak.fold == found[0].fold]
            more = f" ({len(names)} folds of {len(out)} leak)"
            raise refusal(first, where=f"protocol {protocol.name}, {called(found[0].fold)}{more}")
    for fold in out:
        _refuse_empty(protocol, fold)
    return out


def shown_rows(protocol: "Protocol", dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Those of the labelled training rows (m,) whose labels show under `protocol.labelled`, ascending.

    Raises:
        UserError: A list that cannot be read, or names keys that the dataset does not have.
    """
    wanted = protocol.labelled
    if isinstance(wanted, str):
        path = Path(wanted)
        if not path.is_file():
            raise UserError(
                "labelled: no such file", where=str(path), hint="give a share, a count or a file of keys"
            )
        keys = {line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()}
        every = dataset.keys(np.arange(len(dataset)))
        lost = sorted(keys - set(every))
        if lost:
            raise UserError(
                f"labelled: {count(len(lost), 'key', 'keys')} not in the data: {some(lost)}", where=str(path)
            )
        return rows[[key in keys for key in dataset.keys(rows)]] if len(rows) else rows
    if wanted == 1:
        return rows
    order = hash64(protocol.labelled_seed, np.asarray(dataset.key_hash)[rows])
    if wanted < 1:
        return rows[order < np.uint64(int(wanted * 2.0**64))]
    if wanted > len(rows):
        raise UserError(
            f"labelled asks for {int(wanted)} labels, a fold has {len(rows)}",
            where=f"protocol {protocol.name}",
        )
    return np.sort(rows[np.argsort(order, kind="stable")[: int(wanted)]])


Tests = list[tuple[str, np.ndarray]]


def _leave_one_out(protocol: "Protocol", dataset: Any, truth: Labels, known: np.ndarray) -> Tests:
    by = protocol.folds.by
    values = _complete(protocol, groups(dataset, by), known)
    codes = np.unique(values.codes[known])
    if len(codes) < 2:
        raise UserError(
            f"leave-one-out needs 2 of {by}, the data have {len(codes)}", where=f"protocol {protocol.name}"
        )
    names = [fold_name(protocol, by, values.names[c]) for c in codes]
    lower = [name.lower() for name in names]
    names = [
        f"{name}.{_digest(0, values.names[c])[:6]}" if lower.count(name.lower()) > 1 else name
        for name, c in zip(names, codes, strict=True)
    ]
    return [(name, truth.scope & (values.codes == c)) for name, c in zip(names, codes, strict=True)]


def fold_name(protocol: "Protocol", by: str, value: str, short: bool | None = None) -> str:
    """Name of the fold that leaves `value` out; it does not depend on what else the data hold.

    "speaker-emodb-03", or "speaker-03" where the protocol itself is about one corpus (or `short` asks for it).
    """
    short = len(protocol.corpora) == 1 if short is None else short
    if short and by in ("speaker", "session", "recording"):
        value = value.split("/", 1)[-1]
    return f"{by.removeprefix('extra.')}-{re.sub(r'[^A-Za-z0-9_.-]', '-', value)}"


def _k_fold(protocol: "Protocol", dataset: Any, truth: Labels, known: np.ndarray) -> Tests:
    config = protocol.folds
    values = _complete(protocol, groups(dataset, config.by), known)
    codes = np.unique(values.codes[known])
    k = config.k
    assert k is not None
    if len(codes) < k:
        raise UserError(
            f"{k} folds by {config.by} need {k} of them, the data have {len(codes)}",
            where=f"protocol {protocol.name}",
        )
    drawn = sorted(codes, key=lambda c: _digest(config.seed, values.names[c]))
    if config.balance == "classes":
        counts = {c: _class_counts(truth, known & (values.codes == c)) for c in codes}
        dealt = _deal_classes(drawn, counts, k)
    else:
        kinds = dict.fromkeys(codes, "")
        if config.balance != "none":
            other = groups(dataset, config.balance)
            kinds = {c: commonest(other, known & (values.codes == c)) for c in codes}
        dealt = {c: i % k for i, c in enumerate(sorted(drawn, key=kinds.__getitem__))}
    return [
        (f"fold-{i + 1}", truth.scope & np.isin(values.codes, [c for c in codes if dealt[c] == i]))
        for i in range(k)
    ]


def _deal_classes(order: list[int], counts: dict[int, np.ndarray], k: int) -> dict[int, int]:
    """Largest group first, each to the fold whose shares of the classes it makes least uneven."""
    total = np.maximum(sum(counts.values()), 1)
    full = np.zeros((k, len(total)))
    dealt = {}
    for code in sorted(order, key=lambda c: -counts[c].sum()):
        share = counts[code] / total
        growth = ((full + share) ** 2 - full**2).sum(1)
        best = int(np.lexsort((np.arange(k), full.sum(1), growth.round(12)))[0])
        full[best] += share
        dealt[code] = best
    return dealt


def _listed(protocol: "Protocol", dataset: Any, truth: Labels, known: np.ndarray) -> Tests:
    values = _complete(protocol, groups(dataset, protocol.folds.by), known)
    return [
        (f"fold-{i + 1}", truth.scope & np.isin(values.codes, _named(protocol, values, group, truth)))
        for i, group in enumerate(protocol.folds.groups)
    ]


def _fixed(protocol: "Protocol", dataset: Any, truth: Labels, known: np.ndarray) -> Tests:
    values = groups(dataset, protocol.folds.by)
    return [
        (
            "fixed",
            truth.scope & np.isin(values.codes, _named(protocol, values, protocol.folds.test, truth)),
        )
    ]


def _files(protocol: "Protocol", dataset: Any, truth: Labels, known: np.ndarray) -> Tests:
    from shards.corpora import emobox

    folder = expand(protocol.folds.folder)
    recordings = np.asarray(dataset.recording)
    own = [name.split("/", 1)[1] for name in dataset.recordings]
    rows = np.flatnonzero(truth.scope)
    keys = dict(zip(dataset.keys(rows), rows, strict=True))
    corpora = [dataset.corpora[c] for c in np.unique(np.asarray(dataset.corpus)[rows])]
    out = []
    for fold, stems in emobox.folds(folder).items():
        side = truth.scope & np.isin(recordings, [i for i, name in enumerate(own) if name in stems])
        for stem in stems:
            for corpus in corpora:
                row = keys.get(make_key(corpus, stem))
                if row is not None:
                    side[row] = True
        if not side.any():
            raise UserError(
                f"no utterance is called as in test_fold_{fold}.txt ({some(sorted(stems), 3)})",
                where=str(folder),
                hint="the folder must belong to the protocol's corpus",
            )
        out.append((f"fold-{fold}", side))
    return out


def _random(protocol: "Protocol", dataset: Any, truth: Labels, known: np.ndarray) -> Tests:
    k = protocol.folds.k
    assert k is not None
    rows = np.flatnonzero(truth.scope)
    order = np.argsort(hash64(protocol.folds.seed, np.asarray(dataset.key_hash)[rows]), kind="stable")
    part = np.full(len(known), -1)
    part[rows[order]] = np.arange(len(rows)) % k
    return [(f"random-{i + 1}", part == i) for i in range(k)]


_MAKERS: dict[str, Callable[["Protocol", Any, Labels, np.ndarray], Tests]] = {
    "leave-one-out": _leave_one_out,
    "k-fold": _k_fold,
    "groups": _listed,
    "fixed": _fixed,
    "files": _files,
    "random": _random,
}


def _dev_side(
    config: "DevConfig",
    dataset: Any,
    known: np.ndarray,
    pool: np.ndarray,
    test_side: np.ndarray,
    following: np.ndarray,
    number: int,
    fold: str,
) -> np.ndarray:
    """(n,) bool: rows that the dev set takes out of the pool (or shares with test, in LEGACY)."""
    if config.by == "test":
        return test_side
    if config.by == "fold":
        return following & pool
    if config.by == "utterance":
        rows = np.flatnonzero(pool & known)
        order = np.argsort(hash64(config.seed + number, np.asarray(dataset.key_hash)[rows]), kind="stable")
        side = np.zeros_like(pool)
        assert config.share is not None
        side[rows[order[: max(1, round(config.share * len(rows)))]]] = True
        return side
    values = groups(dataset, config.by)
    strata = groups(dataset, config.within).codes if config.within else np.zeros(len(pool), dtype=np.int64)
    chosen: list[int] = []
    for stratum in np.unique(strata[pool & known]):
        mine = strata == stratum
        every = np.unique(values.codes[mine & known & (pool | test_side) & (values.codes >= 0)])
        tested = set(np.unique(values.codes[test_side]))
        free = [int(c) for c in every if c not in tested]
        # One value at least is left to train on.
        size = config.count if config.count is not None else max(1, round((config.share or 0) * len(free)))
        if len(free) <= size:
            continue
        if config.rotate:
            last = [i for i, c in enumerate(every) if c in tested]
            start = last[-1] + 1 if last else number * size
            turned = [int(every[(start + i) % len(every)]) for i in range(len(every))]
            chosen += [c for c in turned if c not in tested][:size]
        else:
            chosen += sorted(free, key=lambda c: _digest(config.seed, f"{fold}/{values.names[c]}"))[:size]
    return pool & np.isin(values.codes, chosen)


def _complete(protocol: "Protocol", values: Groups, known: np.ndarray) -> Groups:
    lost = int((known & (values.codes < 0)).sum())
    if lost:
        raise UserError(
            f"{lost} labelled utterances have no {protocol.folds.by}",
            where=f"protocol {protocol.name}",
            hint="leave them out by `subset` or `corpora`, or make folds by something that all of them have",
        )
    return values


def _named(protocol: "Protocol", values: Groups, wanted: list[str], truth: Labels) -> list[int]:
    return listed(values, wanted, truth.scope, protocol.folds.by, f"protocol {protocol.name}")


def _class_counts(truth: Labels, rows: np.ndarray) -> np.ndarray:
    if not truth.names:
        return np.array([rows.sum()], dtype=np.float64)
    found = truth.classes[rows]
    return np.bincount(found[found >= 0], minlength=len(truth.names)).astype(np.float64)


def _digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def _refuse_empty(protocol: "Protocol", fold: Fold) -> None:
    wants_dev = protocol.dev is not None or bool(protocol.folds.dev)
    for name, rows in (("train", fold.labelled), ("dev", fold.dev), ("test", fold.test)):
        if not len(rows) and (name != "dev" or wants_dev):
            raise UserError(
                f"the {name} set of {called(fold.name)} has no labelled utterance",
                where=f"protocol {protocol.name}",
                hint="check the values of `folds`, and that `dev` leaves someone to train on",
            )
