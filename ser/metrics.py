"""Metrics of categorical and dimensional emotion recognition, as pure float64 numpy functions.

Guarantees: missing truths (class -1, NaN) never count; what is undefined is NaN, never 0. UA, WA, F1 and CCC come in two
forms, from answers and (`ua_of`, ...) from counts or moments of any leading shape, which add up over utterances.
Gives up: nothing is differentiable and nothing is streamed; the objectives are in `ser.objectives`.

Names as in speech-emotion papers: UA is the unweighted mean of the recalls, WA is plain accuracy (which equals the
"weighted recall" of scikit-learn).
"""

import numpy as np

Array = np.ndarray


def confusion(truth: Array, predicted: Array, classes: int) -> Array:
    """Counts of (true class, predicted class).

    Args:
        truth: (n,) int, -1 where unknown (such rows do not count).
        predicted: (n,) int in [0, classes).
        classes: Number of classes K.

    Returns:
        (K, K) int64, rows are the truth.

    Raises:
        ValueError: A class outside [0, K), or shapes that differ.
    """
    groups = np.zeros(len(np.asarray(truth)), dtype=np.int64)
    return grouped_confusion(truth, predicted, groups, classes, 1)[0].astype(np.int64)


def grouped_confusion(truth: Array, predicted: Array, groups: Array, classes: int, count: int) -> Array:
    """Confusions of `count` groups in one pass: (G, K, K) float64."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} must be equal and flat")
    known = truth >= 0
    t, p, g = truth[known].astype(np.int64), predicted[known].astype(np.int64), np.asarray(groups)[known]
    if t.size and (t.max() >= classes or p.max() >= classes or p.min() < 0):
        raise ValueError(f"a class lies outside 0..{classes - 1}")
    flat = np.bincount((g * classes + t) * classes + p, minlength=count * classes * classes)
    return flat.reshape(count, classes, classes).astype(np.float64)


def recalls(matrix: Array) -> Array:
    """Recall of every class from (..., K, K) counts: (..., K), NaN for classes without an utterance."""
    matrix = np.asarray(matrix, dtype=np.float64)
    total = matrix.sum(-1)
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.divide(hit, total, out=np.full(total.shape, np.nan), where=total > 0)


def ua_of(matrix: Array) -> Array:
    """UA from (..., K, K) counts: the mean recall over the classes that have utterances; NaN where none has."""
    return nanmean(recalls(matrix))


def wa_of(matrix: Array) -> Array:
    """WA (accuracy) from (..., K, K) counts; NaN without utterances."""
    matrix = np.asarray(matrix, dtype=np.float64)
    total = matrix.sum((-2, -1))
    hit = np.diagonal(matrix, axis1=-2, axis2=-1).sum(-1)
    return np.divide(hit, total, out=np.full(total.shape, np.nan), where=total > 0)


def macro_f1_of(matrix: Array) -> Array:
    """Macro F1 from (..., K, K) counts, over classes that occur in truth or prediction (as scikit-learn does)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    either = matrix.sum(-1) + matrix.sum(-2)
    return nanmean(np.divide(2 * hit, either, out=np.full(either.shape, np.nan), where=either > 0))


def nanmean(values: Array) -> Array:
    """Mean over the last axis without NaN entries; NaN (and no warning) where all are NaN."""
    there = np.isfinite(values)
    count = there.sum(-1)
    total = np.where(there, values, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _classes_of(truth: Array, predicted: Array, classes: int | None) -> int:
    if classes is not None:
        return classes
    return int(max(np.max(truth, initial=0), np.max(predicted, initial=0))) + 1


def ua(truth: Array, predicted: Array, classes: int | None = None) -> float:
    """Unweighted accuracy in [0, 1]: mean recall over the classes present in `truth` (n,); -1 is unknown."""
    return float(ua_of(confusion(truth, predicted, _classes_of(truth, predicted, classes))))


def wa(truth: Array, predicted: Array, classes: int | None = None) -> float:
    """Weighted accuracy in [0, 1]: share of right answers among rows of known truth."""
    return float(wa_of(confusion(truth, predicted, _classes_of(truth, predicted, classes))))


def macro_f1(truth: Array, predicted: Array, classes: int | None = None) -> float:
    """Macro F1 in [0, 1] over classes that occur in truth or prediction."""
    return float(macro_f1_of(confusion(truth, predicted, _classes_of(truth, predicted, classes))))


def moments(truth: Array, predicted: Array) -> Array:
    """(n, sum x, sum y, sum xx, sum yy, sum xy) of the rows where both are finite: (6,) float64."""
    return grouped_moments(truth, predicted, np.zeros(len(truth), dtype=np.int64), 1)[0]


def grouped_moments(truth: Array, predicted: Array, groups: Array, count: int) -> Array:
    x, y = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    known = np.isfinite(x)
    if not np.isfinite(y[known]).all():
        raise ValueError("a prediction is not finite where the truth is known")
    x, y, g = x[known], y[known], np.asarray(groups)[known]
    parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(g, weights=part, minlength=count) for part in parts], axis=-1)


def ccc_of(stats: Array) -> Array:
    """Concordance correlation from (..., 6) moments, population variance (Lin 1989, Biometrics 45, eq. 2).

    A constant truth gives NaN (nothing to agree with); a constant prediction of a varying truth gives 0.
    """
    stats = np.asarray(stats, dtype=np.float64)
    n, sx, sy, sxx, syy, sxy = (stats[..., i] for i in range(6))
    safe = np.maximum(n, 1)
    mx, my = sx / safe, sy / safe
    vx, vy = np.maximum(sxx / safe - mx * mx, 0), np.maximum(syy / safe - my * my, 0)
    cov = sxy / safe - mx * my
    # A variance below rounding of its own terms is a constant.
    varies = (n >= 2) & (vx > 1e-13 * np.maximum(sxx / safe, 1e-300))
    below = vx + vy + (mx - my) ** 2
    return np.divide(2 * cov, below, out=np.full(np.shape(n), np.nan), where=varies & (below > 0))


def ccc(truth: Array, predicted: Array) -> float:
    """Concordance correlation over the whole set (n,), rows of NaN truth left out; NaN where undefined (`ccc_reason`)."""
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    known = np.isfinite(truth)
    if not known.any():
        return float("nan")
    centre = truth[
        known
    ].mean()  # moments about a near mean lose no digits; CCC does not move with a common shift
    return float(ccc_of(moments(truth - centre, predicted - centre)))


def ccc_reason(truth: Array, predicted: Array) -> str | None:
    """Why `ccc` is NaN (None where it is defined)."""
    known = np.asarray(truth, dtype=np.float64)
    known = known[np.isfinite(known)]
    if known.size < 2:
        return f"{known.size} rated utterances: at least 2 are needed"
    if np.isnan(ccc(truth, predicted)):
        return f"the truth is constant ({known[0]:g}) over {known.size} utterances"
    return None


def ece(probabilities: Array, truth: Array, bins: int = 15) -> float:
    """Expected calibration error of the top label (Guo et al. 2017, eq. 3), equal-width bins (lo, hi].

    Args:
        probabilities: (n, K), rows sum to 1. truth: (n,) int, -1 unknown.
    """
    p, t = _known(probabilities, truth)
    if not len(t):
        return float("nan")
    top, right = p.max(-1), p.argmax(-1) == t
    which = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(which, weights=right - top, minlength=bins)
    return float(np.abs(gap).sum() / len(t))


def brier(probabilities: Array, truth: Array) -> float:
    """Brier score, summed over classes (0 best, 2 worst) and averaged over rows; truth (n,) int or (n, K) soft."""
    p, t = _known(probabilities, truth)
    return float(((p - _one_hot(t, p.shape[1])) ** 2).sum(-1).mean()) if len(t) else float("nan")


def nll(probabilities: Array, truth: Array) -> float:
    """Mean negative log likelihood in nats (cross entropy where the truth is soft); probabilities below 1e-12 count as that."""
    p, t = _known(probabilities, truth)
    if not len(t):
        return float("nan")
    return float(-(_one_hot(t, p.shape[1]) * np.log(np.maximum(p, 1e-12))).sum(-1).mean())


def entropy(probabilities: Array) -> Array:
    """Entropy of every row of (n, K) in nats: (n,). A teacher's over-confidence shows here."""
    p = np.asarray(probabilities, dtype=np.float64)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def _known(probabilities: Array, truth: Array) -> tuple[Array, Array]:
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    known = np.isfinite(t).all(-1) if t.ndim == 2 else t >= 0
    return p[known], t[known]


def _one_hot(truth: Array, classes: int) -> Array:
    return truth if truth.ndim == 2 else np.eye(classes)[truth]
