"""Pooled metrics as sums: each one as small statistics that add up over utterances, and the metric of a sum.

Guarantees: a test set cut by speaker or fold can be recombined in any way (swapped between systems, one speaker left out) and
gives the same number as one pass over the utterances. Gives up: metrics that are no function of such a sum (medians,
ranks) cannot be added here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ser.metrics import ccc_of, grouped_confusion, grouped_moments, macro_f1_of, nanmean, ua_of, wa_of

Array = np.ndarray


@dataclass(frozen=True)
class Metric:
    """A pooled metric as statistics that add up over utterances.

    Attributes:
        name: Key in `METRICS`.
        statistics: (truth, predicted, groups (n,), classes, group count G) -> (G, d) float64, additive over rows.
        value: (..., d) sums -> (...) metric.
        weights: (G, d) -> (G,) share of every group in the metric, summing to 1.
        present: (..., d) -> (..., P) bool, which parts of the metric's mean (classes, dimensions) are defined.
        bounds: Lowest and highest possible value.
    """

    name: str
    statistics: Callable[[Array, Array, Array, int, int], Array]
    value: Callable[[Array], Array]
    weights: Callable[[Array], Array]
    present: Callable[[Array], Array]
    bounds: tuple[float, float]


def _square(stats: Array) -> Array:
    side = round(np.sqrt(stats.shape[-1]))
    return stats.reshape(*stats.shape[:-1], side, side)


def _confusion_statistics(truth: Array, predicted: Array, groups: Array, classes: int, count: int) -> Array:
    return grouped_confusion(truth, predicted, groups, classes, count).reshape(count, -1)


def _class_weights(stats: Array) -> Array:
    """Share of each group in UA: every class present has weight 1/K, spread over the groups by their utterances."""
    totals = _square(stats).sum(-1)  # (G, K)
    whole = totals.sum(0)
    return (totals[:, whole > 0] / whole[whole > 0]).mean(-1)


def _row_weights(stats: Array) -> Array:
    return stats.sum(-1) / stats.sum()


def _classes_present(stats: Array) -> Array:
    return _square(stats).sum(-1) > 0


def _ccc_statistics(truth: Array, predicted: Array, groups: Array, classes: int, count: int) -> Array:
    """Moments of one dimension (n,) or several (n, D), side by side: (G, 6 D)."""
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if truth.ndim == 1:
        truth, predicted = truth[:, None], predicted[:, None]
    parts = []
    for x, y in zip(truth.T, predicted.T, strict=True):
        known = np.isfinite(x)
        centre = x[known].mean() if known.any() else 0.0
        parts.append(grouped_moments(x - centre, y - centre, groups, count))
    return np.concatenate(parts, axis=-1)


def _ccc_value(stats: Array) -> Array:
    return nanmean(ccc_of(stats.reshape(*stats.shape[:-1], -1, 6)))


def _ccc_weights(stats: Array) -> Array:
    counts = stats.reshape(len(stats), -1, 6)[..., 0].sum(-1)
    return counts / counts.sum()


def _ccc_present(stats: Array) -> Array:
    return ~np.isnan(ccc_of(stats.reshape(*stats.shape[:-1], -1, 6)))


def _mean_statistics(truth: Array, predicted: Array, groups: Array, classes: int, count: int) -> Array:
    """Plain mean of per-row scores (Brier terms, losses): `predicted` holds them, `truth` >= 0 or finite says which count."""
    truth = np.asarray(truth, dtype=np.float64)
    known = np.isfinite(truth) & (truth >= 0)
    scores, g = np.asarray(predicted, dtype=np.float64)[known], np.asarray(groups)[known]
    return np.stack(
        [np.bincount(g, scores, count), np.bincount(g, minlength=count).astype(np.float64)], axis=-1
    )


def _mean_value(stats: Array) -> Array:
    return np.divide(
        stats[..., 0], stats[..., 1], out=np.full(stats.shape[:-1], np.nan), where=stats[..., 1] > 0
    )


def _whole(stats: Array) -> Array:
    return np.ones((*stats.shape[:-1], 1), dtype=bool)


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "ua", _confusion_statistics, lambda s: ua_of(_square(s)), _class_weights, _classes_present, (0, 1)
        ),
        Metric("wa", _confusion_statistics, lambda s: wa_of(_square(s)), _row_weights, _whole, (0, 1)),
        Metric(
            "macro_f1",
            _confusion_statistics,
            lambda s: macro_f1_of(_square(s)),
            _row_weights,
            _classes_present,
            (0, 1),
        ),
        Metric("ccc", _ccc_statistics, _ccc_value, _ccc_weights, _ccc_present, (-1, 1)),
        Metric(
            "mean",
            _mean_statistics,
            _mean_value,
            lambda s: s[:, 1] / s[:, 1].sum(),
            _whole,
            (-np.inf, np.inf),
        ),
    )
}


def class_count(truth: Array, systems: Sequence[Array], classes: int | None) -> int:
    """K where it is not given: the largest class seen + 1; 0 for truths that are no classes."""
    if classes is not None:
        return classes
    if not np.issubdtype(truth.dtype, np.integer):
        return 0
    return int(max(truth.max(initial=0), *(s.max(initial=0) for s in systems))) + 1
