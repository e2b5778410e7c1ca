"""Stored targets: every guarantee of `shards.targets`, on packed audio, against a plain dictionary as the oracle."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.dataset import Dataset
from shards.errors import UserError
from shards.target_list import list_targets
from shards.targets import ABSENT, NO_INPUT, PRESENT, QUARANTINED, Output, TargetSpec, TargetStore, Unit
from shards.withdraw import withdraw
from tests.shards.stored import FIELDS, OUTPUTS, SPEC, N, agrees, commit, fill, make, says


def test_all_kinds_come_back_in_any_order_with_repeats(dataset):
    store = TargetStore.create(dataset, SPEC)
    fill(store, views=(0, 3))
    oracle = {(r, v): (PRESENT, says(r, v)) for r in range(N) for v in (0, 3)}
    rng = np.random.default_rng(0)
    agrees(store, rng.integers(0, N, 50), rng.choice([0, 1, 3], 50), oracle)
    again = pickle.loads(pickle.dumps(TargetStore.open(dataset, "wav-teacher", SPEC.fingerprint)))
    agrees(again, np.arange(N), 3, oracle)
    agrees(store, np.zeros(0, np.int64), np.zeros(0, np.int64), oracle)
    assert (Path(dataset.url) / store.root / "v003" / "000000.arrow").is_file()
    assert store.size() == sum(
        p.stat().st_size for p in (Path(dataset.url) / "targets").rglob("*") if p.is_file()
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 2),
            st.lists(
                st.tuples(st.integers(0, 30), st.sampled_from([PRESENT, NO_INPUT, QUARANTINED])), min_size=1
            ),
        ),
        max_size=6,
    )
)
def test_any_sequence_of_writes_equals_a_dictionary(dataset, writes):
    shutil.rmtree(Path(dataset.url) / "targets", ignore_errors=True)
    store, oracle = TargetStore.create(dataset, SPEC), {}
    for turn, (shard, view, picks) in enumerate(writes):
        span = dataset.shards[shard].rows
        states = {span.start + i % (span.stop - span.start): state for i, state in picks}
        unit = Unit(shard, view, np.array(list(states), np.int64))
        assert not len(commit(store, unit, np.array(list(states.values()), np.uint8), turn))
        oracle |= {(row, view): (state, says(row, view, turn)) for row, state in states.items()}
    rows, views = (a.ravel() for a in np.meshgrid(np.arange(N), np.arange(3)))
    agrees(store, rows, views, oracle)
    agrees(TargetStore.open(dataset, "wav-teacher"), rows, views, oracle)
    due = {(int(r), u.view) for u in store.due(np.ones(N, bool), range(3)) for r in u.rows}
    assert due == {at for at in zip(rows.tolist(), views.tolist()) if at not in oracle}


def test_due_is_what_is_wanted_and_absent_and_writing_in_parts_gives_the_same_bytes(dataset, tmp_path):
    store = TargetStore.create(dataset, SPEC)
    some = np.arange(N) % 3 == 0
    fill(store, wanted=some)
    assert store.due(some, [0]) == []
    left = store.due(np.ones(N, bool), [0])
    assert sorted(np.concatenate([u.rows for u in left]).tolist()) == np.flatnonzero(~some).tolist()
    for unit in left:
        commit(store, unit)
    in_parts = {p.name: p.read_bytes() for p in (Path(dataset.url) / store.root / "v000").iterdir()}
    shutil.rmtree(Path(dataset.url) / "targets")
    fill(TargetStore.create(dataset, SPEC))
    at_once = {p.name: p.read_bytes() for p in (Path(dataset.url) / store.root / "v000").iterdir()}
    assert in_parts == at_once


def test_other_states_are_kept_and_never_due_again(dataset):
    store = TargetStore.create(dataset, SPEC)
    unit = store.due(np.ones(N, bool), [0])[0]
    states = np.resize(np.array([PRESENT, NO_INPUT, QUARANTINED], np.uint8), len(unit.rows))
    commit(store, unit, states)
    np.testing.assert_array_equal(store.state(unit.rows), states)
    assert unit.shard not in {u.shard for u in store.due(np.ones(N, bool), [0])}


def test_quarantined_rows_are_due_again_on_request_only(dataset):
    store, every = TargetStore.create(dataset, SPEC), np.ones(N, bool)
    unit = store.due(every, [0])[0]
    states = np.resize(np.array([PRESENT, NO_INPUT, QUARANTINED], np.uint8), len(unit.rows))
    commit(store, unit, states)
    again = [u for u in store.due(every, [0], retry=True) if u.shard == unit.shard]
    assert [u.rows.tolist() for u in again] == [unit.rows[states == QUARANTINED].tolist()]
    commit(store, again[0])
    now = np.where(states == QUARANTINED, PRESENT, states)
    np.testing.assert_array_equal(store.state(unit.rows), now)
    agrees(store, unit.rows[now == PRESENT], 0, {(int(r), 0): (PRESENT, says(int(r), 0)) for r in unit.rows})
    assert unit.shard not in {u.shard for u in store.due(every, [0], retry=True)}


def test_a_bad_moment_of_the_disk_is_not_what_the_teacher_said(dataset):
    """Much of a unit unreadable: taken from a whole shard, refused by name from a damaged one; nothing is written then."""
    store, every = TargetStore.create(dataset, SPEC), np.ones(N, bool)
    unit = store.due(every, [0])[0]
    n, info = len(unit.rows), dataset.shards[0]
    lost = np.full(n, QUARANTINED, np.uint8)
    few = np.where(np.arange(n) < 2, QUARANTINED, PRESENT).astype(np.uint8)
    tar = Path(info.url)
    whole = tar.read_bytes()
    tar.chmod(0o644)
    for damage in (b"\0" * len(whole), whole[: len(whole) // 2]):
        tar.write_bytes(damage)
        assert not dataset.intact(0)
        with pytest.raises(UserError, match=f"{n} of {n} utterances.*not those that were packed") as error:
            commit(store, unit, lost)
        assert error.value.where == info.url and f"ser verify {dataset.url}" in error.value.hint
        assert (store.state(unit.rows) == ABSENT).all()
    commit(store, unit, few)  # a broken utterance alone is never fatal
    assert (store.state(unit.rows) == few).all()
    tar.write_bytes(whole)
    assert dataset.intact(0)
    commit(store, unit, lost)  # the audio is what was packed: the teacher cannot answer
    assert (store.state(unit.rows) == QUARANTINED).all()


def test_numbers_that_are_not_finite_as_stored_are_quarantined(dataset):
    spec = TargetSpec("half", (Output("y", "utterance", (2,), "float16"),), {"view_policy": "x"})
    store = TargetStore.create(dataset, spec)
    unit = Unit(0, 0, np.arange(4))
    values = [np.array([1, 2.0]), np.array([1, 70000.0]), np.array([np.nan, 0]), np.array([-65504.0, 0])]
    refused = store.write(unit, np.ones(4, np.uint8), {"y": values})
    assert refused.tolist() == [1, 2]
    assert store.state(unit.rows).tolist() == [PRESENT, QUARANTINED, QUARANTINED, PRESENT]
    with pytest.raises(UserError, match=r"shape \(3,\), not \(2,\)") as error:
        store.write(unit, np.ones(4, np.uint8), {"y": [np.zeros(3)] * 4})
    assert error.value.where == dataset.keys(np.array([0]))[0]


def test_targets_of_replaced_audio_are_never_read_and_due_again(tmp_path):
    old = make(tmp_path, seed=0)
    fill(TargetStore.create(old, SPEC))
    for name in ("dataset.json", "shards", "index", "plan.arrow"):
        path = tmp_path / "dataset" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    new = make(tmp_path, seed=1)
    assert [s.sha256 for s in new.shards] != [s.sha256 for s in old.shards]
    assert new.keys(np.arange(N)) == old.keys(np.arange(N))
    store = TargetStore.open(new, "wav-teacher")
    agrees(store, np.arange(N), 0, {})
    assert sum(len(u.rows) for u in store.due(np.ones(N, bool), [0])) == N
    assert len(list_targets(new)[0].orphans) == len(old.shards)
    commit(store, Unit(0, 0, np.array([1])), turn=5)  # nothing of the old file is copied
    agrees(store, np.arange(N), 0, {(1, 0): (PRESENT, says(1, 0, 5))})


def test_withdrawn_rows_have_no_targets(dataset):
    fill(TargetStore.create(dataset, SPEC))
    withdraw(dataset.url, speaker="toy/s1")
    after = Dataset.open(dataset.url)
    gone = ~np.asarray(after.alive)
    assert 0 < gone.sum() < N
    store = TargetStore.open(after, "wav-teacher")
    agrees(store, np.arange(N), 0, {(r, 0): (PRESENT, says(r, 0)) for r in np.flatnonzero(~gone).tolist()})
    assert store.due(np.ones(N, bool), [0]) == []
    assert sum(list_targets(after)[0].present.values()) == (~gone).sum()


def test_view_invariant_targets_are_stored_once(dataset):
    spec = TargetSpec("text", (Output("y", "utterance", (2,)),), {"model": "minilm"}, view_invariant=True)
    store = TargetStore.create(dataset, spec)
    units = store.due(np.ones(N, bool), [0, 1, 2, 3])
    assert len(units) == len(dataset.shards)
    for unit in units:
        store.write(unit, np.ones(len(unit.rows), np.uint8), {"y": [np.array([r, -r]) for r in unit.rows]})
    assert {p.parent.name for p in (Path(dataset.url) / store.root).rglob("*.arrow")} == {"any"}
    views = np.arange(N) % 7
    assert (store.state(np.arange(N), views) == PRESENT).all()
    assert store.read(np.arange(N), views)["y"][:, 0].tolist() == list(range(N))


def test_a_fingerprint_that_does_not_fit_names_each_field_with_both_values(dataset):
    TargetStore.create(dataset, SPEC)
    far = TargetSpec("wav-teacher", (Output("other", "utterance", (9,)),), {"weights": "aaaa"})
    TargetStore.create(dataset, far)
    wanted = TargetSpec(
        "wav-teacher", OUTPUTS, FIELDS | {"weights": "c0ffee", "batch": {"seconds": 30, "fp": 32}, "new": 1}
    )
    with pytest.raises(UserError) as error:
        TargetStore.open(dataset, expect=wanted)
    text = str(error.value)
    for part in (
        'fields.weights: stored "9f86d0", wanted "c0ffee"',
        "fields.batch.seconds: stored 60, wanted 30",
        "fields.new: stored (missing), wanted 1",
        SPEC.fingerprint,
    ):
        assert part in text, text
    assert "fp:" not in text and "labels" not in text
    with pytest.raises(UserError, match=r"fields\.weights"):
        TargetStore.open(dataset, "wav-teacher", SPEC.fingerprint, expect=wanted)
    with pytest.raises(UserError, match="several targets"):
        TargetStore.open(dataset, "wav-teacher")
    with pytest.raises(UserError, match="no targets of 'nobody'"):
        TargetStore.open(dataset, "nobody")
    assert TargetStore.open(dataset, expect=SPEC).spec == SPEC


def test_fingerprints_hold_all_but_the_informative():
    assert TargetSpec("wav-teacher", OUTPUTS, FIELDS, {"torch": "other"}).fingerprint == SPEC.fingerprint
    reordered = TargetSpec("wav-teacher", list(OUTPUTS), dict(reversed(FIELDS.items())))
    assert reordered.fingerprint == SPEC.fingerprint and len(SPEC.fingerprint) == 16
    others = [
        TargetSpec("other", OUTPUTS, FIELDS),
        TargetSpec("wav-teacher", OUTPUTS[:3], FIELDS),
        TargetSpec("wav-teacher", (*OUTPUTS[:3], Output("tokens", "frame", ())), FIELDS),
        TargetSpec("wav-teacher", OUTPUTS, FIELDS | {"labels": ["happy", "angry"]}),
        TargetSpec("wav-teacher", OUTPUTS, FIELDS, view_invariant=True),
    ]
    assert len({s.fingerprint for s in [*others, SPEC]}) == len(others) + 1
    assert TargetSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 81, "a b"])
def test_names_are_names_never_paths(name):
    with pytest.raises(UserError, match="form"):
        TargetSpec(name, OUTPUTS)
    with pytest.raises(UserError, match="form"):
        TargetSpec("t", (Output(name, "utterance", (1,)),))


def test_frames_are_views_on_the_mapped_file_and_few_files_are_held(dataset, monkeypatch):
    monkeypatch.setattr("shards.targets.OPEN_FILES", 2)
    store = TargetStore.create(dataset, SPEC)
    fill(store)
    for frames in store.read(np.arange(N))["mel"]:
        assert not frames.flags.owndata and not frames.flags.writeable
    assert len(store._files) == 2
    kept = store.read(np.arange(N))["mel"]
    shutil.rmtree(
        Path(dataset.url) / store.root
    )  # a mapping outlives its file's name and its place in the cache
    for row, frames in enumerate(kept):
        np.testing.assert_array_equal(frames, says(row, 0)["mel"])
