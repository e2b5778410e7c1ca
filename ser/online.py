"""Targets from a live teacher: asked while the student trains, instead of read from side-shards.

Guarantees: the same interface and, in evaluation mode, the same answers as the stored targets, within the tolerance of
another batch; the student hears exactly the view that the teacher answers; no random state of the training is touched.

Gives up: every epoch and every worker asks anew, which is what stored targets save; loader processes (the teacher lives
in the training process); where a teacher cannot read an utterance, only the rank that asked knows it, so N of that step
(`ser.loss`) may differ by one between ranks.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ser import produce
from ser.inputs import complete, needs_of
from ser.job import Job, directory
from ser.models import SERModel, load
from ser.setting import Setting
from shards.batch import has_text, load_slot
from shards.dataset import Dataset
from shards.law import hash64, mix64
from shards.slots import Slot, cut
from shards.targets import NO_INPUT, PRESENT, QUARANTINED, TargetSpec, TargetStore
from shards.utterance import SAMPLE_RATE
from shards.views import ViewPolicy, view_samples


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Inside, torch (on the CPU), numpy and python draw from `seed`; afterwards they go on where they were."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def ask(setting: Setting, job: Job, seed: int = 0) -> "OnlineTargets":
    """The finished training `job` as an online source, as the recipe's `targets` say; `seed` is the student's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return OnlineTargets(
        load(directory(setting.recipe, job) / "model")[0].to(device), setting.dataset, setting.policy, produce.stores_read(setting, job),
        produce.teacher_spec(setting, job), setting.recipe.targets.mode == "train", seed,
    )  # fmt: skip


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
        self.most = int(spec.fields["batch"]["slot_seconds"] * SAMPLE_RATE)
        self.unreadable: set[int] = set()
        self.passes = 0

    def state(self, rows: np.ndarray, views: Any = 0) -> np.ndarray:
        """As of stored targets: a text teacher has no input where there is no text."""
        rows = np.asarray(rows, np.int64)
        state = np.full(len(rows), PRESENT, np.uint8)
        if self.model.inputs == {"text"}:
            state[~has_text(self.dataset, self.model.text_from, rows)] = NO_INPUT
        if self.unreadable:
            state[np.isin(rows, list(self.unreadable))] = QUARANTINED
        return state

    def read(self, rows: np.ndarray, views: Any = 0) -> dict[str, Any]:
        """Output name -> (B, *shape) float32; zeros where there is no answer."""
        rows = np.asarray(rows, np.int64)
        views = np.broadcast_to(np.asarray(views, np.int64), rows.shape)
        said = {o.name: np.zeros((len(rows), *o.shape), np.float32) for o in self.spec.outputs}
        for part in self._parts(rows, views):
            batch = load_slot(self.dataset, Slot(rows[part], views[part]), self.needs, self.policy)
            self.unreadable |= set(rows[part][~batch.present.numpy()].tolist())
            with torch.inference_mode(), drawn_from(self._seed(rows[part], views[part])):
                output = self.model(complete(batch.to(self.model.device), self.model))
            self.passes += len(part)
            good = (batch.present & output.has_input.cpu()).numpy()
            for name, values in said.items():
                answered = getattr(output, name).float().cpu().numpy()
                values[part[good]] = answered[good]
        return said

    def _seed(self, rows: np.ndarray, views: np.ndarray) -> int:
        """What a training teacher's dropout is drawn from: seed, rows and views, so that a resumed run draws the same."""
        said = np.asarray(self.dataset.key_hash)[rows] ^ mix64(views.astype(np.uint64))
        return int(hash64(self.seed, said).sum()) & 0x7FFFFFFF

    def _parts(self, rows: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
        """Positions of the rows, batch by batch: as many padded seconds as where targets are stored, lengths alike if need be."""
        lengths = view_samples(self.policy, self.dataset.key_hash[rows], views, self.dataset.samples[rows])
        order = np.argsort(lengths, kind="stable")
        every = [np.sort(order[first:last]) for first, last in pairwise(cut(lengths[order], self.most))]
        if not self.model.needs_equal_lengths:
            return every
        return [part[lengths[part] == length] for part in every for length in np.unique(lengths[part])]
