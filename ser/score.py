"""A model's answers against labels: the handful of numbers that training watches and reports repeat."""

from collections.abc import Mapping

import numpy as np

from ser import metrics
from ser.infer import Answers
from ser.protocol import DIMENSIONS, Labels
from shards.targets import PRESENT


def score(answers: Answers, labels: Labels) -> dict[str, float]:
    """Classification and dimension scores over the answered rows; what has no labels or no head is left out.

    Args:
        answers: Of a model, for rows of the dataset.
        labels: Of the whole dataset.

    Returns:
        ua, wa, macro_f1, ece, brier, nll, entropy; ccc_valence, ccc_arousal, ccc_dominance and their mean `ccc`.
        An utterance without an answer (not readable, no input) counts as in the report: see `settle` and `decisions`.
    """
    values: dict[str, float] = {}
    truth = labels.classes[answers.rows]
    p, decided, dimensions = settle(answers.logits, answers.dimensions, answers.state)
    if p is not None and decided is not None and (truth >= 0).any():
        known = truth >= 0
        count = p.shape[1]
        values["entropy"] = float(metrics.entropy(p).mean())
        p, guess, y = p[known], decisions(decided, truth, count)[known], truth[known]
        values |= {
            "ua": metrics.ua(y, guess, count),
            "wa": metrics.wa(y, guess, count),
            "macro_f1": metrics.macro_f1(y, guess, count),
            "ece": metrics.ece(p, y),
            "brier": metrics.brier(p, y),
            "nll": metrics.nll(p, y),
        }
    if dimensions is not None:
        found: Mapping[str, float] = {
            f"ccc_{name}": metrics.ccc(labels.dimensions[answers.rows, i], dimensions[:, i])
            for i, name in enumerate(DIMENSIONS)
            if np.isfinite(labels.dimensions[answers.rows, i]).any()
        }
        values |= found
        if found:
            values["ccc"] = float(np.mean([0.0 if np.isnan(v) else v for v in found.values()]))
    return values


def settle(
    logits: np.ndarray | None, dimensions: np.ndarray | None, state: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """What counts as a model's answers, the same in training, choice and report: leaving out what is hard never helps.

    Args:
        logits: (..., n, K), or None.
        dimensions: (..., n, 3), or None.
        state: (..., n) uint8 as in `shards.targets`.

    Returns:
        Posteriors (..., n, K) float64, uniform where the state is not PRESENT; decided classes (..., n) int64, there -1;
        dimensions (..., n, 3) float64, there 0.5, the middle of the scale. None for what the model does not have.
    """
    silent = state != PRESENT
    p = decided = None
    if logits is not None:
        p = probabilities(np.where(silent[..., None], 0.0, logits))
        decided = np.where(silent, -1, p.argmax(-1))
    if dimensions is not None:
        dimensions = np.where(silent[..., None], 0.5, dimensions.astype(np.float64))
    return p, decided, dimensions


def decisions(decided: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Decided classes (..., n) in which "no answer" (-1) is a wrong class: the one after the true one."""
    wrong = np.where(truth >= 0, (truth + 1) % classes, 0)
    return np.where(decided < 0, wrong, decided)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(-1, keepdims=True)
