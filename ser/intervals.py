"""Uncertainty of a test result, with the speaker as the unit: speakers were sampled, utterances were not.

Guarantees
- Seeds are averaged first: every value is the mean over a system's seeds, and a speaker moves with all seeds at once.
- Two systems are compared by swapping their predictions speaker by speaker and recomputing the pooled metric, over all
  2^G assignments up to 16 speakers, else over seeded draws with +1 in both counts (Phipson & Smyth 2010, SAGMB 9:39).
  The test is exact under its null: each speaker's pair of predictions is exchangeable (Fisher 1935; Noreen 1989).
- The interval of the difference inverts that same test, so it excludes zero exactly when p <= 1 - level.
- Fewer than 8 test speakers: no interval, and the reason.

Gives up
- Everything is conditional on the trained models: other training speakers or folds would move both systems. The p over
  folds (`fold_test`) is printed beside it for that reason; with F folds it cannot fall below 2 / 2^F.
- The shift model behind the interval is an idealisation, see `compare`. The interval of one system is asymptotic in the
  number of speakers (delete-one-group jackknife: Tukey 1958; Efron & Tibshirani 1993, ch. 11).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ser.pooled import METRICS, Metric, class_count

Array = np.ndarray
MINIMUM_SPEAKERS = 8
EXACT_SPEAKERS = 16
DRAWS = 100_000
# Differences of metrics below this are ties: the same counts summed in another order may differ by rounding.
TIE = 1e-12


@dataclass(frozen=True)
class Interval:
    """One system. `low` and `high` are None, with the reason, where there is no interval.

    `missing_share` is the share of leave-one-speaker-out resamples that lose a class (or a dimension); there the class
    leaves the mean.
    """

    value: float
    low: float | None
    high: float | None
    level: float
    speakers: int
    seeds: int
    method: str
    reason: str = ""
    missing_share: float = 0.0

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two systems: first minus second. `p` is two-sided; `low`, `high` as in `Interval`."""

    difference: float
    low: float | None
    high: float | None
    p: float
    level: float
    speakers: int
    assignments: int
    exact: bool
    method: str
    reason: str = ""

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class FoldTest:
    """Sign-flip test of the mean difference over folds; `smallest` is the least p that this many folds can give."""

    difference: float
    p: float
    smallest: float
    folds: int
    exact: bool

    def to_dict(self) -> dict:
        return asdict(self)


def interval(
    metric: str,
    truth: Array,
    predicted: Array,
    speakers: Sequence | Array,
    *,
    classes: int | None = None,
    level: float = 0.95,
    minimum: int = MINIMUM_SPEAKERS,
) -> Interval:
    """Value of one system and a t interval over leave-one-speaker-out jackknife values.

    With theta the metric of the whole set and theta_(g) that without speaker g (each the mean over seeds), the standard
    error is sqrt((G - 1) / G * sum_g (theta_(g) - mean)^2) and the interval theta +- t(G - 1) * it, cut at the metric's
    bounds.

    Args:
        metric: Name in `ser.pooled.METRICS`.
        truth: (n,) classes (-1 unknown), or (n,) or (n, D) dimensions (NaN unknown) for "ccc".
        predicted: Like `truth`, or with a leading axis of seeds: (S, n[, D]).
        speakers: (n,) speaker of every row.
        classes: K; by default the largest class seen + 1.
        level: Confidence level.
        minimum: Fewest speakers that get an interval.
    """
    (system,) = _statistics(METRICS[metric], truth, [predicted], speakers, classes)
    m = METRICS[metric]
    seeds, count, _ = system.shape
    whole = system.sum(1)
    value = float(m.value(whole).mean())
    base: dict[str, Any] = dict(
        value=value, level=level, speakers=count, seeds=seeds, method="jackknife over speakers, t"
    )
    if count < minimum:
        return Interval(low=None, high=None, reason=_too_few(count, minimum), **base)
    left = whole[:, None] - system  # (S, G, d): everything but speaker g
    lost = (m.present(whole)[:, None] & ~m.present(left)).any((0, 2))
    each = m.value(left).mean(0)
    share = float(lost.mean())
    if not np.isfinite(each).all():
        reason = "the metric is undefined without some speaker"
        return Interval(low=None, high=None, reason=reason, missing_share=share, **base)
    error = np.sqrt((count - 1) / count * ((each - each.mean()) ** 2).sum())
    half = stdtrit(count - 1, 0.5 + level / 2) * error
    low, high = max(value - half, m.bounds[0]), min(value + half, m.bounds[1])
    return Interval(low=float(low), high=float(high), missing_share=share, **base)


def compare(
    metric: str,
    truth: Array,
    first: Array,
    second: Array,
    speakers: Sequence | Array,
    *,
    classes: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
    minimum: int = MINIMUM_SPEAKERS,
) -> Comparison:
    """Difference of two systems on the same rows, its swap test and the interval that inverts it.

    Write s_g = -1 where speaker g's predictions are swapped, else +1; D the observed difference and T(s) the pooled
    difference after the swaps, with all seeds of a speaker swapped together. p is the share of assignments with
    |T(s)| >= |D|. With as many seeds in both systems seed k is paired with seed k (the mean over seeds is what is
    tested); with unequal numbers all pairs are used.

    The interval needs a hypothesis "the true difference is delta". It is: taking delta off the first system's score,
    evenly in every speaker, makes the pairs exchangeable. Speaker g carries the share w_g of the metric (rows for
    accuracy; for UA the mean over classes of its share of the class), hence the shifted statistic is
    T(s) - delta t(s) with t(s) = sum_g s_g w_g, and delta is kept where at least a share 1 - level of the assignments
    have |T(s) - delta t(s)| >= |D - delta|.
    UA and WA are linear in the speakers, because swaps leave the true classes as they are: T(s) = sum_g s_g d_g, and
    this is the ordinary shift model, speaker differences d_g / w_g symmetric about delta, whose inversion has the
    confidence level exactly (Lehmann & Romano 2005, sec. 5.12 and Maritz 1979; Hartigan 1969 builds it from subset
    means). It is approximate where speakers' differences are skewed, where w_g is related to the difference, and for
    macro-F1 and CCC, which are not linear; at delta = 0 it is the swap test itself for every metric.
    For every s the kept deltas run between the difference among swapped speakers, (D - T) / (1 - t), and that among the
    others, (D + T) / (1 + t); the ends of the interval are order statistics of these, no search is needed.

    Args: as `interval`, with two systems (S, n[, D]); `seed` and `draws` matter above 16 speakers only.
    """
    m = METRICS[metric]
    a, b = _statistics(m, truth, [first, second], speakers, classes)
    count = a.shape[1]
    pairs = list(zip(range(len(a)), range(len(b)))) if len(a) == len(b) else list(np.ndindex(len(a), len(b)))
    difference = float(np.mean([m.value(a[i].sum(0)) - m.value(b[j].sum(0)) for i, j in pairs]))
    exact = count <= EXACT_SPEAKERS
    base: dict[str, Any] = dict(
        difference=difference,
        level=level,
        speakers=count,
        exact=exact,
        assignments=2**count if exact else draws,
        method="swap test over speakers, inverted" + ("" if exact else f", {draws} draws, seed {seed}"),
    )
    weights = m.weights(a[0])
    lows, highs = [], []
    for kept in _assignments(count, exact, seed, draws):
        total = np.mean([_swapped(m, a[i], b[j], kept) for i, j in pairs], axis=0)
        low, high = _kept_deltas(difference, total, (2.0 * kept - 1.0) @ weights)
        lows.append(low)
        highs.append(high)
    low, high = np.concatenate(lows), np.concatenate(highs)
    if np.isnan(difference) or np.isnan(low).any():
        reason = "the metric is undefined for some assignment of the speakers"
        return Comparison(low=None, high=None, p=float("nan"), reason=reason, **base)
    # The observed assignment is among all 2^G; among draws it is added: +1 in both counts.
    extra = 0 if exact else 1
    p = float((((low <= 0) & (high >= 0)).sum() + extra) / (len(low) + extra))
    if count < minimum:
        return Comparison(low=None, high=None, p=p, reason=_too_few(count, minimum), **base)
    place = int(np.floor((1 - level) * (len(low) + extra) + 1e-9)) - extra
    if place < 0:
        return Comparison(
            low=None, high=None, p=p, reason=f"{draws} draws are too few for level {level}", **base
        )
    left, right = np.sort(low)[place], np.sort(-high)[place]
    if not (np.isfinite(left) and np.isfinite(right)):
        return Comparison(low=None, high=None, p=p, reason=f"no interval of level {level} is finite", **base)
    return Comparison(low=float(left), high=float(-right), p=p, **base)


def fold_test(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, draws: int = DRAWS
) -> FoldTest:
    """Paired sign-flip test over folds, on the metric of every fold (mean over seeds first).

    Exact up to 16 folds, else seeded draws with +1 in both counts. Folds share training speakers, so this p is no more
    than an indication of how the result depends on the training sets.
    """
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    gaps = gaps[np.isfinite(gaps)]
    count = len(gaps)
    if not count:
        return FoldTest(float("nan"), float("nan"), float("nan"), 0, True)
    exact = count <= EXACT_SPEAKERS
    reached = total = 0
    for kept in _assignments(count, exact, seed, draws):
        values = np.abs((2.0 * kept - 1.0) @ gaps)
        reached += int((values >= abs(gaps.sum()) - TIE * count).sum())
        total += len(values)
    extra = 0 if exact else 1
    smallest = 2.0 / 2**count if exact else 1.0 / (draws + 1)
    return FoldTest(float(gaps.mean()), (reached + extra) / (total + extra), min(smallest, 1.0), count, exact)


def _statistics(
    metric: Metric, truth: Array, systems: Sequence[Array], speakers: Sequence | Array, classes: int | None
) -> list[Array]:
    """Per-speaker statistics of every system: (S, G, d) each; speakers without a known truth are dropped."""
    truth = np.asarray(truth)
    systems = [np.asarray(s) for s in systems]
    systems = [s[None] if s.ndim == truth.ndim else s for s in systems]
    names, groups = np.unique(np.asarray(speakers).astype(str), return_inverse=True)
    for s in systems:
        if s.shape[1:] != truth.shape or len(groups) != len(truth):
            raise ValueError(
                f"predicted {s.shape}, truth {truth.shape} and {len(groups)} speakers do not fit"
            )
    size = class_count(truth, systems, classes)
    known = (
        truth >= 0
        if np.issubdtype(truth.dtype, np.integer)
        else np.isfinite(truth).reshape(len(truth), -1).any(-1)
    )
    used = np.bincount(groups[known], minlength=len(names)) > 0
    return [
        np.stack([metric.statistics(truth, p, groups, size, len(names)) for p in s])[:, used] for s in systems
    ]


def _assignments(count: int, exact: bool, seed: int, draws: int, block: int = 1 << 13) -> Iterator[Array]:
    """Blocks of (m, G) bool: True where a speaker keeps its predictions.

    All 2^G come as the half in which the first speaker keeps them: the other half mirrors it, giving the same |T| and
    the same kept deltas.
    """
    if exact:
        free = np.arange(max(count - 1, 0))
        for start in range(0, 2 ** len(free), block):
            codes = np.arange(start, min(start + block, 2 ** len(free)))
            kept = ((codes[:, None] >> free) & 1) == 0
            yield np.concatenate([np.ones((len(codes), 1), dtype=bool), kept], axis=1)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, draws, block):
        yield rng.integers(0, 2, size=(min(block, draws - start), count), dtype=np.uint8).astype(bool)


def _swapped(metric: Metric, a: Array, b: Array, kept: Array) -> Array:
    """Metric difference of two systems (G, d) under every assignment (m, G): (m,)."""
    keep = kept.astype(np.float64)
    one = keep @ a + (1 - keep) @ b
    return metric.value(one) - metric.value(a.sum(0) + b.sum(0) - one)


def _kept_deltas(difference: float, total: Array, weight: Array) -> tuple[Array, Array]:
    """For every assignment the deltas with |T - delta t| >= |D - delta|: always one interval around D, (m,), (m,)."""
    ends = []
    for top, below in ((difference - total, 1 - weight), (difference + total, 1 + weight)):
        top = np.where(np.abs(top) < TIE, 0.0, top)
        ends.append(np.divide(top, below, out=np.full(len(top), np.inf), where=below > TIE))
    low, high = np.minimum(*ends), np.maximum(*ends)
    unbounded = ~np.isfinite(ends[0]) | ~np.isfinite(ends[1])
    low, high = np.where(unbounded, -np.inf, low), np.where(unbounded, np.inf, high)
    return np.where(np.isnan(total), np.nan, low), np.where(np.isnan(total), np.nan, high)


def _too_few(count: int, minimum: int) -> str:
    return f"{count} test speakers, fewer than {minimum}: no interval"
