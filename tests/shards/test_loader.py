"""Loading: every guarantee of `shards.loader` and `shards.batch`, on packed audio, plans, views and stored targets."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from shards.dataset import Dataset
from shards.errors import UserError
from shards.loader import Loader, Needs, check_views, iterate, load_slot
from shards.slots import Slot
from shards.targets import NO_INPUT, PRESENT, QUARANTINED, VIEW_POLICY, Output, TargetSpec, TargetStore
from shards.views import apply, params, view_samples
from tests.shards.loading import MEL, POLICY, TEACHER, N, pack_tones, planned, said, same, spoil, stored


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return pack_tones(tmp_path_factory.mktemp("packed"))


def from_tar(dataset: Dataset) -> dict[str, np.ndarray]:
    """Every utterance decoded by other means: the standard library's tar reader and soundfile."""
    out = {}
    for shard in dataset.shards:
        with tarfile.open(shard.url) as tar:
            for member in tar:
                if member.name.endswith(".flac"):
                    out[member.name[:-5]] = soundfile.read(
                        io.BytesIO(tar.extractfile(member).read()), dtype="float32"
                    )[0]
    return out


def test_waveforms_are_the_views_of_what_the_tars_hold(dataset):
    slot = Slot(np.array([7, 0, 31, 7, 12]), np.array([0, 1, 2, 3, 0]))
    batch = load_slot(dataset, slot, Needs(waveform=True), POLICY)
    sources = from_tar(dataset)
    assert (
        len(batch) == 5
        and batch.keys == dataset.keys(slot.rows)
        and batch.present.all()
        and not batch.quarantined
    )
    assert batch.waveform.dtype == torch.float32 and batch.waveform.shape == (5, int(batch.lengths.max()))
    assert batch.text is None and not batch.features and not batch.targets
    for i, (key, row, view) in enumerate(zip(batch.keys, slot.rows, slot.views)):
        wanted = apply(
            POLICY, sources[key], params(POLICY, int(dataset.key_hash[row]), int(view), len(sources[key]))
        )
        assert batch.lengths[i] == len(wanted)
        np.testing.assert_array_equal(batch.waveform[i, : len(wanted)].numpy(), wanted)
        assert not batch.waveform[i, len(wanted) :].any()
    plain = load_slot(dataset, Slot(slot.rows, np.zeros(5, np.int64)), Needs(waveform=True))
    for i, key in enumerate(plain.keys):
        np.testing.assert_array_equal(plain.waveform[i, : plain.lengths[i]].numpy(), sources[key])


def test_text_features_and_targets_without_touching_audio(dataset, monkeypatch):
    mel, teacher = stored(dataset, "mel", MEL), stored(dataset, "teacher", TEACHER)
    monkeypatch.setattr(Dataset, "flac", None)
    slot = Slot(np.array([3, 39, 10, 3]), np.array([1, 0, 3, 2]))
    batch = load_slot(dataset, slot, Needs(text=True, features={"mel": mel}, targets={"t": teacher}), POLICY)
    assert batch.waveform is None
    by_key = dict(zip(dataset.keys(), dataset.fields(["text"])["text"].to_pylist()))
    assert batch.text == [by_key[key] for key in batch.keys] and {None} < set(by_key.values())
    assert (
        batch.lengths.tolist()
        == view_samples(POLICY, dataset.key_hash[slot.rows], slot.views, dataset.samples[slot.rows]).tolist()
    )
    assert batch.features["mel"].dtype == torch.float32 and batch.features["mel"].shape == (4, 5, 3)
    assert batch.targets["t"]["logits"].dtype == torch.float32
    for i, (row, view) in enumerate(zip(slot.rows.tolist(), slot.views.tolist())):
        frames = said(MEL[0], row, view)
        assert batch.feature_lengths["mel"][i] == len(frames)
        np.testing.assert_array_equal(batch.features["mel"][i, : len(frames)], frames)
        assert not batch.features["mel"][i, len(frames) :].any()
        np.testing.assert_array_equal(batch.targets["t"]["logits"][i], said(TEACHER[0], row, view))
        length = int(batch.target_lengths["t"]["frames"][i])
        np.testing.assert_array_equal(batch.targets["t"]["frames"][i, :length], said(TEACHER[1], row, view))
    assert batch.target_present["t"].all()


def test_a_row_without_targets_stays_and_one_without_features_is_named(dataset):
    spec = TargetSpec("part", TEACHER[:1], {VIEW_POLICY: POLICY.hash()})
    part, mel = (
        TargetStore.create(dataset, spec),
        TargetStore.create(dataset, TargetSpec("mel", MEL, spec.fields)),
    )
    for unit in part.due(np.ones(N, bool), [0])[:1]:
        part.write(unit, np.ones(len(unit.rows), np.uint8), {"logits": [np.ones(4)] * len(unit.rows)})
    unit = mel.due(np.ones(N, bool), [0])[0]
    states = np.full(len(unit.rows), PRESENT, np.uint8)
    states[1:3] = QUARANTINED, NO_INPUT
    mel.write(unit, states, {"mel": [np.ones((2, 3))] * len(unit.rows)})
    needs = Needs(waveform=True, features={"mel": mel}, targets={"p": part})
    batch = load_slot(dataset, Slot(unit.rows, np.zeros(len(unit.rows), np.int64)), needs, POLICY)
    assert batch.present.tolist() == [True, False, False] + [True] * (len(unit.rows) - 3)
    assert batch.quarantined == [
        (batch.keys[1], "feature mel: quarantined"),
        (batch.keys[2], "feature mel: no input"),
    ]
    assert not batch.waveform[1:3].any() and batch.feature_lengths["mel"][1:3].tolist() == [0, 0]
    other = load_slot(dataset, Slot(np.array([N - 1]), np.array([0])), Needs(targets={"p": part}), POLICY)
    assert (
        other.present.all() and not other.target_present["p"].any() and not other.targets["p"]["logits"].any()
    )
    with pytest.raises(UserError, match="'mel' was not computed for view 0 of"):
        load_slot(dataset, Slot(np.array([N - 1]), np.array([0])), needs, POLICY)


def test_broken_audio_keeps_its_place_with_zeros_of_its_planned_length(dataset):
    spoil(dataset, 11)
    slot = Slot(np.array([4, 11, 20]), np.array([0, 2, 1]))
    mel = stored(dataset, "mel", MEL)
    batch = load_slot(dataset, slot, Needs(waveform=True, features={"mel": mel}), POLICY)
    assert batch.present.tolist() == [True, False, True]
    assert not batch.waveform[1].any() and not batch.features["mel"][1].any()
    assert batch.lengths[1] == view_samples(POLICY, dataset.key_hash[11:12], 2, dataset.samples[11:12])[0]
    [(key, reason)] = batch.quarantined
    assert key == dataset.keys([11])[0] and reason.startswith("unreadable")
    assert load_slot(dataset, slot, Needs(), POLICY).present.all()  # nobody listened


def test_empty_slots_give_empty_batches(dataset):
    mel, teacher = stored(dataset, "mel", MEL), stored(dataset, "teacher", TEACHER)
    nothing = Slot(np.zeros(0, np.int64), np.zeros(0, np.int64))
    batch = load_slot(dataset, nothing, Needs(True, True, {"mel": mel}, {"t": teacher}), POLICY)
    assert len(batch) == 0 and batch.keys == [] and batch.text == []
    assert batch.waveform.shape == (0, 0) and batch.features["mel"].shape == (0, 0, 3)
    assert batch.targets["t"]["logits"].shape == (0, 4) and batch.target_present["t"].shape == (0,)


@pytest.mark.parametrize("slots", [4, 6])
def test_any_world_loads_the_batches_of_world_one(dataset, slots):
    plan = planned(dataset, slots=slots)
    needs = Needs(waveform=True)
    stop = plan.total_steps(2)
    alone = dict(Loader(dataset, plan, needs, POLICY, 0, 1, 0, stop))
    assert sorted(alone) == list(range(stop)) and all(len(batches) == slots for batches in alone.values())
    heard = Counter(key for batches in alone.values() for batch in batches for key in batch.keys)
    assert heard == dict.fromkeys(dataset.keys(), 2)
    for world in (w for w in range(2, slots + 1) if slots % w == 0):
        ranks = [dict(Loader(dataset, plan, needs, POLICY, r, world, 0, stop)) for r in range(world)]
        for step in range(stop):
            for slot in range(slots):
                same(ranks[slot % world][step][slot // world], alone[step][slot])
    with pytest.raises(UserError, match="do not divide"):
        Loader(dataset, plan, needs, POLICY, 0, slots + 1, 0, stop)


def test_starting_anywhere_reads_only_what_it_yields(dataset, monkeypatch):
    plan = planned(dataset)
    stop = plan.total_steps(3)
    whole = list(Loader(dataset, plan, Needs(waveform=True), POLICY, 1, 2, 0, stop))
    read: list[int] = []
    flac = Dataset.flac
    monkeypatch.setattr(Dataset, "flac", lambda self, rows: read.extend(rows) or flac(self, rows))
    for start in range(stop):
        read.clear()
        batches = iter(Loader(dataset, plan, Needs(waveform=True), POLICY, 1, 2, start, stop))
        begun, first = next(batches)
        assert begun == start and sorted(read) == sorted(
            set(np.concatenate([np.unique(b.rows) for b in first]))
        )
        assert len(read) == sum(len(np.unique(b.rows)) for b in first)
        for (step, got), (expected_step, expected) in zip(
            [(begun, first), *batches], whole[start:], strict=True
        ):
            assert step == expected_step
            for a, b in zip(got, expected, strict=True):
                same(a, b)


def test_the_global_random_state_is_left_alone_and_reading_ahead_is_bounded(dataset):
    before = torch.get_rng_state()
    taken = []

    def slots():
        for row in range(20):
            taken.append(row)
            yield Slot(np.array([row]), np.array([0]))

    batches = iterate(dataset, slots(), Needs(), None)
    for i in range(3):
        assert next(batches).rows.tolist() == [i] and len(taken) == i + 1
    batches.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_of_other_views_are_refused(dataset):
    store = TargetStore.create(dataset, TargetSpec("t", TEACHER, {VIEW_POLICY: "f" * 16}))
    unmarked = TargetStore.create(dataset, TargetSpec("u", TEACHER, {}))
    for needs in (Needs(targets={"t": store}), Needs(features={"t": store}), Needs(targets={"u": unmarked})):
        with pytest.raises(UserError, match=f"wanted {POLICY.hash()}"):
            check_views(needs, POLICY)
        with pytest.raises(UserError, match="computed on other views"):
            Loader(dataset, planned(dataset), needs, POLICY, 0, 1, 0, 1)
    free = TargetStore.create(dataset, TargetSpec("v", TEACHER, {}, view_invariant=True))
    check_views(Needs(targets={"v": free}), POLICY)


def test_which_frames_are_the_feature(dataset):
    two = TargetStore.create(
        dataset, TargetSpec("two", (*MEL, Output("pros", "frame", (25,))), {VIEW_POLICY: POLICY.hash()})
    )
    nothing = Slot(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert load_slot(dataset, nothing, Needs(features={"pros": two}), POLICY).features["pros"].shape == (
        0,
        0,
        25,
    )
    with pytest.raises(UserError, match="which output"):
        load_slot(dataset, nothing, Needs(features={"x": two}), POLICY)
