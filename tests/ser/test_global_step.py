"""A global step is one batch: any split of its slots over workers and accumulation gives the same gradient."""

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ser.distributed import join, sum_ranks
from ser.loss import Objective, Supervision
from ser.models.base import ModelOutput
from ser.recipe import Term, TrainConfig
from ser.step import train_step
from shards.slots import Slot
from tests.processes import run_ranks

M, ROWS, FEATURES, CLASSES = 4, 26, 5, 3
TERMS = [
    Term(loss="cross_entropy", weight=1.0),
    Term(loss="ccc", weight=0.7),
    Term(loss="kl", weight=0.5, teacher="t", temperature=2.0),
    Term(loss="kl", weight=0.3, teacher="t", rows="unlabelled", direction="reverse"),
]
LAYOUTS = ((1, 4), (2, 2), (4, 1))


class Targets:
    """Targets in memory: some rows have none."""

    def __init__(self, rng: np.random.Generator):
        self.logits = rng.standard_normal((ROWS, CLASSES))
        self.present = rng.random(ROWS) < 0.7

    def state(self, rows, views=0):
        return self.present[rows].astype(np.uint8)


class Toy(nn.Module):
    inputs, attached = frozenset(), {}

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(FEATURES, 8)
        self.classes = nn.Linear(8, CLASSES)
        self.dimensions = nn.Linear(8, 3)

    def forward(self, batch) -> ModelOutput:
        hidden = torch.tanh(self.body(batch.x))
        ones = torch.ones(len(batch.x), dtype=torch.bool)
        return ModelOutput(self.classes(hidden), self.dimensions(hidden), hidden, ones)


class Slice(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "Slice":
        return self


def problem(dtype: torch.dtype):
    """Model, objective, slots (one of them empty, all of different sizes) and their batches; one row is quarantined."""
    rng = np.random.default_rng(5)
    torch.manual_seed(0)
    model = Toy().to(dtype)
    classes = rng.integers(-1, CLASSES, ROWS)
    dimensions = rng.random((ROWS, 3)).astype(np.float32)
    dimensions[rng.random((ROWS, 3)) < 0.3] = np.nan
    weights = np.array([0.5, 1.0, 1.7], np.float32)
    targets = Targets(rng)
    objective = Objective(TERMS, Supervision(classes, None, dimensions, weights), {"t": targets})
    borders = [0, 9, 9, 21, ROWS]
    slots = [Slot(np.arange(a, b), np.zeros(b - a, np.int64)) for a, b in itertools.pairwise(borders)]
    x = torch.from_numpy(rng.standard_normal((ROWS, FEATURES))).to(dtype)
    present = torch.ones(ROWS, dtype=torch.bool)
    present[3] = False

    def batch(slot: Slot) -> Slice:
        rows = torch.from_numpy(slot.rows)
        return Slice(
            rows=slot.rows, views=slot.views, x=x[rows], present=present[rows], targets={
                "t": {"logits": torch.from_numpy(targets.logits[slot.rows]).to(dtype)}
            }, target_present={"t": torch.from_numpy(targets.present[slot.rows])},
        )  # fmt: skip

    return model, objective, slots, [batch(slot) for slot in slots], batch


def big_batch_gradient(dtype: torch.dtype) -> list[torch.Tensor]:
    """The same loss over one batch of all rows, written out plainly."""
    model, objective, _, _, batch = problem(dtype)
    whole = batch(Slot(np.arange(ROWS), np.zeros(ROWS, np.int64)))
    out = model(whole)
    labels = objective.supervision
    keep = whole.present.numpy()
    # N counts the quarantined row, the numerator does not
    w = np.where(labels.classes >= 0, labels.class_weights[labels.classes], 0.0)
    ce = nn.functional.cross_entropy(
        out.logits.double(), torch.from_numpy(np.maximum(labels.classes, 0)), reduction="none"
    )
    loss = (ce * torch.from_numpy(w * keep)).sum() / w.sum()
    t = whole.targets["t"]["logits"].double()
    p, q = (t / 2).log_softmax(-1), (out.logits.double() / 2).log_softmax(-1)
    has = whole.target_present["t"].numpy()
    loss = loss + 0.5 * 4 * ((p.exp() * (p - q)).sum(-1) * torch.from_numpy(has & keep)).sum() / has.sum()
    bare = has & (labels.classes < 0) & ~np.isfinite(labels.dimensions).any(1)
    assert bare.any()
    p, q = t.log_softmax(-1), out.logits.double().log_softmax(-1)
    loss = loss + 0.3 * ((q.exp() * (q - p)).sum(-1) * torch.from_numpy(bare & keep)).sum() / bare.sum()
    for d in range(3):
        good = torch.from_numpy(np.isfinite(labels.dimensions[:, d]) & keep)
        y, z = out.dimensions[good, d].double(), torch.from_numpy(labels.dimensions[:, d])[good].double()
        covariance = ((y - y.mean()) * (z - z.mean())).mean()
        ccc = 2 * covariance / (y.var(correction=0) + z.var(correction=0) + (y.mean() - z.mean()) ** 2)
        loss = loss + 0.7 * (1 - ccc) / 3
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def plain_gradient() -> list[torch.Tensor]:
    """This rank's share through torch.distributed alone, in float64, averaged as DeepSpeed does."""
    world = join()
    model, objective, slots, batches, _ = problem(torch.float64)
    accumulation = M // world.size
    totals, mine = objective.totals(slots), range(world.rank, M, world.size)
    moments = {}
    with torch.no_grad():
        for i in mine:
            value = objective.moments(model(batches[i]), batches[i])
            moments["ccc"] = moments.get("ccc", 0) + value
    moments = {name: sum_ranks(value, world) for name, value in moments.items()}
    for i in mine:
        loss, _ = objective.slot_loss(
            model(batches[i]), batches[i], totals, world.size * accumulation, moments
        )
        (loss / accumulation).backward()
    return [(sum_ranks(p.grad.clone(), world) / world.size).numpy() for p in model.parameters()]


def engine_gradients() -> dict[int, list[torch.Tensor]]:
    """Full gradients that the training's own step leaves in the DeepSpeed engine, per ZeRO stage."""
    from deepspeed.utils import safe_get_full_grad

    from ser.engine import Engine

    world = join()
    found = {}
    for stage in (0, 1, 2, 3):
        model, objective, slots, batches, _ = problem(torch.float32)
        config = TrainConfig(steps=1, slots=M, clip=0.0, zero_stage=stage)
        engine = Engine(model, config, world)

        def look_before_the_update(rate, last, engine=engine, stage=stage, step=engine.micro_step):
            if last:
                found[stage] = [safe_get_full_grad(p).numpy().copy() for p in engine.module.parameters()]
            return step(rate, last)

        engine.micro_step = look_before_the_update
        plan = SimpleNamespace(step=lambda step, slots=slots: slots)
        x = SimpleNamespace(objective=objective, plan=plan, config=config, model=model, seed=0)
        train_step(x, engine, 0, batches[world.rank :: world.size], 1.0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers,accumulation", LAYOUTS)
def test_plain_distributed_equals_one_batch(workers: int, accumulation: int):
    expected = big_batch_gradient(torch.float64)
    for gradient in run_ranks(plain_gradient, workers):
        for got, want in zip(gradient, expected):
            torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("workers,accumulation", LAYOUTS)
def test_engine_equals_one_batch_at_every_stage(workers: int, accumulation: int):
    expected = big_batch_gradient(torch.float64)
    for rank in run_ranks(engine_gradients, workers):
        assert set(rank) == {0, 1, 2, 3}
        for stage, gradient in rank.items():
            for got, want in zip(gradient, expected):
                error = (torch.from_numpy(got).double() - want).norm() / want.norm()
                assert error < 1e-6, (
                    f"stage {stage}, parameter of shape {got.shape}: relative error {error:.1e}"
                )


def test_no_valid_label_gives_zero():
    model, objective, slots, batches, _ = problem(torch.float64)
    objective.supervision.classes[:] = -1
    totals = objective.totals(slots)
    assert totals["cross_entropy"] == 0
    row_terms = {"cross_entropy": objective.row_terms["cross_entropy"]}
    only = copy.copy(objective)
    only.row_terms, only.step_ccc = row_terms, {}
    loss, _ = only.slot_loss(model(batches[0]), batches[0], totals, 4.0)
    loss.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_an_empty_slot_takes_part_without_a_label():
    model, objective, slots, batches, _ = problem(torch.float64)
    assert len(batches[1]) == 0
    loss, _ = objective.slot_loss(model(batches[1]), batches[1], objective.totals(slots), 4.0, {})
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None for p in model.parameters())


def test_workers_that_do_not_divide_the_slots_are_refused(tmp_path: Path):
    with pytest.raises(Exception, match=r"must divide slots 4; these do: \[1, 2, 4\]"):
        TrainConfig(steps=1, slots=4, workers=3)
