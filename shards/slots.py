"""Slots: the micro-batches that everything runs in, and how a sequence of rows is cut into them.

Guarantees: a slot's padded length (rows times the longest of them) is at most the limit, except for a single utterance
that is longer by itself; ranks share the slots of a global step out evenly or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from shards.errors import UserError
from shards.utterance import SAMPLE_RATE


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A micro-batch: `rows` int64 (B,) and the view of each, `views` int64 (B,). B = 0 is an empty slot."""

    rows: np.ndarray
    views: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


EMPTY = Slot(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def cut(durations: np.ndarray, limit: int) -> np.ndarray:
    """Cut a sequence into slots, each as long as count * longest <= limit allows, greedily.

    Args:
        durations: (n,) positive durations in samples.
        limit: Largest padded length in samples; one that is longer by itself gets a slot of its own.

    Returns:
        (slots + 1,) int64 borders, from 0 to n.
    """
    borders = [0]
    count = longest = 0
    for i, duration in enumerate(durations.tolist()):
        if duration > longest:
            longest = duration
        count += 1
        if count * longest > limit and count > 1:
            borders.append(i)
            count, longest = 1, duration
    if count:
        borders.append(len(durations))
    return np.array(borders, dtype=np.int64)


def slots_of(rank: int, world: int, slots: int) -> range:
    """The slots of a global step that one rank runs: rank, rank + world, ... below `slots`.

    Args:
        rank: 0..world-1.
        world: Number of ranks.
        slots: M.

    Returns:
        A range of M / world slot numbers (its length is the accumulation).

    Raises:
        UserError: world does not divide M; the message names the values that do.
    """
    assert 0 <= rank < max(world, 1)
    if world < 1 or slots % world:
        fit = ", ".join(str(w) for w in range(1, slots + 1) if slots % w == 0)
        raise UserError(
            f"{world} processes do not divide the {slots} slots of a global step",
            where="plan",
            hint=f"start one of {fit} processes, or change `slots` in the recipe (that changes the experiment)",
        )
    return range(rank, slots, world)


def sequential(
    rows: Sequence[int] | np.ndarray,
    samples: np.ndarray,
    slot_seconds: float,
    view: int = 0,
    *,
    shard: np.ndarray | None = None,
    equal_lengths: bool = False,
) -> list[Slot]:
    """Slots for inference: every row once, in one view, longest first inside a shard, no slot across shards.

    Args:
        rows: (n,) rows.
        samples: (n,) durations of these rows in this view, in samples (not the whole column).
        slot_seconds: Largest padded length of a slot; a longer utterance runs alone.
        view: The view of all.
        shard: (n,) shard numbers of these rows; None puts all into one.
        equal_lengths: A slot holds only rows of exactly equal sample counts, for encoders that normalise over time
            (group norm), where padding changes the answer.

    Returns:
        Slots in ascending order of shards.
    """
    rows, samples = np.asarray(rows, dtype=np.int64), np.asarray(samples).astype(np.int64)
    shard = np.zeros(len(rows), dtype=np.int64) if shard is None else np.asarray(shard)
    assert len(rows) == len(samples) == len(shard), "samples and shard belong to rows, one each"
    order = np.lexsort((rows, -samples, shard))
    rows, samples, shard = rows[order], samples[order], shard[order]
    breaks = shard[1:] != shard[:-1]
    if equal_lengths:
        breaks = breaks | (samples[1:] != samples[:-1])
    edges = np.r_[0, np.flatnonzero(breaks) + 1, len(rows)] if len(rows) else np.zeros(1, dtype=np.int64)
    limit = max(1, round(slot_seconds * SAMPLE_RATE))
    slots = []
    for low, high in pairwise(edges.tolist()):
        borders = cut(samples[low:high], limit) + low
        slots += [Slot(rows[a:b], np.full(b - a, view, dtype=np.int64)) for a, b in pairwise(borders)]
    return slots
