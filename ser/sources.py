"""Where a student's targets come from: stored ones, stored ones of another utterance, or of the right cross-fit copy.

All have the reading half of `shards.targets.TargetStore` (spec, state, read), which is all that the loader and the
objective use.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ser.exposure import Exposure, count, overlap, some
from shards.errors import UserError
from shards.index import key_hash
from shards.law import hash64
from shards.targets import TargetSpec, TargetStore


class Permuted:
    """Targets of other utterances: the control that must lose the gain.

    Every row of `rows` is given the target of exactly one other row of `rows`, by a seeded permutation; the teacher's
    answers keep their distribution and lose what they say about the utterance.
    """

    def __init__(self, source: TargetStore, rows: np.ndarray, seed: int):
        self.source = source
        rows = np.sort(np.asarray(rows, np.int64))
        order = np.argsort(hash64(seed, np.asarray(source.dataset.key_hash[rows])), kind="stable")
        # A cycle through the shuffled rows leaves no row with its own target.
        self.map = np.arange(len(source.dataset), dtype=np.int64)
        self.map[rows[order]] = rows[np.roll(order, 1)]

    @property
    def spec(self) -> TargetSpec:
        return self.source.spec

    @property
    def dataset(self) -> Any:
        return self.source.dataset

    @property
    def root(self) -> str:
        return self.source.root

    def state(self, rows: np.ndarray, views: Any = 0) -> np.ndarray:
        """State of the targets that these rows are given."""
        return self.source.state(self.map[np.asarray(rows, np.int64)], views)

    def read(self, rows: np.ndarray, views: Any = 0) -> dict[str, Any]:
        """The targets that these rows are given."""
        return self.source.read(self.map[np.asarray(rows, np.int64)], views)


class CrossFitted:
    """Each row's target from the copy of the teacher that has not heard its speaker.

    Args:
        whole: The teacher trained on all training speakers; answers for rows of no part (dev).
        copies: Copy k was trained without part k.
        part_of: (n,) int64 part of each dataset row, -1 for none.

    Raises:
        UserError: A copy has heard its part after all, says the exposure that is stored with its targets.
    """

    def __init__(self, whole: TargetStore, copies: Sequence[TargetStore], part_of: np.ndarray):
        self.stores, self.part_of = [*copies, whole], part_of
        self.whole = whole
        for k, copy in enumerate(copies):
            heard = Exposure.from_json(copy.spec.fields["exposure"])
            refuse_heard(whole.dataset, np.flatnonzero(part_of == k), heard, f"{copy.spec.teacher} part {k}")

    @property
    def spec(self) -> TargetSpec:
        return self.whole.spec

    @property
    def dataset(self) -> Any:
        return self.whole.dataset

    @property
    def root(self) -> str:
        return self.whole.root

    def _groups(self, rows: np.ndarray, views: Any):
        rows = np.asarray(rows, np.int64)
        views = np.broadcast_to(np.asarray(views, np.int64), rows.shape)
        part = self.part_of[rows]
        for k in np.unique(part):
            at = np.flatnonzero(part == k)
            yield self.stores[k], at, rows[at], views[at]

    def state(self, rows: np.ndarray, views: Any = 0) -> np.ndarray:
        """State in the copy that answers for each row."""
        out = np.zeros(len(rows), np.uint8)
        for store, at, r, v in self._groups(rows, views):
            out[at] = store.state(r, v)
        return out

    def read(self, rows: np.ndarray, views: Any = 0) -> dict[str, Any]:
        """Targets from the copy that answers for each row."""
        out: dict[str, Any] = {}
        for store, at, r, v in self._groups(rows, views):
            for name, value in store.read(r, v).items():
                if name not in out:
                    out[name] = np.zeros((len(rows), *np.shape(value)[1:]), np.asarray(value).dtype)
                out[name][at] = value
        return out


def refuse_heard(dataset: Any, rows: np.ndarray, heard: Exposure, where: str) -> None:
    """Refuse a cross-fit copy that was fitted on some of the rows (m,) that it must answer for.

    Raises:
        UserError: Naming the copy and whom it heard.
    """
    shared = overlap(dataset, rows, heard.fit)
    if shared:
        raise UserError(
            f"this copy was fitted on {count(len(shared), 'voice', 'voices')} of the part that it must not hear: "
            f"{some(shared)}",
            where=where,
            hint="cross-fit its components alike and start from no weights that heard them; a copy that an older version "
            "made goes by deleting its folder in the run",
        )


def parts_of(dataset: Any, rows: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """(n,) part of every dataset row: the speakers of `rows` dealt into `parts`, -1 elsewhere.

    Speakers are ordered by a seeded hash of their names and dealt in turn, so parts differ by at most one speaker and do
    not change when a corpus is added. Rows of unknown speakers go together.
    """
    speakers = np.unique(dataset.speaker[rows])
    names = ["" if code < 0 else dataset.speakers[code] for code in speakers]
    hashes = np.array([key_hash(name) for name in names], dtype=np.uint64)
    order = np.argsort(hash64(seed, hashes), kind="stable")
    part_of_speaker: Mapping[int, int] = {int(speakers[s]): i % parts for i, s in enumerate(order)}
    out = np.full(len(dataset), -1, np.int64)
    out[rows] = [part_of_speaker[int(s)] for s in dataset.speaker[rows]]
    return out
