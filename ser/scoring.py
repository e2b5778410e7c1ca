"""Scores of a model's answers against labels, with their uncertainty: the numbers of the report, as pure functions.

Guarantees: a score is the mean over seeds of the score of each; intervals and tests are those of `ser.intervals`, with
the speaker as the unit. An utterance without an answer counts as wrong, its posterior as uniform and its dimensions as
the middle of the scale, so leaving out what is hard cannot improve a number.
Gives up: ECE and entropy get no interval; where a class has no test utterance it leaves the mean (as `ser.metrics`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser import intervals, metrics
from ser.pooled import METRICS
from ser.protocol import Labels
from ser.results import ANSWERED, NO_INPUT, UNREADABLE, System
from ser.score import DIMENSIONS, decisions

Array = np.ndarray
CATEGORICAL = ("ua", "wa", "macro_f1", "ece", "brier", "nll", "entropy", "soft_nll")
DIMENSIONAL = ("ccc", "ccc_valence", "ccc_arousal", "ccc_dominance")
SIGNS = ("valence_sign", "arousal_sign")
COMPARABLE = ("ua", "wa", "macro_f1", "brier", "nll", *DIMENSIONAL, *SIGNS)
LOWER_IS_BETTER = frozenset({"ece", "brier", "nll", "soft_nll"})
# SpokenAffect's quadrants: which classes are of positive valence, and which of high arousal.
POSITIVE, AROUSED = frozenset({"happy", "calm"}), frozenset({"angry", "happy"})
MINIMUM_IN_GROUP = 20
BINS = 15  # as in metrics.ece, so that the plot shows what the number sums up


@dataclass(frozen=True)
class Truth:
    """Labels of the rows of one `System`.

    Attributes:
        names: Class names, K.
        classes: (n,) int64, -1 unknown.
        soft: (n, K) or None; rows of zeros are unknown.
        dimensions: (n, 3) float64, NaN unknown.
    """

    names: tuple[str, ...]
    classes: Array
    soft: Array | None
    dimensions: Array

    @classmethod
    def of(cls, labels: Labels, rows: Array) -> "Truth":
        """Labels of these dataset rows."""
        soft = None if labels.soft is None else labels.soft[rows].astype(np.float64)
        return cls(labels.names, labels.classes[rows], soft, labels.dimensions[rows].astype(np.float64))

    def part(self, rows: Array) -> "Truth":
        """The same for some positions or a bool mask."""
        soft = None if self.soft is None else self.soft[rows]
        return Truth(self.names, self.classes[rows], soft, self.dimensions[rows])


@dataclass(frozen=True)
class Material:
    """What `ser.intervals` needs for one metric: truth (n[, D]), predicted (S, n[, D]), number of classes."""

    metric: str
    truth: Array
    predicted: Array
    classes: int | None

    def part(self, rows: Array) -> "Material":
        """The same for some positions or a bool mask."""
        return Material(self.metric, self.truth[rows], self.predicted[:, rows], self.classes)


def material(metric: str, truth: Truth, system: System) -> Material | None:
    """Arrays behind one of `COMPARABLE`; None where the system or the truth does not have them."""
    count = len(truth.names)
    if metric in SIGNS:
        return _sign(metric, truth, system)
    if metric in DIMENSIONAL:
        which = [DIMENSIONS.index(metric[4:])] if metric != "ccc" else [0, 1, 2]
        if system.dimensions is None or not np.isfinite(truth.dimensions[:, which]).any():
            return None
        if metric == "ccc":
            return Material("ccc", truth.dimensions, system.dimensions, None)
        return Material("ccc", truth.dimensions[:, which[0]], system.dimensions[..., which[0]], None)
    if system.probabilities is None or not (truth.classes >= 0).any():
        return None
    if metric in ("brier", "nll"):
        return Material("mean", truth.classes, _terms(metric, truth.classes, system.probabilities), None)
    assert system.decided is not None
    return Material(metric, truth.classes, decisions(system.decided, truth.classes, count), count)


def _terms(metric: str, truth: Array, p: Array) -> Array:
    """(S, n) per-utterance terms whose mean is the Brier score or the negative log likelihood; 0 where unknown."""
    known = truth >= 0
    goal = np.eye(p.shape[-1])[np.maximum(truth, 0)]
    if metric == "brier":
        return np.where(known, ((p - goal) ** 2).sum(-1), 0.0)
    return np.where(known, -np.log(np.maximum((p * goal).sum(-1), 1e-12)), 0.0)


def _sign(metric: str, truth: Truth, system: System) -> Material | None:
    """A two-class question derived from the four quadrants: the sign of valence, or high against low arousal."""
    column, members = (0, POSITIVE) if metric == "valence_sign" else (1, AROUSED)
    inside = np.array([name in members for name in truth.names], dtype=bool)
    if len(truth.names):
        known, classes = truth.classes >= 0, np.maximum(truth.classes, 0)
        sign = np.where(known, inside[classes].astype(np.int64), -1)
    else:
        value = truth.dimensions[:, column]
        sign = np.where(np.isfinite(value), (value > 0.5).astype(np.int64), -1)
    if system.probabilities is not None:
        said = (system.probabilities[..., inside].sum(-1) > 0.5).astype(np.int64)
    elif system.dimensions is not None:
        said = (system.dimensions[..., column] > 0.5).astype(np.int64)
    else:
        return None
    if not (sign >= 0).any():
        return None
    said = np.where(system.state == ANSWERED, said, 1 - np.maximum(sign, 0))
    return Material("wa", sign, said, 2)


def values(truth: Truth, system: System) -> dict[str, Array]:
    """Every metric of every seed: name -> (S,) float64; what has no truth or no answers is left out."""
    out: dict[str, Array] = {}
    for name in ("ua", "wa", "macro_f1", *DIMENSIONAL):
        have = material(name, truth, system)
        if have is not None:
            out[name] = np.array([_value(have, s) for s in range(len(have.predicted))])
    p = system.probabilities
    if p is not None:
        out["entropy"] = np.array([metrics.entropy(one).mean() if len(one) else np.nan for one in p])
        if (truth.classes >= 0).any():
            for name, function in (("ece", metrics.ece), ("brier", metrics.brier), ("nll", metrics.nll)):
                out[name] = np.array([function(one, truth.classes) for one in p])
        if truth.soft is not None and truth.soft.any():
            rated = truth.soft.sum(1) > 0
            out["soft_nll"] = np.array([metrics.nll(one[rated], truth.soft[rated]) for one in p])
    return out


def _value(have: Material, seed: int) -> float:
    metric = METRICS[have.metric]
    groups = np.zeros(len(have.truth), dtype=np.int64)
    return float(
        metric.value(metric.statistics(have.truth, have.predicted[seed], groups, have.classes or 0, 1)[0])
    )


def pooled(truth: Truth, system: System, speakers: Sequence[str] | Array) -> dict[str, dict[str, Any]]:
    """Scores over all rows together: metric -> value, interval or why there is none, value of each seed."""
    out: dict[str, dict[str, Any]] = {}
    for name, each in values(truth, system).items():
        have = material(name, truth, system) if name in COMPARABLE else None
        if have is None:
            out[name] = {
                "value": float(each.mean()), "low": None, "high": None, "reason": "no interval is defined for it",
            }  # fmt: skip
        else:
            out[name] = _interval(have, speakers)
        out[name]["each_seed"] = each.tolist()
    return out


def signs(truth: Truth, system: System, speakers: Sequence[str] | Array) -> dict[str, dict[str, Any]]:
    """Accuracy on the sign of valence and on high against low arousal, with intervals."""
    found = {name: material(name, truth, system) for name in SIGNS}
    return {name: _interval(have, speakers) for name, have in found.items() if have is not None}


def _interval(have: Material, speakers: Sequence[str] | Array) -> dict[str, Any]:
    found = intervals.interval(have.metric, have.truth, have.predicted, speakers, classes=have.classes)
    return found.to_dict()


def by_fold(truth: Truth, system: System) -> list[dict[str, Array]]:
    """`values` of each fold on its own."""
    return [
        values(truth.part(system.fold == f), system.part(system.fold == f))
        for f in range(int(system.fold.max(initial=-1)) + 1)
    ]


def mean_over_folds(folds: list[dict[str, Array]]) -> dict[str, float | None]:
    """Mean over folds of the mean over seeds; folds where a metric is undefined are left out of its mean."""
    names = list(dict.fromkeys(name for fold in folds for name in fold))
    out: dict[str, float | None] = {}
    for name in names:
        each = np.array([fold[name].mean() for fold in folds if name in fold])
        each = each[np.isfinite(each)]
        out[name] = float(each.mean()) if len(each) else None
    return out


def groups(
    metric: str, truth: Truth, system: System, speakers: Array, names: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    """One metric within every group of rows, sorted by name; small groups get no value and say so.

    Args:
        metric: One of `COMPARABLE`.
        names: (n,) group of every row; None rows are left out.
    """
    have = material(metric, truth, system)
    if have is None:
        return {}
    labels = np.array(["" if name is None else str(name) for name in names], dtype=object)
    known = truth.classes >= 0 if have.metric != "ccc" else np.isfinite(truth.dimensions).any(1)
    out: dict[str, dict[str, Any]] = {}
    for name in sorted(set(labels) - {""}):
        rows = np.flatnonzero((labels == name) & known)
        base = {"count": len(rows), "speakers": len(set(speakers[rows]))}
        if len(rows) < MINIMUM_IN_GROUP:
            reason = f"{len(rows)} utterances, fewer than {MINIMUM_IN_GROUP}"
            out[name] = {**base, "value": None, "low": None, "high": None, "reason": reason}
            continue
        out[name] = {**base, **_interval(have.part(rows), speakers[rows])}
        if metric == "ua":
            absent = sorted(set(range(len(truth.names))) - set(truth.classes[rows].tolist()))
            out[name]["absent_classes"] = [truth.names[i] for i in absent]
    return out


def compare(
    metric: str, truth: Truth, system: System, reference: System, speakers: Sequence[str] | Array
) -> dict[str, Any] | None:
    """System minus reference on one metric: difference, swap test, interval, and the test over folds.

    Returns:
        None where one of the two does not have the metric.
    """
    first, second = material(metric, truth, system), material(metric, truth, reference)
    if first is None or second is None:
        return None
    found = intervals.compare(
        first.metric, first.truth, first.predicted, second.predicted, speakers, classes=first.classes
    )
    folds = []
    for have in (first, second):
        parts = [have.part(system.fold == f) for f in range(int(system.fold.max()) + 1)]
        folds.append([float(np.mean([_value(p, s) for s in range(len(p.predicted))])) for p in parts])
    test = intervals.fold_test(*folds)
    return {**found.to_dict(), "values": [_mean(first), _mean(second)], "folds": test.to_dict()}


def _mean(have: Material) -> float:
    return float(np.mean([_value(have, s) for s in range(len(have.predicted))]))


def confusions(truth: Truth, system: System) -> dict[str, Any] | None:
    """Counts summed over seeds: (K, K), rows are the truth, and (K,) utterances of each class without an answer."""
    if system.decided is None:
        return None
    count = len(truth.names)
    total, silent = np.zeros((count, count), dtype=np.int64), np.zeros(count, dtype=np.int64)
    for decided in system.decided:
        there = (decided >= 0) & (truth.classes >= 0)
        total += metrics.confusion(truth.classes[there], decided[there], count)
        silent += np.bincount(truth.classes[(decided < 0) & (truth.classes >= 0)], minlength=count)
    return {"counts": total.tolist(), "unanswered": silent.tolist(), "seeds": len(system.decided)}


def calibration(truth: Truth, system: System, bins: int = BINS) -> list[dict[str, Any]] | None:
    """How often the top class is right, by how sure the model said it was; all seeds together, bins (lo, hi]."""
    if system.probabilities is None:
        return None
    known = truth.classes >= 0
    top = system.probabilities[:, known].max(-1).ravel()
    right = (system.probabilities[:, known].argmax(-1) == truth.classes[known]).ravel()
    which = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    out = []
    for b in range(bins):
        inside = which == b
        n = int(inside.sum())
        out.append(
            {
                "count": n,
                "confidence": float(top[inside].mean()) if n else None,
                "accuracy": float(right[inside].mean()) if n else None,
            }
        )
    return out


def confidence(p: Array, truth: Array) -> dict[str, Any]:
    """How sure answers (n, K) are, and how right: entropy in nats, mean top probability, and with labels nll and accuracy."""
    if not len(p):
        return {"count": 0}
    out = {
        "count": len(p),
        "entropy": float(metrics.entropy(p).mean()),
        "top": float(p.max(-1).mean()),
    }
    known = truth >= 0
    if known.any():
        out["nll"] = metrics.nll(p, truth)
        out["accuracy"] = float((p.argmax(-1)[known] == truth[known]).mean())
        out["labelled"] = int(known.sum())
    return out


def unanswered(system: System) -> dict[str, int]:
    """Distinct test utterances without an answer in some seed, by reason."""
    return {
        "no_input": int((system.state == NO_INPUT).any(0).sum()),
        "unreadable": int((system.state == UNREADABLE).any(0).sum()),
        "of": len(system.rows),
    }
