"""One global step: forward and backward over this rank's slots, and the update that all ranks agree on."""

import random
from dataclasses import dataclass

import numpy as np
import torch

from ser.build import Ingredients
from ser.distributed import World, gather_objects, sum_ranks
from ser.engine import Engine
from ser.inputs import complete
from shards.law import mix64
from shards.loader import Batch


@dataclass
class StepResult:
    """What one global step gave on this rank.

    Attributes:
        moved: False when the step was skipped.
        bad: Keys of this rank's slots whose loss or gradient was not finite.
        shares: This rank's share of each row-wise term; the sum over ranks is the term's value.
        whole: Terms over the whole step (CCC), equal on every rank.
    """

    moved: bool
    bad: list[str]
    shares: dict[str, torch.Tensor]
    whole: dict[str, torch.Tensor]

    def values(self, world: World) -> dict[str, float]:
        """Value of every term over the global step (every rank calls)."""
        total: dict[str, float] = {}
        for rank in gather_objects({name: float(value) for name, value in self.shares.items()}, world):
            for name, value in rank.items():
                total[name] = total.get(name, 0.0) + value
        return total | {name: float(value) for name, value in self.whole.items()}


def train_step(x: Ingredients, engine: Engine, step: int, slots: list[Batch], factor: float) -> StepResult:
    """Forward and backward over this rank's slots of one global step, then the agreed update.

    CCC needs the moments of the whole step before any slot can be back-propagated: with one slot a rank the moments
    of the kept forward are reduced; with more, a pass without gradients under the same seeds goes first.
    """
    objective, world = x.objective, engine.world
    totals = objective.totals(x.plan.step(step))
    scale = world.size * engine.accumulation
    numbers = range(world.rank, x.config.slots, world.size)
    ready = [complete(batch.to(world.device), x.model) for batch in slots]
    moments: dict[str, torch.Tensor] = {}
    if objective.step_ccc and len(ready) > 1:
        with torch.no_grad():
            for slot, batch in zip(numbers, ready):
                seed_everything(x.seed, step, slot)
                _add_moments(moments, objective, engine.engine(batch), batch)
        moments = {name: sum_ranks(value, world) for name, value in moments.items()}

    shares: dict[str, torch.Tensor] = {}
    moved = True
    for i, (slot, batch) in enumerate(zip(numbers, ready)):
        seed_everything(x.seed, step, slot)
        output = engine.engine(batch)
        if objective.step_ccc and len(ready) == 1:
            _add_moments(moments, objective, output, batch)
            moments = {name: sum_ranks(value, world) for name, value in moments.items()}
        loss, parts = objective.slot_loss(output, batch, totals, scale, objective.with_memory(moments))
        for name, value in parts.items():
            shares[name] = shares[name] + value if name in shares else value
        engine.backward(loss)
        moved = engine.micro_step(factor, last=i == len(ready) - 1)
    if moved:
        objective.remember(moments)
    bad = [] if moved else [key for i in engine.bad_slots for key in slots[i].keys]
    return StepResult(moved, bad, shares, objective.ccc_value(moments))


def _add_moments(moments: dict, objective, output, batch: Batch) -> None:
    value = objective.moments(output, batch)
    for name in objective.step_ccc:
        moments[name] = moments.get(name, 0.0) + value


def seed_everything(seed: int, step: int, slot: int) -> None:
    """Seed python, numpy and torch from (seed, step, slot), so that no generator state is ever stored."""
    words = np.array([seed, step + 1, slot], dtype=np.uint64)
    value = int(mix64(mix64(mix64(words[:1]) + words[1:2]) + words[2:])[0])
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.manual_seed(value & 0x7FFFFFFFFFFFFFFF)
