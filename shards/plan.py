"""The order of data: global steps of M slots, a pure function of the rows, the law, the seed and the epoch.

Guarantees: every drawn entry (row, view) stands in exactly one slot of its epoch; a slot's padded length (rows times
the longest of them) is at most `slot_seconds`, except for a single utterance that is longer by itself; any global
step is found by search, without walking there; the number of processes never enters; integers and stable sorts only,
so that every machine makes the same plan. Gives up: order across pools. Only `pool_shards` shards are mixed with one
another at a time, so that reading stays local.

How an epoch is made: shards that hold a drawn row are shuffled, each corpus spread evenly over the order, and cut
into pools; the entries of a pool are ordered by duration in the view (with jitter, so that neighbours change), cut
into slots, and the slots are shuffled; a global step takes the next M slots. Opening an epoch counts the slots of
each pool, one pool in memory at a time, and keeps the prefix sum. The last step is filled with empty slots. Where the
epochs begin (`Plan.begins`) may be kept and given back (`recall`): then seeking costs the same for any step.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from shards.errors import UserError
from shards.law import draws, hash64, subseed, view_of
from shards.slots import EMPTY, Slot, cut, slots_of
from shards.utterance import SAMPLE_RATE

_SHARDS, _CORPORA, _JITTER, _SLOTS = range(4)  # purposes of sub-seeds
_POOLS_KEPT = 4
_EPOCHS_KEPT = 4
ViewSamples = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """What fixes a plan besides the data.

    Attributes:
        seed: Seed of the law, the views and the shuffles.
        slot_seconds: Largest padded length of a slot: rows times the longest, in seconds.
        slots: M, slots of a global step.
        pool_shards: Most shards mixed with one another at a time.
        views: V, how many augmented views there are; 0 means only the clean view.
        jitter: Durations are blurred by up to jitter/1024 of themselves before sorting.
    """

    seed: int
    slot_seconds: float
    slots: int
    pool_shards: int = 16
    views: int = 0
    jitter: int = 64

    def __post_init__(self):
        for name, least in (("slots", 1), ("pool_shards", 1), ("views", 0), ("jitter", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, must be at least {least}", where="plan")
        if not self.slot_seconds * SAMPLE_RATE >= 1:
            raise UserError(f"slot_seconds is {self.slot_seconds}, must be positive", where="plan")
        if self.jitter > 1024:
            raise UserError(f"jitter is {self.jitter}, must be at most 1024", where="plan")

    @property
    def limit(self) -> int:
        """`slot_seconds` in samples."""
        return round(self.slot_seconds * SAMPLE_RATE)


class _Epoch(NamedTuple):
    order: np.ndarray  # shuffled shard positions
    borders: np.ndarray  # (pools + 1,) where each pool begins in `order`
    slots: np.ndarray  # (pools + 1,) prefix sum of slots
    entries: int


class _Pool(NamedTuple):
    rows: np.ndarray
    views: np.ndarray
    starts: np.ndarray  # (slots + 1,) borders of the slots among the sorted entries
    order: np.ndarray  # (slots,) shuffled


class Plan:
    """Global steps over all epochs of a run.

    Args:
        key_hash: Column of the dataset, uint64; may be memory-mapped (only blocks of it are touched).
        samples: Column, durations of the clean audio in samples.
        shard: Column, shard number of each row.
        corpus: Column, a number for each row's corpus; a shard holds one corpus. It enters the shuffles, so it should not
            change when a corpus is added.
        rows: (n,) distinct rows of the dataset that take part (a fold's train rows), any order.
        config: See PlanConfig.
        weights: (n,) weights of `rows` in units of 2^-32 (`shards.law.temperature`), None for the uniform law.
        view_samples: (rows, views) -> durations in samples; None when all views last as long as the clean audio
            and nothing is cropped.

    Raises:
        UserError: No rows, or weights that never draw one.
    """

    def __init__(
        self,
        key_hash: np.ndarray,
        samples: np.ndarray,
        shard: np.ndarray,
        corpus: np.ndarray,
        rows: np.ndarray,
        config: PlanConfig,
        weights: np.ndarray | None = None,
        view_samples: ViewSamples | None = None,
    ):
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) == 0:
            raise UserError(
                "a plan over no rows", where="plan", hint="check the fold and the protocol's filters"
            )
        if weights is not None:
            weights = np.asarray(weights, dtype=np.uint64)
            assert len(weights) == len(rows), "weights belong to rows, one each"
            if not weights.any():
                raise UserError("all weights are 0, nothing would ever be drawn", where="plan")
        sort = np.lexsort((rows, shard[rows]))
        self.rows = rows[sort]
        assert len(self.rows) == 1 or not (self.rows[1:] == self.rows[:-1]).any(), "rows repeat"
        self.weights = None if weights is None else weights[sort]
        self.config, self.view_samples = config, view_samples
        self._key_hash, self._samples = key_hash, samples
        numbers = np.asarray(shard[self.rows])
        first = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
        self._starts = np.r_[first, len(self.rows)]
        self._shards = numbers[first].astype(np.int64)
        self._corpora = np.asarray(corpus[self.rows[first]]).astype(np.int64)
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._steps = [0]  # global step at which each counted epoch begins, and where the last one ends
        self._pools: OrderedDict[tuple[int, int], _Pool] = OrderedDict()

    # Sizes and addresses

    def steps(self, epoch: int) -> int:
        """Global steps of one epoch: ceil(slots / M)."""
        return self._steps_of(self._open(epoch))

    def entries(self, epoch: int) -> int:
        """Drawn entries of one epoch (repeats counted)."""
        return self._open(epoch).entries

    def total_steps(self, epochs: int) -> int:
        """Global steps of the first `epochs` epochs; the length of a schedule."""
        while len(self._steps) <= epochs:
            self._count()
        return self._steps[epochs]

    def drawn(self, steps: int) -> int:
        """Drawn entries of the first `steps` global steps."""
        epoch, within = self.locate(steps)
        whole = epoch * len(self.rows) if self.weights is None else sum(map(self.entries, range(epoch)))
        return whole + sum(len(slot.rows) for i in range(steps - within, steps) for slot in self.step(i))

    def locate(self, global_step: int) -> tuple[int, int]:
        """(epoch, step within it) of a global step.

        Epochs up to it that were never counted are opened one by one, a pass over the rows each; `recall` spares that.
        """
        assert global_step >= 0
        while self._steps[-1] <= global_step:
            self._count()
        epoch = bisect_right(self._steps, global_step) - 1
        return epoch, global_step - self._steps[epoch]

    @property
    def begins(self) -> list[int]:
        """Global step at which each counted epoch begins, from 0, and where the last of them ends: for `recall`."""
        return list(self._steps)

    def recall(self, begins: Sequence[int]) -> None:
        """Take `begins` of an equal plan, so that seeking any step that it has passed opens one epoch.

        Numbers of another plan would give other steps without a word: keep them with what identifies the plan.
        """
        begins = [int(step) for step in begins]
        assert begins[:1] == [0] and all(a <= b for a, b in pairwise(begins)), "prefix sums ascend from 0"
        shared = min(len(begins), len(self._steps))
        assert begins[:shared] == self._steps[:shared], "these belong to another plan"
        if len(begins) > len(self._steps):
            self._steps = begins

    def slots_of(self, rank: int, world: int) -> range:
        """The slots that a rank runs, in order: rank, rank + world, ... (see the function `slots_of`)."""
        return slots_of(rank, world, self.config.slots)

    # Content

    def step(self, global_step: int) -> tuple[Slot, ...]:
        """The M slots of a global step. Empty slots only end an epoch's last step."""
        epoch, step = self.locate(global_step)
        opened, width = self._open(epoch), self.config.slots
        slots: list[Slot] = []
        at, end = step * width, min((step + 1) * width, int(opened.slots[-1]))
        while at < end:
            number = int(np.searchsorted(opened.slots, at, side="right")) - 1
            pool, base = self._pool(epoch, number), int(opened.slots[number])
            stop = min(end, int(opened.slots[number + 1]))
            for k in pool.order[at - base : stop - base]:
                cut = slice(pool.starts[k], pool.starts[k + 1])
                slots.append(Slot(pool.rows[cut], pool.views[cut]))
            at = stop
        return (*slots, *[EMPTY] * (width - len(slots)))

    def _steps_of(self, opened: _Epoch) -> int:
        return -(-int(opened.slots[-1]) // self.config.slots)

    def _count(self) -> None:
        """Open the first epoch that was not counted yet."""
        self._steps.append(self._steps[-1] + self._steps_of(self._open(len(self._steps) - 1)))

    def _open(self, epoch: int) -> _Epoch:
        """An epoch with its shards shuffled into pools and their slots counted; the last few are kept."""
        if epoch not in self._epochs:
            order = shard_order(self._shards, self._corpora, self.config.seed, epoch)
            pools = -(-len(order) // self.config.pool_shards)
            borders = np.arange(pools + 1) * len(order) // pools  # sizes differ by one at most
            counts, entries = np.zeros(pools + 1, dtype=np.int64), 0
            for i in range(pools):
                _, _, durations = self._sorted(epoch, order[borders[i] : borders[i + 1]])
                counts[i + 1] = len(cut(durations, self.config.limit)) - 1
                entries += len(durations)
            self._epochs[epoch] = _Epoch(order, borders, np.cumsum(counts), entries)
            while len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _sorted(self, epoch: int, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The drawn entries of some shards, ordered by blurred duration: rows, views, durations in samples."""
        config = self.config
        # Ascending shards make the entries, hence ties, independent of how the pool came together.
        spans = [np.arange(self._starts[s], self._starts[s + 1]) for s in np.sort(shards)]
        at = np.concatenate(spans)
        rows = self.rows[at]
        keys = np.asarray(self._key_hash[rows])
        index, number = draws(keys, None if self.weights is None else self.weights[at], config.seed, epoch)
        rows, keys = rows[index], keys[index]
        views = view_of(keys, number, config.seed, config.views)
        durations = self._samples[rows] if self.view_samples is None else self.view_samples(rows, views)
        durations = np.asarray(durations).astype(np.int64)
        assert not len(durations) or 0 < durations.min() <= durations.max() < 1 << 32
        random = hash64(subseed(config.seed, epoch, _JITTER), keys + number.astype(np.uint64))
        blur = random % np.uint64(config.jitter + 1) + np.uint64(1024)
        # Blurred duration above (43 bits), random tie-break below: one sort; what still ties keeps its order.
        order = np.argsort(
            (durations.astype(np.uint64) * blur << np.uint64(20)) | (random >> np.uint64(44)), kind="stable"
        )
        return rows[order], views[order], durations[order]

    def _pool(self, epoch: int, number: int) -> _Pool:
        """One pool with its entries; the last few are kept."""
        key = (epoch, number)
        if key not in self._pools:
            opened = self._open(epoch)
            shards = opened.order[opened.borders[number] : opened.borders[number + 1]]
            rows, views, durations = self._sorted(epoch, shards)
            starts = cut(durations, self.config.limit)
            slots = np.arange(len(starts) - 1)
            seed = subseed(self.config.seed, epoch, _SLOTS, number)
            self._pools[key] = _Pool(rows, views, starts, np.argsort(hash64(seed, slots), kind="stable"))
            while len(self._pools) > _POOLS_KEPT:
                self._pools.popitem(last=False)
        self._pools.move_to_end(key)
        return self._pools[key]


def shard_order(shards: np.ndarray, corpora: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Shuffle shards so that every corpus is spread evenly over the order.

    The k shards of a corpus are shuffled among themselves; the j-th of them goes to place (j + u) / k of the epoch,
    with one seeded u in [0, 1) for a corpus. Hence any stretch of the order holds each corpus in its proportion.

    Args:
        shards: (s,) shard numbers.
        corpora: (s,) corpus code of each.
        seed: The plan's seed.
        epoch: Epoch number.

    Returns:
        (s,) int64 positions in `shards`, a permutation.
    """
    chance = hash64(subseed(seed, epoch, _SHARDS), shards)
    place = np.empty(len(shards), dtype=np.uint64)
    for corpus in np.unique(corpora):
        members = np.flatnonzero(corpora == corpus)
        members = members[np.argsort(chance[members], kind="stable")]
        start = hash64(subseed(seed, epoch, _CORPORA), np.array([corpus])) >> np.uint64(32)
        fine = (np.arange(len(members), dtype=np.uint64) << np.uint64(32)) + start
        place[members] = fine // np.uint64(len(members))
    return np.lexsort((shards, chance, place))
