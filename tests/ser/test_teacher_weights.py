"""Teacher weights by certainty and agreement, and CCC with a memory, against float64 numpy and scipy, and gradcheck."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from ser import objectives

WEIGHTS = [objectives.uncertainty_weights, objectives.agreement_weights]


def drawn(seed: int, teachers: int = 3, rows: int = 6, classes: int = 4):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(teachers, rows, classes, generator=g, dtype=torch.float64)
    present = torch.rand(teachers, rows, generator=g) > 0.3
    present[:, 0] = True
    present[:, 1] = False
    logits[~present] = torch.nan
    return logits, present


def expected(function, logits, present, tau):
    out = np.zeros(present.shape)
    for b in range(present.shape[1]):
        here = np.flatnonzero(present[:, b])
        p = {i: softmax(logits[i, b]) for i in here}
        scores = []
        for i in here:
            if function is objectives.uncertainty_weights:
                scores.append(-entropy(p[i]) / math.log(logits.shape[2]) / tau)
            else:
                others = [p[j] for j in here if j != i]
                js = jensenshannon(p[i], np.mean(others, 0)) ** 2 if others else 0.0
                scores.append(-js / math.log(2) / tau)
        if len(here):
            out[here, b] = softmax(scores)
    return out


@pytest.mark.parametrize("function", WEIGHTS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), tau=st.sampled_from([0.1, 0.25, 1.0]))
def test_equal_to_scipy(function, seed, tau):
    logits, present = drawn(seed)
    mine = function(logits, present, tau)
    assert mine.isfinite().all()
    np.testing.assert_allclose(
        mine.numpy(), expected(function, logits.numpy(), present.numpy(), tau), atol=1e-9
    )
    np.testing.assert_allclose(mine.sum(0), present.any(0).double(), atol=1e-12)


def test_who_is_sure_and_who_stands_alone():
    sure, torn = torch.tensor([5.0, 0, 0, 0]), torch.zeros(4)
    everybody = torch.ones(2, 1, dtype=torch.bool)
    w = objectives.uncertainty_weights(torch.stack([sure, torn])[:, None], everybody)
    assert w[0, 0] > 0.9
    against = torch.tensor([0.0, 5, 0, 0])
    w = objectives.agreement_weights(
        torch.stack([sure, sure, against])[:, None], torch.ones(3, 1, dtype=torch.bool)
    )
    assert w[0, 0] == w[1, 0] > w[2, 0]


@pytest.mark.parametrize("function", WEIGHTS)
def test_the_weighted_divergence_has_its_gradient(function):
    logits, present = drawn(3)
    weights = function(logits, present)
    assert not weights.requires_grad
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    filled = logits.nan_to_num()
    assert torch.autograd.gradcheck(
        lambda s: objectives.multi_teacher_kl(s, filled, weights, temperature=2.0), student
    )


def ccc(y, t, w):
    mean_y, mean_t = np.average(y, weights=w), np.average(t, weights=w)
    cov = np.average((y - mean_y) * (t - mean_t), weights=w)
    return (
        2
        * cov
        / (
            np.average((y - mean_y) ** 2, weights=w)
            + np.average((t - mean_t) ** 2, weights=w)
            + (mean_y - mean_t) ** 2
        )
    )


def test_a_memory_is_the_ccc_over_older_rows_with_fainter_weights():
    rng, keep = np.random.default_rng(0), 0.7
    steps = [(rng.normal(0, 1, (5, 3)), rng.normal(0, 1, (5, 3))) for _ in range(4)]
    memory = None
    for y, t in steps[:-1]:
        memory = objectives.ccc_memory(
            memory, objectives.moments(torch.tensor(y), torch.tensor(t), torch.ones(5)), keep
        )
    y, t = (torch.tensor(x) for x in steps[-1])
    sums = objectives.moments(y, t, torch.ones(5)) + memory
    found = objectives.ccc_from_moments(sums)
    weights = np.repeat([keep**3, keep**2, keep, 1.0], 5)
    for d in range(3):
        every = [np.concatenate([s[k][:, d] for s in steps]) for k in (0, 1)]
        assert float(found[d]) == pytest.approx(ccc(*every, weights), abs=1e-12)


def test_the_gradient_with_a_memory_is_autograds():
    torch.manual_seed(0)
    memory = objectives.ccc_memory(
        None, objectives.moments(torch.randn(9, 3), torch.randn(9, 3), torch.ones(9)), 0.5
    )
    y, t, w = (
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 3).double(),
        torch.ones(5),
    )

    def loss(pred):
        return objectives.ccc_loss_from_moments(objectives.moments(pred, t, w) + memory)

    assert torch.autograd.gradcheck(loss, y)
    (own,) = torch.autograd.grad(loss(y), y)
    sums = objectives.moments(y.detach(), t, w) + memory
    torch.testing.assert_close(objectives.ccc_gradient(sums, y.detach(), t, w), own)


def test_nothing_remembered_is_the_step_alone():
    sums = objectives.moments(torch.randn(4, 3), torch.randn(4, 3), torch.ones(4))
    assert torch.equal(objectives.ccc_memory(None, sums, 0.0), torch.zeros_like(sums))
