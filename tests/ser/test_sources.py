"""Permuted targets never are an utterance's own; cross-fitted ones come from the copy that has not heard its speaker."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.exposure import Exposure, of_rows
from ser.sources import CrossFitted, Permuted, parts_of
from shards.errors import UserError
from shards.law import hash64

ROWS = 40


def dataset(speakers: np.ndarray) -> SimpleNamespace:
    class Data(SimpleNamespace):
        def __len__(self):
            return len(self.speaker)

    keys = hash64(3, np.arange(len(speakers), dtype=np.uint64))
    names = [f"toy/{i}" for i in range(int(speakers.max()) + 1)]
    nowhere = np.full(len(speakers), -1)
    return Data(
        key_hash=keys, speaker=speakers, speakers=names, recording=nowhere, recordings=[], corpus=nowhere * 0,
        corpora=["toy"], keys=lambda rows: [f"k{row}" for row in rows],
    )  # fmt: skip


class Store:
    """Says (its number, row, view) of every row; a row is present unless it is a multiple of 7."""

    def __init__(self, number: int, data, fit: frozenset[str] = frozenset()):
        self.number, self.dataset, self.root = number, data, "root"
        self.spec = SimpleNamespace(teacher="t", fields={"exposure": Exposure(fit).to_json()})

    def state(self, rows, views=0):
        return (np.asarray(rows) % 7 != 0).astype(np.uint8)

    def read(self, rows, views=0):
        rows = np.asarray(rows)
        views = np.broadcast_to(views, rows.shape)
        return {"logits": np.stack([np.full(len(rows), self.number), rows, views], 1).astype(np.float32)}


@given(rows=st.sets(st.integers(0, ROWS - 1), min_size=2), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_permuted_targets_are_a_cycle_through_the_training_rows(rows, seed):
    rows = np.array(sorted(rows))
    data = dataset(np.zeros(ROWS, np.int64))
    source = Permuted(Store(0, data), rows[::-1], seed)
    given_to = source.read(rows, 3)["logits"][:, 1].astype(int)
    assert (given_to != rows).all(), "nobody keeps its own"
    assert sorted(given_to) == sorted(rows), "and every target is used once"
    assert (source.read(rows, 3)["logits"][:, 2] == 3).all(), "of the same view"
    assert (source.state(rows) == (given_to % 7 != 0)).all(), "presence travels with the target"
    others = np.setdiff1d(np.arange(ROWS), rows)
    assert (source.map[others] == others).all()
    assert (Permuted(Store(0, data), rows, seed).map == source.map).all(), "whatever the order of the rows"


@given(
    speakers=st.lists(st.integers(-1, 8), min_size=ROWS, max_size=ROWS), parts=st.integers(2, 4), seed=st.integers(0, 99)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_cross_fitting_reads_the_copy_that_has_not_heard_the_speaker(speakers, parts, seed):
    data = dataset(np.array(speakers))
    train = np.arange(0, ROWS, 2)
    part = parts_of(data, train, parts, seed)
    assert (part[train] >= 0).all() and (np.delete(part, train) == -1).all()
    for speaker in set(speakers):
        assert len(set(part[train][data.speaker[train] == speaker])) <= 1, "a speaker is in one part"
    sizes = [len(set(data.speaker[train][part[train] == k])) for k in range(parts)]
    assert max(sizes) - min(sizes) <= 1
    copies = [Store(k, data) for k in range(parts)]
    source = CrossFitted(Store(99, data), copies, part)
    rows = np.random.default_rng(seed).permutation(ROWS)
    said = source.read(rows, 2)["logits"]
    assert (said[:, 0] == np.where(part[rows] >= 0, part[rows], 99)).all()
    assert (said[:, 1] == rows).all() and (said[:, 2] == 2).all()
    assert (source.state(rows, 2) == (rows % 7 != 0)).all()


def test_a_permuted_cross_fitted_target_comes_from_its_own_rows_copy():
    data = dataset(np.arange(ROWS) % 5)
    train = np.arange(ROWS)
    part = parts_of(data, train, 2, 0)
    source = Permuted(CrossFitted(Store(99, data), [Store(0, data), Store(1, data)], part), train, 1)
    said = source.read(train, 1)["logits"]
    assert (said[:, 0] == part[said[:, 1].astype(int)]).all()


def test_parts_of_speakers_do_not_change_when_others_are_added():
    before = dataset(np.arange(ROWS) % 5)
    after = dataset(np.arange(ROWS) % 5 + 3)  # three speakers more, sorted before them
    after.speakers = ["a/0", "a/1", "a/2", *before.speakers]
    train = np.arange(ROWS)
    assert (parts_of(before, train, 2, 4) == parts_of(after, train, 2, 4)).all()


@pytest.mark.parametrize("heard", ["own part", "other part"])
def test_a_copy_that_has_heard_its_part_is_refused(heard):
    data = dataset(np.arange(ROWS) % 6)
    part = parts_of(data, np.arange(ROWS), 2, 0)
    fit = [of_rows(data, np.flatnonzero((part != k) == (heard == "other part"))) for k in range(2)]
    copies = [Store(0, data, fit[0]), Store(1, data, fit[1])]
    if heard == "other part":
        assert CrossFitted(Store(99, data), copies, part)
        return
    with pytest.raises(
        UserError, match=r"fitted on 3 voices of the part that it must not hear: toy"
    ) as error:
        CrossFitted(Store(99, data), copies, part)
    assert set(fit[0]) == {f"toy/{i}" for i in data.speaker[part == 0]} and "deleting its folder" in str(
        error.value
    )
