"""A model over utterances: targets, evaluation and prediction all go through here.

Every row is answered exactly once whatever the world and the batch: ranks take slots in turn, and ranks that have run
out repeat a slot whose answer is dropped, so that sharded models (ZeRO-3) meet in every forward. The model runs in
eval mode under `inference_mode`; its training mode is restored afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ser.distributed import World, gather_objects
from ser.inputs import complete, needs_of
from ser.models.base import ModelOutput, SERModel
from shards.dataset import Dataset
from shards.loader import Batch, Needs, load_slot
from shards.slots import Slot, sequential
from shards.targets import TargetStore
from shards.views import ViewPolicy, view_samples


@dataclass
class Answers:
    """A model's answers, one row each, in the order asked.

    Attributes:
        rows: (n,) int64 dataset rows.
        logits: (n, K) float32, or None.
        dimensions: (n, 3) float32, or None.
        embedding: (n, E) float32, or None when not asked for.
        state: (n,) uint8 as in `shards.targets`: 1 answered, 2 no input, 3 could not be read.
        quarantined: Key and reason of each utterance that could not be read.
    """

    rows: np.ndarray
    logits: np.ndarray | None
    dimensions: np.ndarray | None
    embedding: np.ndarray | None
    state: np.ndarray
    quarantined: list[tuple[str, str]]


@torch.inference_mode()
def answer(
    model: SERModel,
    dataset: Dataset,
    rows: np.ndarray,
    *,
    policy: ViewPolicy,
    view: int = 0,
    features: dict[str, TargetStore],
    slot_seconds: float,
    world: World,
    embedding: bool = False,
) -> Answers:
    """Run `model` over `rows` in one view.

    Args:
        model: On this rank's device; sharded models must be called by every rank.
        dataset: Where the rows lie.
        rows: Distinct rows, any order.
        policy: View policy; view 0 is clean.
        view: Which view.
        features: Stored features by name; what the model needs beyond them is computed from the audio.
        slot_seconds: Padded seconds a batch.
        world: This process's place; the result is complete on every rank.
        embedding: Keep embeddings too.

    Returns:
        Answers in the order of `rows`.
    """
    rows = np.asarray(rows, dtype=np.int64)
    needs = needs_of(model, features)
    slots = inference_slots(dataset, rows, policy, view, slot_seconds, model.needs_equal_lengths)
    was_training = model.training
    model.eval()
    try:
        parts = []
        for i in range(-(-len(slots) // world.size)):
            mine = i * world.size + world.rank
            slot = slots[min(mine, len(slots) - 1)]
            part = answer_slot(model, dataset, slot, needs, policy, world.device, embedding)
            if mine < len(slots):
                parts.append(part)
    finally:
        model.train(was_training)
    everyone = [part for rank in gather_objects(parts, world) for part in rank]
    return in_order(rows, everyone)


def inference_slots(
    dataset: Dataset,
    rows: np.ndarray,
    policy: ViewPolicy,
    view: int,
    slot_seconds: float,
    equal_lengths: bool,
) -> list[Slot]:
    """Slots that hold every row once, by length inside a shard; equal lengths only where padding would matter."""

    views = np.full(len(rows), view, dtype=np.int64)
    samples = view_samples(policy, dataset.key_hash[rows], views, dataset.samples[rows])
    return sequential(
        rows, samples, slot_seconds, view, shard=dataset.shard[rows], equal_lengths=equal_lengths
    )


def answer_slot(
    model: SERModel,
    dataset: Dataset,
    slot: Slot,
    needs: Needs,
    policy: ViewPolicy,
    device: torch.device,
    embedding: bool,
) -> Answers:
    """Answers for one slot."""
    batch = load_slot(dataset, slot, needs, policy)
    return answers_of(model(complete(batch.to(device), model)), batch, embedding)


def answers_of(output: ModelOutput, batch: Batch, embedding: bool) -> Answers:
    """A model's output for a batch as plain numbers; what is not finite, or could not be read, says so in its state."""
    state = np.where(output.has_input.cpu().numpy(), 1, 2).astype(np.uint8)
    state[~batch.present.cpu().numpy()] = 3

    def plain(tensor: torch.Tensor | None) -> np.ndarray | None:
        return None if tensor is None else tensor.float().cpu().numpy()

    logits, dimensions = plain(output.logits), plain(output.dimensions)
    vectors = plain(output.embedding) if embedding else None
    # A model that diverged has no answer, which counts against it; a number that is none must not travel on.
    finite = np.ones(len(batch), bool)
    for values in (logits, dimensions, vectors):
        if values is not None:
            finite &= np.isfinite(values).all(-1)
    broken = [
        (batch.keys[i], "the model's answer is not finite") for i in np.flatnonzero(~finite & (state == 1))
    ]
    state[~finite & (state == 1)] = 3
    for values in (logits, dimensions, vectors):
        if values is not None:
            values[~finite] = 0.0
    return Answers(np.asarray(batch.rows), logits, dimensions, vectors, state, [*batch.quarantined, *broken])


def in_order(rows: np.ndarray, parts: Sequence[Answers]) -> Answers:
    """Join slot answers and bring them into the order asked; a row missing or doubled is a bug of ours."""
    found = np.concatenate([part.rows for part in parts]) if parts else np.empty(0, np.int64)
    assert len(found) == len(rows), "every row is answered exactly once"
    position = np.argsort(found, kind="stable")[np.argsort(np.argsort(rows, kind="stable"), kind="stable")]
    assert (found[position] == rows).all()

    def join(name: str) -> np.ndarray | None:
        values = [getattr(part, name) for part in parts]
        return None if not values or values[0] is None else np.concatenate(values)[position]

    state = join("state")
    return Answers(
        rows,
        join("logits"),
        join("dimensions"),
        join("embedding"),
        state if state is not None else np.empty(0, np.uint8),
        [item for part in parts for item in part.quarantined],
    )
