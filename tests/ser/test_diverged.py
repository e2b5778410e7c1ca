"""A model that diverges has no answers: they count against it, and no number that is none travels on."""

import numpy as np
import pytest
import torch

from ser.infer import answer
from ser.job import Job
from ser.loss import Objective, Supervision
from ser.objectives import moments
from ser.recipe import Recipe, Term
from ser.score import score
from ser.train import train
from shards.errors import UserError
from tests import tiny
from tests.ser.test_infer import model_of, setting_of
from tests.ser.worlds import ALONE


def test_an_answer_that_is_no_number_is_no_answer(tiny_dataset):
    setting, model = setting_of(tiny_dataset), model_of("conv")
    said = {}
    for broken in (False, True):
        if broken:
            next(p for name, p in model.named_parameters() if p.shape == (4,)).data[:] = torch.nan
        said[broken] = answer(
            model,
            setting.dataset,
            np.arange(20),
            policy=setting.policy,
            features={},
            slot_seconds=10,
            world=ALONE,
        )
    assert (said[False].state == 1).all() and not said[False].quarantined
    assert (said[True].state == 3).all() and np.isfinite(said[True].logits).all()
    assert {key for key, _ in said[True].quarantined} == set(setting.dataset.keys(np.arange(20)))
    assert all("not finite" in reason for _, reason in said[True].quarantined)
    # every one of them is a wrong answer, and every dimension the middle of the scale
    values = score(said[True], setting.labels)
    assert (
        values["ua"] == 0
        and values["ccc"] == pytest.approx(0, abs=1e-12)
        and np.isfinite(list(values.values())).all()
    )


def test_a_diverging_training_ends_with_a_message(tiny_dataset, tmp_path):
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}, {"loss": "ccc"}],
        "train": tiny.training(40, evaluate_every=1, optimizer={"lr": 1e30}),
    }  # fmt: skip
    recipe = Recipe.model_validate(tiny.recipe_values(tmp_path, tiny_dataset, {"m": model}))
    with pytest.raises(UserError, match="steps in a row had a non-finite"):
        train(recipe, Job("session-ses0", "m", 0))


def test_unrated_dimensions_do_not_weaken_a_ccc_term():
    """One rated dimension of three: loss and gradient are those of that dimension alone."""
    rng = np.random.default_rng(0)
    rated = np.full((30, 3), np.nan, np.float32)
    rated[:, 1] = rng.random(30)
    objective = Objective([Term(loss="ccc")], Supervision(np.full(30, -1), None, rated, np.ones(4)), {})
    y = torch.rand(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = moments(y, torch.from_numpy(rated), torch.isfinite(torch.from_numpy(rated)).double())
    a, b = y[:, 1].numpy(), rated[:, 1].astype(float)
    ccc = 2 * np.cov(a, b, bias=True)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    assert objective.ccc_value({"ccc": sums})["ccc"].item() == pytest.approx(1 - ccc, rel=1e-12)
