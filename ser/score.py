"""A model's answers against labels: the handful of numbers that training watches and reports repeat."""

from collections.abc import Mapping

import numpy as np

from ser import metrics
from ser.infer import Answers
from ser.protocol import Labels

DIMENSIONS = ("valence", "arousal", "dominance")


def score(answers: Answers, labels: Labels) -> dict[str, float]:
    """Classification and dimension scores over the answered rows; what has no labels or no head is left out.

    Args:
        answers: Of a model, for rows of the dataset.
        labels: Of the whole dataset.

    Returns:
        ua, wa, macro_f1, ece, brier, nll, entropy; ccc_valence, ccc_arousal, ccc_dominance and their mean `ccc`.
        An utterance that could not be read counts with a uniform answer, so that it cannot improve a score.
    """
    values: dict[str, float] = {}
    truth = labels.classes[answers.rows]
    if answers.logits is not None and (truth >= 0).any():
        known = truth >= 0
        p = probabilities(answers.logits)[known]
        guess, y = p.argmax(1), truth[known]
        count = p.shape[1]
        values |= {
            "ua": metrics.ua(y, guess, count),
            "wa": metrics.wa(y, guess, count),
            "macro_f1": metrics.macro_f1(y, guess, count),
            "ece": metrics.ece(p, y),
            "brier": metrics.brier(p, y),
            "nll": metrics.nll(p, y),
            "entropy": float(metrics.entropy(p).mean()),
        }
    if answers.dimensions is not None:
        found: Mapping[str, float] = {
            f"ccc_{name}": metrics.ccc(labels.dimensions[answers.rows, i], answers.dimensions[:, i])
            for i, name in enumerate(DIMENSIONS)
            if np.isfinite(labels.dimensions[answers.rows, i]).any()
        }
        values |= found
        if found:
            values["ccc"] = float(np.mean([0.0 if np.isnan(v) else v for v in found.values()]))
    return values


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(-1, keepdims=True)
