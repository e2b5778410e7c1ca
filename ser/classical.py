"""Fit of the classical models: functionals, standardised, then a linear SVM or logistic regression of scikit-learn.

Guarantees: scaler and weights come from the labelled training rows alone; the strength of the regularisation (`grid`)
and the scale that turns decision values into posteriors are chosen on the fold's dev rows, which is the `select`
exposure that every training declares. A tie goes to the stronger regularisation. Same data, same seed: same weights.
Gives up: dimensions, soft labels and unlabelled speech; functionals of augmented views.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.build import Ingredients
from ser.distributed import World
from ser.features.functionals import OPENSMILE_LICENCE
from ser.finish import finish
from ser.inputs import complete
from ser.metrics import nll
from ser.models.classical import Classical
from ser.models.config import ClassicalConfig
from ser.produce import FEATURE_VERSION, machine
from ser.score import probabilities
from ser.setting import Setting
from shards.batch import load_slot
from shards.errors import UserError
from shards.slots import Slot
from shards.targets import Output, TargetSpec

BATCH = 64
# Factors tried for the decision values; softmax of a plain SVM decision is far too unsure.
SCALES = np.geomspace(0.1, 30, 60)


def fit(x: Ingredients, folder: Path, world: World) -> None:
    """Fit one classical model on a fold and write what every training writes.

    Raises:
        UserError: scikit-learn or openSMILE is missing, or a class has no training row.
    """
    model = x.model
    assert isinstance(model, Classical)
    classes = x.objective.supervision.classes
    train, truth = functionals(x, x.rows[classes[x.rows] >= 0])
    dev_rows = x.choosing[x.dev_labels.classes[x.choosing] >= 0]
    dev, dev_truth = functionals(x, dev_rows)
    truth, dev_truth = classes[truth], x.dev_labels.classes[dev_truth]
    absent = sorted(set(range(model.classes)) - set(truth.tolist()))
    if absent:
        raise UserError(
            f"no training utterance of {', '.join(x.setting.classes[i] for i in absent)}", where=str(x.job)
        )
    found, tried = choose(model.config, train, truth, dev, dev_truth, model.classes, x.seed)
    model.set_weights(*(torch.from_numpy(value) for value in found))
    if model.config.features == "egemaps":
        x.licences = sorted({*x.licences, OPENSMILE_LICENCE})
    best = max(tried, key=lambda c: (tried[c], -c)) if tried else None
    training = {"chosen": f"C {best:g} of {len(tried)}" if tried else "one C", "dev": None if best is None else tried[best], "grid": {f"{c:g}": v for c, v in tried.items()}}  # fmt: skip
    finish(x, {f"model.{name}": value for name, value in model.state_dict().items()}, folder, world, training)


def functionals(x: Ingredients, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Functionals (n, D) of the readable ones of `rows`, and those rows; from the store, else from the audio."""
    parts, kept = [], []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        slot = Slot(some, np.zeros(len(some), np.int64))
        batch = complete(load_slot(x.dataset, slot, x.needs, x.policy), x.model)
        good = batch.present.numpy()
        parts.append(batch.features[x.model.config.features][:, 0].numpy()[good])
        kept.append(some[good])
    size = x.model.embedding_size
    if not parts:
        return np.empty((0, size), np.float32), np.empty(0, np.int64)
    return np.concatenate(parts), np.concatenate(kept)


def choose(
    config: ClassicalConfig,
    train: np.ndarray,
    truth: np.ndarray,
    dev: np.ndarray,
    dev_truth: np.ndarray,
    classes: int,
    seed: int,
) -> tuple[tuple[np.ndarray, ...], dict[float, float]]:
    """Fit with every C of the grid and keep the best on dev by unweighted accuracy.

    Args:
        train, dev: (n, D) and (m, D) functionals; without dev rows the grid must have one C.
        truth, dev_truth: (n,) and (m,) classes in [0, `classes`); every class is in `truth`.

    Returns:
        Mean (D,), deviation (D,), weights (K, D) and bias (K,), float64, the scale included; and C -> dev accuracy.

    Raises:
        UserError: scikit-learn is missing, or several C and nothing to choose by.
    """
    from ser.metrics import ua

    if not len(dev) and len(config.grid) > 1:
        raise UserError(
            "the fold has no dev rows to choose C by", where="classical model", hint="give one: `grid: [0.1]`"
        )
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    deviation = np.where(deviation > 1e-8, deviation, 1.0)
    train, dev = (train - mean) / deviation, (dev - mean) / deviation
    tried: dict[float, float] = {}
    best: tuple[np.ndarray, np.ndarray] | None = None
    for c in sorted(config.grid):
        weights, bias = _fit(config, c, train, truth, seed)
        if not len(dev):
            return (mean, deviation, weights, bias), {}
        tried[c] = float(ua(dev_truth, (dev @ weights.T + bias).argmax(1), classes))
        if tried[c] == max(tried.values()) and sum(v == tried[c] for v in tried.values()) == 1:
            best = weights, bias
    assert best is not None
    scale = calibrate(dev @ best[0].T + best[1], dev_truth)
    return (mean, deviation, best[0] * scale, best[1] * scale), tried


def calibrate(decisions: np.ndarray, truth: np.ndarray) -> float:
    """The factor of `SCALES` with which softmax of (m, K) decision values has the least negative log likelihood."""
    losses = [nll(probabilities(decisions * scale), truth) for scale in SCALES]
    return float(SCALES[int(np.argmin(losses))])


def _fit(
    config: ClassicalConfig, c: float, train: np.ndarray, truth: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, D) and bias (K,) of one scikit-learn fit on standardised functionals."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC
    except ImportError:
        raise UserError(
            "classical models need scikit-learn", hint="pip install 'ser-distill[train]'"
        ) from None
    balance = "balanced" if config.class_weights == "balanced" else None
    machine: Any
    if config.classifier == "svm":
        machine = LinearSVC(C=c, class_weight=balance, dual=True, max_iter=2000, random_state=seed)  # pyright: ignore[reportArgumentType]  # no stubs: the type of its default
    else:
        machine = LogisticRegression(C=c, class_weight=balance, max_iter=2000)
    with warnings.catch_warnings():
        # A fit that stops at the limit is good enough to be compared on dev with the others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(train, truth)
    weights, bias = machine.coef_, machine.intercept_
    if len(weights) == 1:  # two classes: scikit-learn keeps one decision, positive for the second
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    return weights.astype(np.float64), bias.astype(np.float64)


def functionals_spec(setting: Setting, name: str) -> TargetSpec:
    """What stored functionals are: one frame an utterance, of the clean view whatever view is asked for.

    The crop of long audio belongs to the clean view too, so it is part of what they are.
    """
    from ser.features.functionals import SIZES

    config = setting.recipe.features[name]
    fields = {
        "kind": config.kind,
        "options": config.options,
        "version": FEATURE_VERSION,
        "crop": setting.policy.to_dict()["crop"],
    }
    output = Output(name, "frame", (SIZES[config.kind],), config.dtype)
    return TargetSpec(name, (output,), fields, machine(), view_invariant=True)
