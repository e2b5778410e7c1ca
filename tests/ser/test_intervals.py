"""Guarantee 10: exact swap test, its inversion, jackknife interval, coverage by simulation."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from ser import intervals, metrics

CLASSES = 4


def experiment(rng, speakers: int, rows: int = 24, seeds: int = 1, quality=(0.6, 0.6), spread: float = 0.12):
    """Two systems whose recall varies from speaker to speaker; balanced classes, so the true UA is the mean recall.

    Returns truth (n,), predictions (S, n) twice, speakers (n,).
    """
    truth = np.tile(np.arange(rows) % CLASSES, speakers)
    who = np.repeat(np.arange(speakers), rows)
    common = rng.normal(0, spread, speakers)
    out = []
    for mean in quality:
        recall = np.clip(mean + common + rng.normal(0, spread, speakers), 0.02, 0.98)
        right = rng.random((seeds, len(truth))) < recall[who]
        wrong = (truth + rng.integers(1, CLASSES, (seeds, len(truth)))) % CLASSES
        out.append(np.where(right, truth, wrong))
    return truth, out[0], out[1], who


def uneven(rng, speakers: int, rows: int = 120, seeds: int = 2):
    """Unbalanced rows a speaker and a class."""
    who = np.concatenate([np.arange(speakers), rng.integers(0, speakers, rows - speakers)])
    truth = rng.choice(CLASSES, p=[0.5, 0.3, 0.15, 0.05], size=rows)
    guess = [
        np.where(rng.random((seeds, rows)) < q, truth, rng.integers(0, CLASSES, (seeds, rows)))
        for q in (0.5, 0.3)
    ]
    return truth, guess[0], guess[1], who


def score(name, truth, predicted):
    if name == "ua":
        return balanced_accuracy_score(truth, predicted)
    if name == "macro_f1":
        return f1_score(truth, predicted, average="macro", zero_division=0)
    return float((truth == predicted).mean())


@pytest.mark.parametrize("name", ["ua", "wa", "macro_f1"])
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_exact_test_equals_brute_force_on_five_speakers(name):
    truth, a, b, who = uneven(np.random.default_rng(1), 5)
    values = []
    for kept in itertools.product([True, False], repeat=5):
        keep = np.array(kept)[who]
        gaps = [
            score(name, truth, np.where(keep, x, y)) - score(name, truth, np.where(keep, y, x))
            for x, y in zip(a, b, strict=True)
        ]
        values.append(np.mean(gaps))
    result = intervals.compare(name, truth, a, b, who)
    assert result.difference == pytest.approx(values[0])
    assert result.p == pytest.approx(np.mean(np.abs(values) >= abs(values[0]) - 1e-12))
    assert result.exact and result.assignments == 32
    assert result.low is None and "5 test speakers" in result.reason


def test_interval_is_the_set_of_shifts_that_the_test_keeps():
    """Brute force over a grid of shifts, from the docstring's definition, no closed form."""
    truth, a, b, who = uneven(np.random.default_rng(4), 9, rows=300, seeds=1)
    per_class = np.bincount(truth, minlength=CLASSES)
    d = np.zeros(9)
    w = np.zeros(9)
    for g in range(9):
        for k in range(CLASSES):
            rows = (who == g) & (truth == k)
            d[g] += ((a[0][rows] == k).sum() - (b[0][rows] == k).sum()) / per_class[k] / CLASSES
            w[g] += rows.sum() / per_class[k] / CLASSES
    signs = np.array(list(itertools.product([1, -1], repeat=9)))
    result = intervals.compare("ua", truth, a, b, who)
    assert result.difference == pytest.approx(d.sum())

    def p(delta):
        shifted = np.abs(signs @ (d - delta * w))
        return np.mean(shifted >= abs((d - delta * w).sum()) - 1e-12)

    assert result.p == pytest.approx(p(0.0))
    step = 1e-6
    assert p(result.low) > 0.05 >= p(result.low - step)
    assert p(result.high) > 0.05 >= p(result.high + step)
    for delta in np.linspace(result.low, result.high, 25):
        assert p(delta) > 0.05


@pytest.mark.parametrize("speakers", [9, 20])
@pytest.mark.parametrize("name", ["ua", "macro_f1"])
def test_exchange_mirrors_everything(speakers, name):
    truth, a, b, who = experiment(np.random.default_rng(2), speakers, seeds=2, quality=(0.65, 0.55))
    one = intervals.compare(name, truth, a, b, who, draws=4000)
    two = intervals.compare(name, truth, b, a, who, draws=4000)
    assert one.difference == pytest.approx(-two.difference)
    assert one.p == pytest.approx(two.p)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))
    assert one.low <= one.difference <= one.high
    assert one.exact == (speakers <= 16)


@pytest.mark.parametrize("speakers", [8, 12, 18])
def test_interval_excludes_zero_exactly_when_p_is_small(speakers):
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(30):
        truth, a, b, who = experiment(rng, speakers, rows=12, quality=(0.62, 0.55))
        for name in ("ua", "macro_f1"):
            result = intervals.compare(name, truth, a, b, who, draws=1999)
            assert (result.p <= 0.05) == (result.low > 0 or result.high < 0)
            outcomes.add(result.p <= 0.05)
    assert outcomes == {True, False}


def test_draws_approach_the_exact_test(monkeypatch):
    truth, a, b, who = experiment(np.random.default_rng(8), 12, quality=(0.62, 0.56))
    exact = intervals.compare("ua", truth, a, b, who)
    monkeypatch.setattr(intervals, "EXACT_SPEAKERS", 4)
    drawn = intervals.compare("ua", truth, a, b, who, draws=40_000, seed=3)
    again = intervals.compare("ua", truth, a, b, who, draws=40_000, seed=3)
    assert drawn == again and not drawn.exact
    assert drawn.p == pytest.approx(exact.p, abs=0.01)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.01)
    never = intervals.compare("ua", truth, truth, (truth + 1) % CLASSES, who, draws=999)
    assert never.p >= 1 / 1000  # +1 in both counts: never zero


@pytest.mark.parametrize("name", ["ua", "macro_f1"])
def test_null_p_values_are_uniform(name):
    rng = np.random.default_rng(11)
    ps = []
    for _ in range(400):
        truth, a, b, who = experiment(rng, 9, rows=80)  # many rows: few ties, which make a test conservative
        ps.append(intervals.compare(name, truth, a, b, who).p)
    ps = np.array(ps)
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        tolerance = 3 * np.sqrt(level * (1 - level) / 400)
        assert level - tolerance - 0.01 <= np.mean(ps <= level) <= level + tolerance


@pytest.mark.parametrize("speakers,name", [(8, "ua"), (10, "ua"), (12, "wa"), (24, "ua")])
def test_interval_of_a_difference_covers(speakers, name):
    rng = np.random.default_rng(speakers)
    true = 0.05
    hits = 0
    for _ in range(400):
        truth, a, b, who = experiment(rng, speakers, rows=16, seeds=2, quality=(0.6 + true, 0.6))
        result = intervals.compare(name, truth, a, b, who, draws=4095)
        hits += result.low <= true <= result.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize("speakers", [8, 12, 24])
def test_interval_of_one_system_covers(speakers):
    rng = np.random.default_rng(speakers)
    hits = 0
    for _ in range(400):
        truth, a, _, who = experiment(rng, speakers, seeds=3)
        result = intervals.interval("ua", truth, a, who)
        hits += result.low <= 0.6 <= result.high
    assert 0.92 <= hits / 400 <= 0.98


def test_jackknife_equals_leaving_speakers_out_by_hand():
    truth, a, _, who = uneven(np.random.default_rng(6), 10, rows=400)
    result = intervals.interval("macro_f1", truth, a, who, classes=CLASSES)
    left = [np.mean([metrics.macro_f1(truth[who != g], p[who != g]) for p in a]) for g in range(10)]
    error = np.sqrt(9 / 10 * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert result.value == pytest.approx(np.mean([metrics.macro_f1(truth, p) for p in a]))
    assert result.high - result.low == pytest.approx(2 * 2.262157 * error, rel=1e-5)
    assert result.seeds == 2 and result.speakers == 10 and result.missing_share == 0


def test_a_class_lost_in_a_resample_leaves_the_mean_and_is_counted():
    who = np.repeat(np.arange(8), 6)
    truth = np.tile([0, 1], 24)
    truth[:2] = 2  # only speaker 0 has class 2
    predicted = np.where(np.arange(48) % 5 == 0, 1 - np.minimum(truth, 1), truth)
    result = intervals.interval("ua", truth, predicted, who, classes=6)
    assert result.missing_share == pytest.approx(1 / 8)
    assert result.low is not None and result.low >= 0 and result.high <= 1


def test_too_few_speakers_and_rows_without_a_truth():
    truth, a, b, who = experiment(np.random.default_rng(0), 9)
    few = np.where(who >= 7, -1, truth)  # two speakers without a known truth do not count as speakers
    one, two = intervals.interval("ua", few, a, who), intervals.compare("ua", few, a, b, who)
    assert one.low is None and one.speakers == 7 and "fewer than 8" in one.reason
    assert two.high is None and two.speakers == 7 and 0 < two.p <= 1
    assert set(one.to_dict()) >= {"value", "low", "high", "reason"}


def test_seeds_are_averaged_first_and_unequal_numbers_are_allowed():
    rng = np.random.default_rng(9)
    truth, a, b, who = experiment(rng, 8, seeds=3, quality=(0.7, 0.5))
    result = intervals.compare("ua", truth, a, b[:2], who)
    mean = np.mean([metrics.ua(truth, p) for p in a]) - np.mean([metrics.ua(truth, p) for p in b[:2]])
    assert result.difference == pytest.approx(mean)
    assert intervals.compare("ua", truth, a, a, who).p == 1.0


def test_ccc_is_compared_too():
    rng = np.random.default_rng(3)
    who = np.repeat(np.arange(10), 20)
    truth = rng.random((200, 3))
    good, bad = truth + rng.normal(0, 0.1, (2, 200, 3)), truth + rng.normal(0, 0.4, (2, 200, 3))
    result = intervals.compare("ccc", truth, good, bad, who)
    assert result.p == pytest.approx(2 / 1024) and result.low > 0
    each = [np.mean([metrics.ccc(truth[:, d], p[:, d]) for d in range(3)]) for p in good]
    assert intervals.interval("ccc", truth, good, who).value == pytest.approx(np.mean(each))
    constant = intervals.interval("ccc", np.zeros(200), good[0, :, 0], who)
    assert constant.low is None and "undefined" in constant.reason


def test_fold_level_p():
    gaps = np.array([0.1, 0.2, 0.05, 0.15, 0.1])
    result = intervals.fold_test(gaps, np.zeros(5))
    assert result.p == result.smallest == 2 / 32 and result.exact
    mixed = np.array([0.1, -0.2, 0.05])
    signs = np.array(list(itertools.product([1, -1], repeat=3)))
    expected = np.mean(np.abs(signs @ mixed) >= abs(mixed.sum()) - 1e-12)
    assert intervals.fold_test(mixed, np.zeros(3)).p == pytest.approx(expected)
    many = intervals.fold_test(np.full(20, 0.1), np.zeros(20), draws=999)
    assert many.p == pytest.approx(1 / 1000) and not many.exact
