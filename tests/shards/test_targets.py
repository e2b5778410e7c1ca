"""Stored targets: every guarantee of `shards.targets`, on packed audio, against a plain dictionary as the oracle."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.target_list import carry, list_targets, remove, verify_targets
from shards.targets import ABSENT, NO_INPUT, PRESENT, QUARANTINED, Output, TargetSpec, TargetStore, Unit
from shards.utterance import Utterance
from shards.withdraw import erase, withdraw

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = (
    Output("logits", "utterance", (4,)),
    Output("layers", "layer-pooled", (2, 3), "float16"),
    Output("mel", "frame", (5,), "float16"),
    Output("tokens", "token", ()),
)
FIELDS = {
    "weights": "9f86d0",
    "labels": ["angry", "happy"],
    "view_policy": "0" * 16,
    "batch": {"seconds": 60, "fp": 32},
}
SPEC = TargetSpec("wav-teacher", OUTPUTS, FIELDS, {"torch": "2.13"})
N = 20


def make(folder: Path, seed: int = 0, n: int = N) -> Dataset:
    """n utterances of 0.1 to 0.2 s in shards of about six; the seed changes the audio, not the keys."""
    rng = np.random.default_rng(seed)
    wavs = folder / f"wavs{seed}"
    wavs.mkdir(parents=True)
    utterances = []
    for i in range(n):
        path = wavs / f"{i:03d}.wav"
        soundfile.write(
            path, rng.uniform(-0.5, 0.5, 1600 + 80 * i).astype(np.float32), 16000, subtype="PCM_16"
        )
        utterances.append(
            Utterance(
                key=f"toy-{i:03d}", corpus="toy", audio=str(path), recording=f"r{i}", speaker=f"s{i % 4}"
            )
        )
    return pack(utterances, str(folder / "dataset"), shard_seconds=0.9)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    assert len(make(folder).shards) >= 3
    return folder / "dataset"


@pytest.fixture
def dataset(packed, tmp_path) -> Dataset:
    shutil.copytree(packed, tmp_path / "dataset")
    return Dataset.open(str(tmp_path / "dataset"))


def says(row: int, view: int, turn: int = 0) -> dict[str, np.ndarray]:
    """What the teacher of these tests says; a pure function."""
    rng = np.random.default_rng([row, view, turn])
    frames = int(rng.integers(0, 7))
    return {
        "logits": rng.standard_normal(4).astype(np.float32),
        "layers": rng.standard_normal((2, 3)).astype(np.float16),
        "mel": rng.standard_normal((frames, 5)).astype(np.float16),
        "tokens": rng.standard_normal(frames + 1).astype(np.float32),
    }


def commit(store: TargetStore, unit: Unit, states=None, turn: int = 0) -> np.ndarray:
    said = [says(int(row), unit.view, turn) for row in unit.rows]
    states = np.ones(len(unit.rows), np.uint8) if states is None else states
    return store.write(unit, states, {o.name: [s[o.name] for s in said] for o in store.spec.outputs})


def fill(store: TargetStore, views=(0,), wanted=None) -> None:
    wanted = np.ones(len(store.dataset), bool) if wanted is None else wanted
    for unit in store.due(wanted, views):
        commit(store, unit)


def agrees(store: TargetStore, rows, views, oracle: dict) -> None:
    """Reading equals the oracle {(row, view): (state, {name: array})}; what it does not hold is ABSENT."""
    rows, views = np.asarray(rows), np.broadcast_to(views, np.shape(rows))
    found, states = store.read(rows, views), store.state(rows, views)
    for i, at in enumerate(zip(rows.tolist(), views.tolist())):
        state, said = oracle.get(at, (ABSENT, {}))
        assert states[i] == state, at
        for o in store.spec.outputs:
            nothing = np.zeros((0, *o.shape) if o.ragged else o.shape, o.dtype)
            wanted = said[o.name] if state == PRESENT else nothing
            assert found[o.name][i].dtype == np.dtype(o.dtype)
            np.testing.assert_array_equal(found[o.name][i], wanted)


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


def test_damage_is_refused_by_name_or_found_by_verify(dataset):
    """Cut the file anywhere and flip bytes anywhere: never wrong numbers in silence after verify, never a crash."""
    store = TargetStore.create(dataset, SPEC)
    fill(store)
    path = Path(dataset.url) / store.root / "v000" / "000000.arrow"
    whole, span = path.read_bytes(), dataset.shards[0].rows
    rows = np.arange(span.start, span.stop)
    oracle = {(int(r), 0): (PRESENT, says(int(r), 0)) for r in rows}
    rng = np.random.default_rng(0)
    cuts = [whole[:n] for n in (0, 7, 100, len(whole) // 2, len(whole) - 1)]
    flips = []
    for at in rng.integers(0, len(whole), 300):
        bytes_ = bytearray(whole)
        bytes_[at] ^= 1 << int(rng.integers(8))
        flips.append(bytes(bytes_))
    refused = 0
    for data in cuts + flips:
        path.write_bytes(data)
        store.refresh()
        problems = verify_targets(dataset.store, "wav-teacher", SPEC.fingerprint)
        try:
            store.read(rows)
        except UserError as error:
            refused += 1
            assert problems and str(path) in str(error) and "delete the file" in str(error)
            continue
        if not problems and (store.state(rows) == PRESENT).all():
            agrees(store, rows, 0, oracle)  # a byte that means nothing (padding)
        assert data not in cuts
    assert refused > len(cuts)
    path.unlink()
    store.refresh()
    assert [u.shard for u in store.due(np.ones(N, bool), [0])] == [0]


def test_files_of_another_place_are_refused(dataset):
    store = TargetStore.create(dataset, SPEC)
    fill(store)
    folder = Path(dataset.url) / store.root
    shutil.copytree(folder / "v000", folder / "v001")
    with pytest.raises(UserError, match="holds v000 of fingerprint"):
        TargetStore.open(dataset, "wav-teacher").read(np.arange(2), 1)
    text = json.loads((folder / "targets.json").read_text())
    text["fields"]["weights"] = "forged"
    (folder / "targets.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match="not that of its folder"):
        TargetStore.open(dataset, "wav-teacher")
    (folder / "targets.json").write_text("{]")
    with pytest.raises(UserError, match="does not describe targets"):
        TargetStore.open(dataset, "wav-teacher")


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


def test_listing_orphans_removal_and_what_erasure_carries_over(dataset):
    store = TargetStore.create(dataset, SPEC)
    fill(store, views=(0, 2))
    folder = Path(dataset.url) / store.root
    shutil.copy(folder / "v000" / "000000.arrow", folder / "v000" / "000077.arrow")
    stray = Path(dataset.url) / "targets" / "gone" / ("0" * 16) / "v000" / "000000.arrow"
    stray.parent.mkdir(parents=True)
    shutil.copy(folder / "v000" / "000000.arrow", stray)
    gone, mine = list_targets(dataset)
    assert (mine.teacher, mine.fingerprint, mine.present) == (
        "wav-teacher",
        SPEC.fingerprint,
        {"v000": N, "v002": N},
    )
    assert mine.orphans == (f"{store.root}/v000/000077.arrow",) and mine.bytes == store.size()
    assert gone.teacher == "gone" and len(gone.orphans) == 1 and gone.present == {}

    info = dataset.shards[0]
    keep = np.arange(info.rows.stop - info.rows.start) % 2 == 0
    assert (
        carry(dataset.store, ("000000", "f" * 64), ("000009", "e" * 64), keep) == []
    )  # other audio: nothing
    written = carry(dataset.store, ("000000", info.sha256), ("000009", "e" * 64), keep)
    assert sorted(written) == [f"{store.root}/v000/000009.arrow", f"{store.root}/v002/000009.arrow"]
    from shards.target_file import open_file

    file = open_file(dataset.store, written[0], SPEC, "v000")
    assert file.shard_sha256 == "e" * 64 and file.check_sum() and len(file.states) == keep.sum()
    for i, local in enumerate(np.flatnonzero(keep)):
        np.testing.assert_array_equal(file.row(OUTPUTS[2], i), says(info.rows.start + int(local), 0)["mel"])
    remove(dataset, "wav-teacher", SPEC.fingerprint)
    assert [t.teacher for t in list_targets(dataset)] == ["gone"]


def bytes_of(said: dict[str, np.ndarray]) -> list[bytes]:
    """What would betray an erased utterance: its numbers, where there are enough of them to be its own."""
    return [array.tobytes() for array in said.values() if array.nbytes >= 12]


def files_below(folder: Path) -> bytes:
    return b"|".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_erasing_carries_the_survivors_targets_and_leaves_no_byte_of_the_others(dataset):
    """Views, features and a view-invariant teacher, every state, a shard without targets of one view."""
    stored = TargetStore.create(dataset, SPEC)
    text = TargetStore.create(
        dataset, TargetSpec("text", (Output("y", "utterance", (3,)),), {}, view_invariant=True)
    )
    oracle, last = {}, len(dataset.shards) - 1
    for unit in stored.due(np.ones(N, bool), [0, 2]):
        if (unit.shard, unit.view) == (last, 2):
            continue
        states = (1 + unit.rows % 3).astype(np.uint8)
        commit(stored, unit, states)
        oracle |= {(int(r), unit.view): (int(s), says(int(r), unit.view)) for r, s in zip(unit.rows, states)}
    for unit in text.due(np.arange(N) % 5 > 0, [0]):
        text.write(
            unit, np.ones(len(unit.rows), np.uint8), {"y": [says(int(r), 9)["logits"][:3] for r in unit.rows]}
        )
    names, speaker = dataset.keys(), dataset.speaker
    gone = {row for row in range(N) if dataset.speakers[speaker[row]] == "toy/s1"}
    secret = [b for row, view in oracle if row in gone for b in bytes_of(says(row, view))]
    secret += [says(row, 9)["logits"][:3].tobytes() for row in gone if row % 5]
    before = files_below(Path(dataset.url) / "targets")
    assert any(b in before for b in secret)

    withdraw(dataset.url, "toy/s1")
    after = erase(dataset.url)
    assert after.generation == 3 and len(after) == N - len(gone)
    row_of = {after.row(name): old for old, name in enumerate(names) if old not in gone}
    again = TargetStore.open(after, expect=SPEC)
    for view in (0, 2):
        kept = {(n, view): oracle[o, view] for n, o in row_of.items() if (o, view) in oracle}
        agrees(again, np.arange(len(after)), view, kept)
        lost = {int(r) for unit in again.due(np.ones(len(after), bool), [view]) for r in unit.rows}
        assert lost == {n for n, o in row_of.items() if (o, view) not in oracle}
    spoken = TargetStore.open(after, "text")
    for new, old in row_of.items():
        assert spoken.state(np.array([new]), 5)[0] == (PRESENT if old % 5 else ABSENT)
        if old % 5:
            found = spoken.read(np.array([new]), 5)["y"][0]
            np.testing.assert_array_equal(found, says(old, 9)["logits"][:3])
    left = files_below(Path(dataset.url) / "targets")
    assert not any(b in left for b in secret)
    assert [info.orphans for info in list_targets(after)] == [(), ()]
    assert verify_targets(after.store, "wav-teacher", SPEC.fingerprint) == []


def test_an_erasure_killed_before_its_commit_leaves_nothing_that_is_later_believed(dataset, tmp_path):
    """Its copies lie under numbers that the next shards get: an addition or a second withdrawal must not meet them."""

    def dies(function, items):
        list(map(function, items))
        raise KeyboardInterrupt

    store = TargetStore.create(dataset, SPEC)
    fill(store)
    names = dataset.keys()
    withdraw(dataset.url, "toy/s1")
    with pytest.raises(KeyboardInterrupt):
        erase(dataset.url, run=dies)
    numbers = {int(p.stem) for p in (Path(dataset.url) / store.root).rglob("*.arrow")}
    assert max(numbers) >= len(dataset.shards), "it copied, and did not commit"
    assert (TargetStore.open(Dataset.open(dataset.url), expect=SPEC).state(np.arange(N)) > 0).sum() == N - 5

    stray = Path(dataset.url) / store.root / "v000" / f".tmp-{os.uname().nodename}-{2**22 + 1}-x"
    stray.write_bytes(b"half a file of a killed writer")
    audio = tmp_path / "more.wav"
    soundfile.write(audio, np.full(4000, 0.1), 16000)
    more = Utterance(key="more", corpus="late", audio=str(audio), recording="x", speaker="s9")
    added = pack([more], dataset.url, shard_seconds=0.9, add=True)
    assert len(added) == N + 1 and list_targets(added)[0].orphans == ()
    withdraw(dataset.url, "toy/s2")
    after = erase(dataset.url)
    assert len(after) == N + 1 - 10 and not stray.exists()
    old = {name: row for row, name in enumerate(names)}
    there = after.keys()
    kept = {(row, 0): (PRESENT, says(old[name], 0)) for row, name in enumerate(there) if name in old}
    agrees(TargetStore.open(after, expect=SPEC), np.arange(len(after)), 0, kept)
    left = files_below(Path(dataset.url) / "targets")
    erased = [row for name, row in old.items() if name not in there]
    assert len(erased) == 10 and not any(b in left for r in erased for b in bytes_of(says(r, 0)))


def test_erasing_refuses_to_seal_damaged_targets(dataset):
    store = TargetStore.create(dataset, SPEC)
    fill(store)
    path = Path(dataset.url) / store.root / "v000" / "000000.arrow"
    data = bytearray(path.read_bytes())
    at = data.index(says(0, 0)["logits"].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    withdraw(dataset.url, "toy/s1")
    with pytest.raises(UserError, match="seal the damage") as error:
        erase(dataset.url)
    assert error.value.where == str(path)
    path.unlink()
    assert len(erase(dataset.url)) == N - 5


WRITER = """
import sys, numpy as np
sys.path.insert(0, {root!r})
from tests.shards.test_targets import *
dataset = Dataset.open({url!r})
store = TargetStore.create(dataset, SPEC)
print("ready", flush=True)
for view in range(100000):
    for unit in store.due(np.ones(N, bool), [view]):
        for part in filter(len, np.array_split(unit.rows, 3)):
            commit(store, Unit(unit.shard, unit.view, part))
"""


@pytest.mark.slow
def test_a_killed_writer_loses_only_the_unit_in_work(dataset):
    code = WRITER.format(root=str(ROOT), url=dataset.url)
    rng = np.random.default_rng(1)
    done_before: set = set()
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert child.stdout.readline() == b"ready\n"
        folder = Path(dataset.url) / SPEC_ROOT
        target = len(list(folder.rglob("*.arrow"))) + int(rng.integers(3, 40))
        while len(list(folder.rglob("*.arrow"))) < target:  # ends when the child has got that far
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        store = TargetStore.open(dataset, "wav-teacher")
        views = sorted(int(p.name[1:]) for p in folder.iterdir() if p.is_dir())
        rows, at = (a.ravel() for a in np.meshgrid(np.arange(N), views))
        states = store.state(rows, at)
        done = {(int(r), int(v)) for r, v, s in zip(rows, at, states) if s == PRESENT}
        agrees(store, rows, at, {(r, v): (PRESENT, says(r, v)) for r, v in done})
        due = {(int(r), u.view) for u in store.due(np.ones(N, bool), views) for r in u.rows}
        assert due.isdisjoint(done) and len(due) + len(done) == len(rows)
        assert done_before <= done and len(done) > len(done_before)
        done_before = done
        assert verify_targets(dataset.store, "wav-teacher", SPEC.fingerprint) == []


SPEC_ROOT = f"targets/wav-teacher/{SPEC.fingerprint}"


def test_what_is_stale_is_told_and_what_is_damaged_hides_nothing(dataset):
    other = TargetSpec("wav-teacher", OUTPUTS, {**FIELDS, "weights": "0a0b"})
    third = TargetSpec("wav-teacher", OUTPUTS, {**FIELDS, "exposure": {"fit": ["toy/s1"]}})
    stores = [TargetStore.create(dataset, spec) for spec in (SPEC, other, third)]
    for store in stores:
        fill(store)
    fingerprints = [store.fingerprint for store in stores]
    told = {info.fingerprint: info for info in list_targets(dataset)}
    assert [told[fp].twins for fp in fingerprints] == [(fingerprints[1],), (fingerprints[0],), ()]
    assert all(info.stale == "" and not info.damaged for info in told.values())
    broken = Path(dataset.url) / stores[0].root / "v000" / "000001.arrow"
    broken.write_bytes(b"no Arrow")
    for path in (Path(dataset.url) / stores[1].root / "v000").iterdir():
        path.rename(path.with_name(f"9{path.name[1:]}"))
    (Path(dataset.url) / stores[2].root / "targets.json").unlink()
    told = {info.fingerprint: info for info in list_targets(dataset)}
    assert told[fingerprints[0]].damaged == (f"{stores[0].root}/v000/000001.arrow",)
    assert told[fingerprints[0]].present["v000"] > 0 and told[fingerprints[0]].stale == ""
    assert "shards that are gone" in told[fingerprints[1]].stale
    assert "describes" in told[fingerprints[2]].stale

    from shards.verify import verify

    assert [p.file for p in verify(dataset.url)] == [f"{stores[0].root}/v000/000001.arrow"]
    assert remove(dataset, "wav-teacher", fingerprints[0]) > 0
    assert verify(dataset.url) == []
    with pytest.raises(UserError, match="no targets wav-teacher") as error:
        remove(dataset, "wav-teacher", fingerprints[0])
    assert fingerprints[1] in error.value.hint


def test_verify_reads_every_number_of_targets(dataset):
    from shards.verify import verify

    store = TargetStore.create(dataset, SPEC)
    fill(store)
    path = Path(dataset.url) / store.root / "v000" / "000000.arrow"
    data, said = path.read_bytes(), says(0, 0)["logits"].tobytes()
    at = data.index(said)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    (problem,) = verify(dataset.url)
    assert problem.file == f"{store.root}/v000/000000.arrow" and "have changed" in problem.what
