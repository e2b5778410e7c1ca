"""`mix` of a ccc term: 1 - (alpha CCC_v + beta CCC_a + (1 - alpha - beta) CCC_d) against numpy, value and gradient."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ser.loss import Objective, Supervision
from ser.models import ModelOutput
from ser.recipe import Term

MIX = {"valence": 0.5, "arousal": 0.2, "dominance": 0.3}


def concordance(y: np.ndarray, t: np.ndarray) -> float:
    """Lin's formula as papers print it: 2 rho sx sy / (sx^2 + sy^2 + (mx - my)^2)."""
    rho = np.corrcoef(y, t)[0, 1]
    return 2 * rho * y.std() * t.std() / (y.var() + t.var() + (y.mean() - t.mean()) ** 2)


class Rows(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.rows)


def parts(labels: np.ndarray, **term):
    """Objective, and answers with the batch they belong to."""
    n = len(labels)
    known = Supervision(np.full(n, -1), None, labels.astype(np.float32), np.ones(0, np.float32))
    said = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output = ModelOutput(None, said.requires_grad_(), torch.zeros(n, 1), torch.ones(n, dtype=torch.bool))
    batch = Rows(rows=np.arange(n), present=torch.ones(n, dtype=torch.bool))
    return Objective([Term(loss="ccc", **term)], known, {}), output, batch


LABELS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32).astype(np.float64)


def wanted(said: np.ndarray, mix: dict[str, float]) -> float:
    return 1 - sum(w * concordance(said[:, i], LABELS[:, i]) for i, w in enumerate(mix.values()))


@pytest.mark.parametrize("mix", [MIX, None, {"valence": 1.0, "arousal": 0.0, "dominance": 0.0}])
def test_value_and_gradient_are_those_of_the_formula(mix):
    objective, output, batch = parts(LABELS, mix=mix)
    even = dict.fromkeys(MIX, 1 / 3)
    moments = {"ccc": objective.moments(output, batch)}
    assert objective.ccc_value(moments)["ccc"].item() == pytest.approx(
        wanted(output.dimensions.detach().numpy(), mix or even), abs=1e-12
    )
    loss, _ = objective.slot_loss(output, batch, {}, 1.0, moments)
    loss.backward()
    step = 1e-6
    for i, d in ((0, 0), (7, 1), (39, 2)):
        up, down = output.dimensions.detach().numpy().copy(), output.dimensions.detach().numpy().copy()
        up[i, d] += step
        down[i, d] -= step
        slope = (wanted(up, mix or even) - wanted(down, mix or even)) / (2 * step)
        assert output.dimensions.grad[i, d].item() == pytest.approx(slope, abs=1e-7)


def test_the_slot_version_mixes_alike():
    objective, output, batch = parts(LABELS, mix=MIX, scope="slot")
    value, _ = objective._term(objective.terms["ccc"], output, batch)
    assert value.item() == pytest.approx(wanted(output.dimensions.detach().numpy(), MIX), abs=1e-12)


def test_a_dimension_that_nobody_rated_leaves_the_mix_to_the_others():
    labels = LABELS.copy()
    labels[:, 2] = np.nan
    objective, output, batch = parts(labels, mix=MIX)
    said = output.dimensions.detach().numpy()
    value = objective.ccc_value({"ccc": objective.moments(output, batch)})["ccc"].item()
    rest = 1 - (5 * concordance(said[:, 0], LABELS[:, 0]) + 2 * concordance(said[:, 1], LABELS[:, 1])) / 7
    assert value == pytest.approx(rest, abs=1e-12)


def test_weights_must_sum_to_one_and_belong_to_a_ccc_term():
    with pytest.raises(ValueError, match=r"must sum to 1, not 0\.7"):
        Term(loss="ccc", mix={"valence": 0.5, "arousal": 0.2})
    with pytest.raises(ValueError, match="`mix` says nothing with loss cross_entropy"):
        Term(loss="cross_entropy", mix=MIX)
    with pytest.raises(ValueError, match="`projector` says nothing"):
        Term(loss="kl", teacher="t", projector="none")


def test_keys_that_came_later_are_written_only_where_they_say_something():
    assert "mix" not in Term(loss="ccc").model_dump() and "projector" not in Term(loss="ccc").model_dump()
    told = Term(loss="ccc", mix=MIX).model_dump(mode="json")
    assert told["mix"] == MIX and Term(**told).mix == MIX
