"""Targets from a live teacher: asked while the student trains, instead of read from side-shards.

Guarantees: the same interface and, in evaluation mode, the same answers as the stored targets, within the tolerance of
another batch; the student hears exactly the view that the teacher answers.

Gives up: every epoch and every worker asks anew, which is what stored targets save; loader processes (the teacher lives
in the training process).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ser.inputs import complete, needs_of
from ser.models import SERModel
from shards.batch import load_slot
from shards.dataset import Dataset
from shards.law import hash64
from shards.slots import Slot
from shards.targets import NO_INPUT, PRESENT, QUARANTINED, TargetSpec, TargetStore
from shards.views import ViewPolicy

HAS_TEXT = 8


class OnlineTargets:
    """What a teacher says of (row, view), computed when asked.

    Args:
        model: The teacher.
        dataset: Where the rows lie.
        policy: The run's views.
        features: Stored features that the teacher reads.
        spec: What its stored targets would be.
        train_mode: LEGACY: leave dropout on, as some released code does; drawn from `seed`, rows and views.
        seed: For `train_mode`.
    """

    def __init__(
        self, model: SERModel, dataset: Dataset, policy: ViewPolicy, features: Mapping[str, TargetStore], spec: TargetSpec,
        train_mode: bool = False, seed: int = 0,
    ):  # fmt: skip
        self.model = model.train(train_mode).requires_grad_(False)
        self.dataset, self.policy, self.spec, self.root = dataset, policy, spec, f"online/{spec.teacher}"
        self.needs = needs_of(model, features)
        self.train_mode, self.seed = train_mode, seed
        self.unreadable: set[int] = set()
        self.passes = 0

    def state(self, rows: np.ndarray, views: Any = 0) -> np.ndarray:
        """As of stored targets: a text teacher has no input where there is no text."""
        rows = np.asarray(rows, np.int64)
        state = np.full(len(rows), PRESENT, np.uint8)
        if self.model.inputs == {"text"}:
            state[np.asarray(self.dataset.bits[rows]) & HAS_TEXT == 0] = NO_INPUT
        if self.unreadable:
            state[np.isin(rows, list(self.unreadable))] = QUARANTINED
        return state

    def read(self, rows: np.ndarray, views: Any = 0) -> dict[str, Any]:
        """Output name -> (B, *shape) float32; zeros where there is no answer."""
        rows = np.asarray(rows, np.int64)
        views = np.broadcast_to(np.asarray(views, np.int64), rows.shape)
        said = {o.name: np.zeros((len(rows), *o.shape), np.float32) for o in self.spec.outputs}
        # a model whose answer depends on padding hears equal lengths, as when targets are stored
        for part in self._parts(rows, views):
            batch = load_slot(self.dataset, Slot(rows[part], views[part]), self.needs, self.policy)
            self.unreadable |= set(rows[part][~batch.present.numpy()].tolist())
            with torch.inference_mode(), torch.random.fork_rng(devices=[]):
                if self.train_mode:
                    torch.manual_seed(
                        int(hash64(self.seed, self.dataset.key_hash[rows[part]]).sum()) & 0x7FFFFFFF
                    )
                output = self.model(complete(batch.to(self.model.device), self.model))
            self.passes += len(part)
            good = (batch.present & output.has_input.cpu()).numpy()
            for name, values in said.items():
                answered = getattr(output, name).float().cpu().numpy()
                values[part[good]] = answered[good]
        return said

    def _parts(self, rows: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
        every = np.arange(len(rows))
        if not self.model.needs_equal_lengths or not len(rows):
            return [every] if len(rows) else []
        from shards.views import view_samples

        lengths = view_samples(self.policy, self.dataset.key_hash[rows], views, self.dataset.samples[rows])
        return [every[lengths == length] for length in np.unique(lengths)]
