"""Objectives against independent float64 implementations, autograd and properties."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.functional as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.spatial.distance import cosine as scipy_cosine

from ser import objectives as o

SEEDS = st.integers(0, 2**31 - 1)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def t64(array) -> torch.Tensor:
    return torch.as_tensor(np.asarray(array), dtype=torch.float64)


# ---- classes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_equals_numpy_and_torch(smoothing, weighted, soft):
    r = rng(1)
    logits, classes = r.normal(size=(7, 4)) * 3, r.integers(0, 4, 7)
    p = r.dirichlet(np.ones(4), 7) if soft else np.eye(4)[classes]
    w = np.array([0.5, 2.0, 1.0, 0.25]) if weighted else np.ones(4)
    q = (1 - smoothing) * p + smoothing / 4
    expected = -(w * q * (logits - special.logsumexp(logits, axis=1, keepdims=True))).sum(1)
    target = t64(p) if soft else torch.as_tensor(classes)
    ours = o.cross_entropy(t64(logits), target, t64(w) if weighted else None, smoothing)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    theirs = F.cross_entropy(t64(logits), target, t64(w), reduction="none", label_smoothing=smoothing)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12)


def test_missing_labels_cost_nothing_and_teach_nothing():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for target in (torch.tensor([1, -1, 2]), torch.tensor([[0, 1.0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])):
        loss = o.cross_entropy(logits, target, smoothing=0.1)
        assert loss.shape == (3,) and loss[1] == 0 and (loss[[0, 2]] > 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert (gradient[1] == 0).all() and (gradient[0] != 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=9), st.floats(0, 2))
def test_class_weights_have_mean_one_over_the_counted_rows(counts, power):
    w = o.class_weights(torch.tensor(counts), power).numpy()
    assert (w[np.array(counts) == 0] == 0).all()
    if sum(counts):
        assert np.isclose((w * counts).sum() / sum(counts), 1)
    if power == 1:
        present = [a * b for a, b in zip(w, counts) if b]
        assert np.allclose(present, present[:1] * len(present))


# ---- concordance


def numpy_ccc(y, t, w):
    keep = w > 0
    y, t, w = y[keep], t[keep], w[keep]
    my, mt = np.average(y, weights=w), np.average(t, weights=w)
    cov = np.average((y - my) * (t - mt), weights=w)
    return (
        2
        * cov
        / (np.average((y - my) ** 2, weights=w) + np.average((t - mt) ** 2, weights=w) + (my - mt) ** 2)
    )


def some_set(seed, rows=60):
    r = rng(seed)
    y, t = r.uniform(size=(rows, 3)), r.uniform(size=(rows, 3))
    t = 0.5 * t + 0.5 * y
    w = r.uniform(0.2, 2, size=(rows, 3)) * (r.uniform(size=(rows, 3)) > 0.3)
    t[w == 0] = np.nan
    return y, t, w


def test_ccc_equals_torchmetrics_and_the_textbook():
    y, t, _ = some_set(0, 50)
    t = np.nan_to_num(t, nan=0.4)
    ours = o.ccc_from_moments(o.moments(t64(y), t64(t), torch.ones(50))).numpy()
    for d in range(3):
        r = stats.pearsonr(y[:, d], t[:, d]).statistic
        sy, s_t = y[:, d].std(), t[:, d].std()
        textbook = 2 * r * sy * s_t / (sy**2 + s_t**2 + (y[:, d].mean() - t[:, d].mean()) ** 2)
        assert abs(ours[d] - textbook) < 1e-12
    # torchmetrics takes the sample variance: rescale its parts by n / (n - 1).
    theirs = tm.concordance_corrcoef(t64(y), t64(t)).numpy()
    assert np.abs(ours - theirs).max() < 2e-2


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 60), max_size=5))
def test_moments_are_additive_over_slots(seed, cuts):
    y, t, w = some_set(seed)
    borders = [0, *sorted(cuts), 60]
    parts = [o.moments(t64(y[a:b]), t64(t[a:b]), t64(w[a:b])) for a, b in itertools.pairwise(borders)]
    ccc = o.ccc_from_moments(sum(parts)).numpy()
    expected = [numpy_ccc(y[:, d], t[:, d], w[:, d]) for d in range(3)]
    np.testing.assert_allclose(ccc, expected, atol=1e-11)
    assert (np.abs(ccc) <= 1 + 1e-12).all()


@pytest.mark.parametrize("mix", [None, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)])
def test_two_pass_gradient_equals_autograd_of_the_whole_batch(mix):
    """Slots of unequal size through a network: two passes give what one graph over everything gives."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    x = torch.randn(60, 5, dtype=torch.float64)
    _, t, w = some_set(3)
    t, w = t64(t), t64(w)
    whole = o.ccc_slot(net(x), t, w, mix)
    expected = torch.autograd.grad(whole, list(net.parameters()))

    slots = [slice(0, 7), slice(7, 7), slice(7, 40), slice(40, 60)]
    with torch.no_grad():
        sums = sum(o.moments(net(x[s]), t[s], w[s]) for s in slots)
    net.zero_grad()
    for s in slots:
        y = net(x[s])
        surrogate = o.ccc_surrogate(y, o.ccc_gradient(sums, y, t[s], w[s], mix))
        assert surrogate.shape == (len(y),)
        surrogate.sum().backward()
    for p, g in zip(net.parameters(), expected):
        assert (p.grad - g).abs().max() < 1e-10
    assert abs(o.ccc_loss_from_moments(sums, mix) - whole) < 1e-12


def test_ccc_slot_passes_gradcheck():
    _, t, w = some_set(5, 9)
    y = torch.rand(9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: o.ccc_slot(y, t64(t), t64(w)), y)


@pytest.mark.parametrize(
    "y, w",
    [
        (torch.full((4, 3), 0.5), torch.ones(4)),
        (torch.rand(4, 3), torch.zeros(4)),
        (torch.rand(0, 3), torch.zeros(0)),
    ],
)
def test_undefined_ccc_is_zero_with_zero_gradient(y, w):
    y = y.double().requires_grad_()
    t = torch.full_like(y, 0.5).detach()
    sums = o.moments(y.detach(), t, w)
    assert (o.ccc_from_moments(sums) == 0).all()
    assert (o.ccc_gradient(sums, y, t, w) == 0).all()
    assert o.ccc_loss_from_moments(sums) == (1 if w.sum() > 0 else 0)
    (gradient,) = torch.autograd.grad(o.ccc_slot(y, t, w), y)
    assert gradient.isfinite().all() and (gradient == 0).all()


# ---- distillation


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_kl_equals_scipy(direction, temperature):
    r = rng(2)
    s, t = r.normal(size=(6, 4)) * 2, r.normal(size=(6, 4)) * 2
    ps, pt = special.softmax(s / temperature, axis=1), special.softmax(t / temperature, axis=1)
    expected = (
        stats.entropy(pt, ps, axis=1) if direction == "forward" else stats.entropy(ps, pt, axis=1)
    ) * temperature**2
    ours = o.kl(t64(s), t64(t), temperature, direction)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-10)
    mean = o.kl(t64(s), t64(t), temperature, direction, "mean")
    np.testing.assert_allclose(mean.numpy(), expected / 4, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:reduction")
def test_kl_reductions_are_those_of_torch():
    s, t = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    for ours, theirs in (("sum", "batchmean"), ("mean", "mean")):
        reference = F.kl_div(F.log_softmax(s / 5, -1), F.softmax(t / 5, -1), reduction=theirs) * 25
        assert torch.allclose(o.kl(s, t, 5.0, reduction=ours).mean(), reference, rtol=1e-12)


def test_gradchecks_and_constant_teachers():
    s = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    t = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for direction in ("forward", "reverse"):
        assert torch.autograd.gradcheck(lambda x, d=direction: o.kl(x, t.detach(), 2.0, d), s)
    for kind in ("cosine", "mse"):
        assert torch.autograd.gradcheck(lambda x, k=kind: o.embedding_distance(x, t.detach(), k), s)
    (o.kl(s, t).sum() + o.embedding_distance(s, t, "l1").sum()).backward()
    assert t.grad is None and s.grad is not None


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_embedding_distances(seed):
    r = rng(seed)
    s, t = r.normal(size=(5, 8)), r.normal(size=(5, 8))
    cosine = np.array([scipy_cosine(a, b) for a, b in zip(s, t)])
    np.testing.assert_allclose(o.embedding_distance(t64(s), t64(t)).numpy(), cosine, atol=1e-12)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (s, t)]
    mse = o.embedding_distance(t64(s), t64(t), "mse").numpy()
    np.testing.assert_allclose(mse, ((unit[0] - unit[1]) ** 2).sum(1), atol=1e-12)
    np.testing.assert_allclose(mse, 2 * cosine, atol=1e-12)
    np.testing.assert_allclose(
        o.embedding_distance(t64(s), t64(t), "l1").numpy(), np.abs(s - t).mean(1), atol=1e-12
    )


def test_zero_embeddings_have_finite_gradients():
    s = torch.zeros(2, 4, requires_grad=True)
    for kind in ("cosine", "mse", "l1"):
        (gradient,) = torch.autograd.grad(o.embedding_distance(s, torch.zeros(2, 4), kind).sum(), s)
        assert gradient.isfinite().all()


def bijoy_weights(s, teachers, tau, batch):
    """Equation 1 in plain numpy; `batch` as the released code: mean cosine over the batch."""
    cosine = np.stack([[1 - scipy_cosine(a, b) for a, b in zip(s, t)] for t in teachers])
    if batch:
        cosine = np.repeat(cosine.mean(1, keepdims=True), s.shape[0], 1)
    return special.softmax(cosine / tau, axis=0)


@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_cosine_weights_are_equation_one(scope):
    r = rng(4)
    s, t = r.normal(size=(6, 4)), r.normal(size=(3, 6, 4))
    ours = o.cosine_weights(t64(s).requires_grad_(), t64(t), 0.25, scope=scope)
    assert not ours.requires_grad
    np.testing.assert_allclose(ours.numpy(), bijoy_weights(s, t, 0.25, scope == "batch"), rtol=1e-10)


@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_absent_teachers_get_no_weight(scope):
    s, t = torch.randn(4, 3), torch.randn(2, 4, 3)
    present = torch.tensor([[True, True, False, False], [True, False, True, False]])
    t[~present] = torch.nan if scope == "utterance" else 0.0
    for w in (o.cosine_weights(s, t, 0.25, present, scope), o.uniform_weights(present)):
        assert (w[~present] == 0).all()
        assert torch.allclose(w.sum(0), torch.tensor([1.0, 1, 1, 0]))
    loss = o.multi_teacher_kl(s, t, o.cosine_weights(s, t, 0.25, present, scope), temperature=5.0)
    assert loss.shape == (4,) and loss.isfinite().all() and loss[3] == 0


def test_multi_teacher_kl_is_the_weighted_sum():
    s, t = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    w = o.cosine_weights(s, t)
    expected = sum(w[i] * o.kl(s, t[i], 5.0, "reverse") for i in range(3))
    assert torch.allclose(o.multi_teacher_kl(s, t, w, temperature=5.0, direction="reverse"), expected)


def test_product_of_experts_is_bayes_rule():
    """Two conditionally independent observations with known likelihoods: the product is the exact posterior."""
    r = rng(6)
    prior, like_a, like_b = r.dirichlet(np.ones(3)), r.dirichlet(np.ones(5), 3), r.dirichlet(np.ones(5), 3)
    a, b = 2, 4
    exact = prior * like_a[:, a] * like_b[:, b]
    single = [np.log(prior * like_a[:, a]), np.log(prior * like_b[:, b])]
    logits, log_prior = t64(single).unsqueeze(1), t64(np.log(prior))
    both = o.product_of_experts(logits, torch.ones(2, 1, dtype=torch.bool), log_prior).exp().numpy()
    np.testing.assert_allclose(both[0], exact / exact.sum(), rtol=1e-10)
    one = o.product_of_experts(logits, torch.tensor([[True], [False]]), log_prior).exp().numpy()
    np.testing.assert_allclose(one[0], np.exp(single[0]) / np.exp(single[0]).sum(), rtol=1e-10)
    none = o.product_of_experts(logits, torch.zeros(2, 1, dtype=torch.bool), log_prior).exp().numpy()
    np.testing.assert_allclose(none[0], prior, rtol=1e-10)
