"""Metrics against library judges (scikit-learn, torchmetrics, scipy) and against their own recombination."""

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn import metrics as judge

from ser import metrics, pooled


def answers(seed: int, n: int = 200, classes: int = 5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < 0.5, truth, rng.integers(0, classes, n))
    return truth, predicted


@pytest.mark.parametrize("seed", range(5))
def test_categorical_metrics_agree_with_sklearn_and_torchmetrics(seed):
    truth, predicted = answers(seed, classes=4)
    assert metrics.ua(truth, predicted) == pytest.approx(
        judge.balanced_accuracy_score(truth, predicted), abs=1e-12
    )
    assert metrics.wa(truth, predicted) == pytest.approx(judge.accuracy_score(truth, predicted), abs=1e-12)
    weighted = judge.recall_score(truth, predicted, average="weighted")
    assert metrics.wa(truth, predicted) == pytest.approx(weighted, abs=1e-12)
    f1 = judge.f1_score(truth, predicted, average="macro")
    assert metrics.macro_f1(truth, predicted) == pytest.approx(f1, abs=1e-12)
    assert (metrics.confusion(truth, predicted, 4) == judge.confusion_matrix(truth, predicted)).all()
    recall = torchmetrics.classification.MulticlassRecall(4, average="macro")
    assert metrics.ua(truth, predicted) == pytest.approx(
        float(recall(torch.tensor(predicted), torch.tensor(truth))), abs=1e-6
    )


def test_absent_classes_and_unknown_truths_do_not_count():
    truth, predicted = np.array([0, 0, 2, -1, -1]), np.array([0, 1, 2, 0, 3])
    assert metrics.ua(truth, predicted, classes=6) == pytest.approx(0.75)
    assert metrics.wa(truth, predicted, classes=6) == pytest.approx(2 / 3)
    f1 = judge.f1_score(truth[:3], predicted[:3], average="macro")
    assert metrics.macro_f1(truth, predicted, classes=6) == pytest.approx(f1)
    nothing = np.full(3, -1)
    for function in (metrics.ua, metrics.wa, metrics.macro_f1):
        assert np.isnan(function(nothing, np.zeros(3, int), classes=2))
    with pytest.raises(ValueError):
        metrics.ua(truth, np.full(5, 9), classes=6)


@pytest.mark.parametrize("shift", [0.0, 5.0, 1e6])
def test_ccc_agrees_with_torchmetrics_and_the_formula(shift):
    rng = np.random.default_rng(3)
    x = rng.normal(size=300)
    y = 0.6 * x + 0.3 * rng.normal(size=300) + 0.2
    value = metrics.ccc(x + shift, y + shift)
    r = scipy_stats.pearsonr(x, y).statistic
    formula = 2 * r * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert value == pytest.approx(formula, rel=1e-8)
    if shift < 10:
        # torchmetrics takes sample variances; with n = 300 that is all the difference there is.
        theirs = torchmetrics.functional.concordance_corrcoef(torch.tensor(y), torch.tensor(x))
        assert value == pytest.approx(float(theirs), abs=2e-3)


def test_ccc_masks_missing_ratings_and_names_the_degenerate_case():
    x, y = np.array([0.1, np.nan, 0.7, 0.4]), np.array([0.2, 9.0, 0.6, 0.5])
    keep = [0, 2, 3]
    assert metrics.ccc(x, y) == pytest.approx(metrics.ccc(x[keep], y[keep]))
    assert metrics.ccc_reason(x, y) is None
    constant = np.full(4, 0.1)
    assert np.isnan(metrics.ccc(constant, y)) and "constant" in metrics.ccc_reason(constant, y)
    assert np.isnan(metrics.ccc(np.full(4, np.nan), y)) and "0 rated" in metrics.ccc_reason(
        np.full(4, np.nan), y
    )
    assert metrics.ccc(x, constant) == pytest.approx(0.0, abs=1e-15)
    assert metrics.ccc(x, x) == pytest.approx(1.0)
    with pytest.raises(ValueError):
        metrics.ccc(x, np.full(4, np.nan))


def test_calibration_agrees_with_torchmetrics_and_sklearn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 4)) * 2
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in p])
    theirs = torchmetrics.functional.classification.multiclass_calibration_error(
        torch.tensor(p), torch.tensor(truth), num_classes=4, n_bins=15
    )
    assert metrics.ece(p, truth) == pytest.approx(float(theirs), abs=1e-6)
    assert metrics.nll(p, truth) == pytest.approx(judge.log_loss(truth, p), rel=1e-9)
    assert metrics.brier(p, truth) == pytest.approx(((p - np.eye(4)[truth]) ** 2).sum() / 400)
    assert metrics.entropy(p) == pytest.approx(scipy_stats.entropy(p, axis=-1))
    assert metrics.entropy(np.eye(3)) == pytest.approx(np.zeros(3))
    masked = np.where(np.arange(400) < 100, -1, truth)
    assert metrics.ece(p, masked) == pytest.approx(metrics.ece(p[100:], truth[100:]))
    assert metrics.brier(p, np.eye(4)[truth]) == pytest.approx(metrics.brier(p, truth))
    assert np.isnan(metrics.nll(p, np.full(400, -1)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from(["ua", "wa", "macro_f1", "ccc", "mean"]))
def test_statistics_of_speakers_add_up_to_the_pooled_metric(seed, count, name):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, count, 80)
    metric = pooled.METRICS[name]
    if name in ("ccc", "mean"):
        truth, predicted = rng.random(80), rng.random(80)
        whole = metrics.ccc(truth, predicted) if name == "ccc" else predicted.mean()
    else:
        truth, predicted = answers(seed, 80)
        whole = getattr(metrics, name)(truth, predicted)
    stats = metric.statistics(truth, predicted, groups, 5, count)
    assert float(metric.value(stats.sum(0))) == pytest.approx(whole, abs=1e-10)
    assert metric.weights(stats).sum() == pytest.approx(1.0)


def test_vectorised_forms_equal_the_loop():
    rng = np.random.default_rng(1)
    matrices = rng.integers(0, 5, size=(3, 7, 4, 4))
    for form in (metrics.ua_of, metrics.wa_of, metrics.macro_f1_of):
        values = form(matrices)
        assert values.shape == (3, 7)
        assert values[2, 5] == pytest.approx(float(form(matrices[2, 5])), nan_ok=True)


def test_several_dimensions_are_averaged():
    rng = np.random.default_rng(1)
    truth, predicted = rng.random((50, 3)), rng.random((50, 3))
    truth[:10, 2] = np.nan
    metric = pooled.METRICS["ccc"]
    stats = metric.statistics(truth, predicted, np.arange(50) % 5, 0, 5)
    each = [metrics.ccc(truth[:, d], predicted[:, d]) for d in range(3)]
    assert float(metric.value(stats.sum(0))) == pytest.approx(np.mean(each))
