"""ser.score: what has no answer counts against the model, in the score that chooses checkpoints and in the report alike."""

import numpy as np
import pytest

from ser.infer import Answers
from ser.protocol import Labels
from ser.results import System
from ser.score import score, settle
from ser.scoring import Truth, values
from ser.sweep import ON_THE_WAY
from shards.targets import NO_INPUT, PRESENT, QUARANTINED

N, K = 60, 3


@pytest.fixture
def made() -> tuple[Labels, Answers]:
    rng = np.random.default_rng(0)
    classes = rng.integers(-1, K, N)
    dimensions = rng.uniform(0, 1, (N, 3)).astype(np.float32)
    dimensions[::7] = np.nan
    scope = np.ones(N, bool)
    labels = Labels(classes=classes, soft=None, dimensions=dimensions, names=("a", "b", "c"), scope=scope)
    logits = rng.normal(size=(N, K)).astype(np.float32)
    heard = np.nan_to_num(dimensions, nan=0.3) + rng.normal(0, 0.1, (N, 3)).astype(np.float32)
    state = np.full(N, PRESENT, np.uint8)
    return labels, Answers(np.arange(N), logits, heard.astype(np.float32), None, state, [])


def silenced(answers: Answers, rows: np.ndarray, value: float) -> Answers:
    """The same answers with none for some rows; what stands there instead must not matter."""
    logits, dimensions, state = answers.logits.copy(), answers.dimensions.copy(), answers.state.copy()
    logits[rows], dimensions[rows] = value, value
    state[rows] = np.where(np.arange(len(rows)) % 2, NO_INPUT, QUARANTINED)
    return Answers(answers.rows, logits, dimensions, None, state, [])


def test_silence_is_uniform_wrong_and_the_middle_of_the_scale(made):
    labels, answers = made
    rows = np.flatnonzero((labels.classes == 0) & np.isfinite(labels.dimensions[:, 0]))[:6]
    assert len(rows) == 6
    quiet = silenced(answers, rows, np.nan)
    p, decided, dimensions = settle(quiet.logits, quiet.dimensions, quiet.state)
    np.testing.assert_array_equal(p[rows], np.full((6, K), 1 / K))
    np.testing.assert_array_equal(dimensions[rows], np.full((6, 3), 0.5))
    assert (decided[rows] == -1).all() and np.isfinite(p).all()

    # By hand: uniform rows, and a class that cannot be right (the first class is that of a uniform row's argmax).
    known = labels.classes >= 0
    wanted = np.exp(answers.logits.astype(np.float64))
    wanted /= wanted.sum(1, keepdims=True)
    wanted[rows] = 1 / K
    right = wanted.argmax(1) == labels.classes
    right[rows] = False
    found = score(quiet, labels)
    assert found["wa"] == pytest.approx(right[known].mean())
    assert found["nll"] == pytest.approx(-np.log(wanted[known, labels.classes[known]]).mean())
    dims = answers.dimensions[:, 0].astype(np.float64).copy()
    dims[rows] = 0.5
    x, y = labels.dimensions[:, 0].astype(np.float64), dims
    x, y = x[np.isfinite(x)], y[np.isfinite(labels.dimensions[:, 0])]
    ccc = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert found["ccc_valence"] == pytest.approx(ccc, abs=1e-6)


def test_silence_never_helps_and_what_stands_in_its_place_does_not_matter(made):
    labels, answers = made
    wrong = np.flatnonzero((labels.classes >= 0) & (answers.logits.argmax(1) != labels.classes))
    right = np.flatnonzero((labels.classes >= 0) & (answers.logits.argmax(1) == labels.classes))
    whole = score(answers, labels)
    assert score(silenced(answers, wrong, 9.0), labels)["ua"] == whole["ua"]
    assert score(silenced(answers, right, 9.0), labels)["ua"] == 0
    one, two = (score(silenced(answers, right[:5], value), labels) for value in (9.0, np.nan))
    assert one == two and one["ua"] < whole["ua"]


def test_training_and_report_give_the_same_numbers(made):
    labels, answers = made
    quiet = silenced(answers, np.arange(0, N, 4), np.nan)
    p, decided, dimensions = settle(quiet.logits[None], quiet.dimensions[None], quiet.state[None])
    system = System(np.arange(N), np.zeros(N, np.int64), p, decided, dimensions, quiet.state[None])
    report = values(Truth.of(labels, np.arange(N)), system)
    for name, value in score(quiet, labels).items():
        assert value == pytest.approx(float(report[name][0]), abs=1e-6), name


def test_what_a_sweep_prunes_steps_by_is_known_at_every_evaluation(made):
    labels, answers = made
    assert set(ON_THE_WAY) <= set(score(answers, labels))
