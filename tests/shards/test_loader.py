"""Loading: every guarantee of `shards.loader` and `shards.batch`, on packed audio, plans, views and stored targets."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from shards.dataset import Dataset
from shards.errors import UserError
from shards.loader import Batch, Loader, Needs, check_views, iterate, load_slot
from shards.pack import pack
from shards.plan import Plan, PlanConfig
from shards.slots import Slot
from shards.targets import NO_INPUT, PRESENT, QUARANTINED, VIEW_POLICY, Output, TargetSpec, TargetStore
from shards.utterance import Utterance
from shards.views import ViewPolicy, apply, params, view_samples

ROOT = Path(__file__).resolve().parents[2]
N = 40
POLICY = ViewPolicy(
    count=3, seed=5, gain_db=(-6.0, 6.0), speed=(900, 1100), noise="synthetic", snr_db=(10.0, 20.0),
    crop={"policy": "random", "seconds": 0.25},
)  # fmt: skip


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """40 utterances of 0.1 to 0.34 s in six shards of two corpora; every third has a text."""
    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(0)
    utterances = []
    for i in range(N):
        path = folder / f"{i:03d}.wav"
        tone = np.sin(np.arange(1600 + 96 * i) * (0.05 + 0.002 * i)) * 0.3
        soundfile.write(path, tone + rng.normal(0, 0.01, len(tone)), 16000, subtype="PCM_16")
        said = {"text": f"words {i}", "text_source": "human"} if i % 3 == 0 else {}
        corpus = "aa" if i % 2 else "bb"
        utterances.append(
            Utterance(
                key=f"{corpus}-{i:03d}",
                corpus=corpus,
                audio=str(path),
                recording=f"r{i}",
                speaker="s",
                **said,
            )
        )
    assert len(pack(utterances, str(folder / "dataset"), shard_seconds=1.5).shards) >= 5
    return folder / "dataset"


@pytest.fixture
def dataset(packed, tmp_path) -> Dataset:
    shutil.copytree(packed, tmp_path / "dataset")
    return Dataset.open(str(tmp_path / "dataset"))


def planned(
    dataset: Dataset, slots: int = 4, policy: ViewPolicy | None = POLICY, pool_shards: int = 2
) -> Plan:
    config = PlanConfig(
        seed=3, slot_seconds=0.8, slots=slots, views=policy.count if policy else 0, pool_shards=pool_shards
    )
    rows = np.flatnonzero(dataset.alive)

    def durations(rows, views):
        return view_samples(policy, dataset.key_hash[rows], views, dataset.samples[rows])

    return Plan(
        dataset.key_hash, dataset.samples, dataset.shard, dataset.corpus, rows, config,
        view_samples=durations if policy else None,
    )  # fmt: skip


def stored(
    dataset: Dataset, name: str, outputs, policy: ViewPolicy | None = POLICY, views=range(4)
) -> TargetStore:
    """A store in which output values tell their row, view and place."""
    spec = TargetSpec(name, outputs, {VIEW_POLICY: (policy or ViewPolicy()).hash()})
    store = TargetStore.create(dataset, spec)
    for unit in store.due(np.ones(len(dataset), bool), views):
        arrays = {o.name: [said(o, int(r), unit.view) for r in unit.rows] for o in outputs}
        store.write(unit, np.full(len(unit.rows), PRESENT, np.uint8), arrays)
    return store


def said(output: Output, row: int, view: int) -> np.ndarray:
    shape = (row % 5 + 1, *output.shape) if output.ragged else output.shape
    return np.arange(int(np.prod(shape))).reshape(shape) + row + 100.0 * view


MEL = (Output("mel", "frame", (3,), "float16"),)
TEACHER = (Output("logits", "utterance", (4,), "float16"), Output("frames", "frame", (2,)))


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


def same(a: Batch, b: Batch) -> None:
    """Two batches are equal bit for bit, in every field."""
    assert canonical(a.__dict__) == canonical(b.__dict__)


def canonical(value):
    """Nested fields with arrays and tensors as (type, dtype, shape, bytes)."""
    if isinstance(value, dict):
        return {name: canonical(item) for name, item in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        return type(value).__name__, array.dtype.str, array.shape, array.tobytes()
    return value


def spoil(dataset: Dataset, row: int) -> None:
    """Overwrites the FLAC bytes of a row in its tar."""
    shard = dataset.shards[int(dataset.shard[row])]
    os.chmod(shard.url, 0o644)
    with open(shard.url, "r+b") as tar:
        tar.seek(int(dataset.offset[row]))
        tar.write(b"\xa5" * int(dataset.size[row]))


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


def test_moving_and_pickling_keep_everything_and_use_no_shared_memory(dataset):
    teacher = stored(dataset, "teacher", TEACHER)
    batch = load_slot(
        dataset, Slot(np.array([1, 2]), np.array([0, 1])), Needs(True, True, {}, {"t": teacher}), POLICY
    )
    same(batch, batch.to("cpu"))
    assert batch.to("meta").targets["t"]["logits"].device.type == "meta"
    from multiprocessing.reduction import ForkingPickler

    data = bytes(ForkingPickler.dumps(batch))
    assert b"rebuild_storage" not in data and b"torch.multiprocessing" not in data
    back = pickle.loads(data)
    same(batch, back)
    back.waveform[0, 0] = 1.0  # arrives writable


def test_boxes_carry_batches_and_notice_an_early_refill(dataset):
    from shards.parcel import Boxes

    batch = load_slot(dataset, Slot(np.arange(6), np.zeros(6, np.int64)), Needs(waveform=True))
    boxes = Boxes(workers=2, count=2)
    parcels = [boxes.pack(1, batch), boxes.pack(1, {"empty": np.zeros((0, 3))})]
    back = boxes.open(parcels[0])
    same(back, batch)
    back.waveform[0, 0] = 1.0  # writable, and the receiver's own
    same(boxes.open(parcels[0]), batch)
    assert boxes.open(parcels[1])["empty"].shape == (0, 3)
    boxes.pack(1, batch)
    with pytest.raises(AssertionError, match="filled again"):
        boxes.open(parcels[0])
    boxes.close()
    assert boxes.files == []


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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_go_away(dataset, workers):
    spoil(dataset, 11)
    mel, teacher = stored(dataset, "mel", MEL), stored(dataset, "teacher", TEACHER)
    needs = Needs(True, True, {"mel": mel}, {"t": teacher})
    plan = planned(dataset)
    stop = plan.total_steps(1)
    here = list(Loader(dataset, plan, needs, POLICY, 0, 2, 0, stop))
    there = list(Loader(dataset, plan, needs, POLICY, 0, 2, 0, stop, workers=workers))
    for (step, a), (other, b) in zip(here, there, strict=True):
        assert step == other
        for x, y in zip(a, b, strict=True):
            same(x, y)
    assert multiprocessing.active_children() == []
    taken = []

    def slots():
        for row in range(20):
            taken.append(row)
            yield Slot(np.array([row]), np.array([0]))

    batches = iterate(dataset, slots(), Needs(waveform=True), None, workers, prefetch=3)
    for i in range(4):
        assert next(batches).rows.tolist() == [i]
        assert len(taken) <= i + 1 + 3 * workers
    batches.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_an_error_in_a_worker_reads_as_if_it_were_here(dataset):
    empty = TargetStore.create(dataset, TargetSpec("mel", MEL, {VIEW_POLICY: ViewPolicy().hash()}))
    slots = [Slot(np.array([0]), np.array([0]))]
    with pytest.raises(UserError) as error:
        list(iterate(dataset, slots, Needs(features={"mel": empty}), None, workers=1))
    assert error.value.what.startswith("feature 'mel' was not computed") and "Traceback" not in str(
        error.value
    )
    assert multiprocessing.active_children() == []


CHILD = """
import itertools, json, os, sys
sys.path.insert(0, {root!r})
import numpy as np
from shards.dataset import Dataset
from shards.loader import Needs, iterate
from shards.slots import Slot

if __name__ == "__main__":
    slots = (Slot(np.arange(8) + i % 30, np.zeros(8, np.int64)) for i in itertools.count())
    batches = iterate(Dataset.open({url!r}), slots, Needs(waveform=True), None, workers=2)
    for i, batch in enumerate(batches):
        if i == 20:
            if {when!r} == "idle":
                batches.close()
            print("loading", flush=True)
        if i >= 20 and {when!r} != "loading":
            sys.stdin.read()
"""


def descendants(pid: int) -> dict[int, str]:
    """pid -> start time of all processes below one."""
    out = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        out |= {int(child): start_time(int(child))} | descendants(int(child))
    return out


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/pid/stat; None where there is no such process or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def shared_memory_of(pids) -> set[str]:
    """Files of /dev/shm that processes hold mapped or open."""
    names: set[str] = set()
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/dev/shm/" in line:
                names.add(line.split(maxsplit=5)[5].removesuffix(" (deleted)"))
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except FileNotFoundError:
                continue
            if target.startswith("/dev/shm/"):
                names.add(target.removesuffix(" (deleted)"))
    return names


@pytest.mark.slow
@pytest.mark.parametrize("when", ["loading", "stalled", "idle"])
def test_sigkill_leaves_no_process_and_no_file(dataset, tmp_path, when):
    """Killed while its workers are loading, while they wait with full queues, and when they have ended."""
    script = tmp_path / "child.py"
    # short: sockets lie below it, and their paths have at most 108 characters
    temporary = Path(tempfile.mkdtemp(prefix="ser-"))
    script.write_text(CHILD.format(root=str(ROOT), url=dataset.url, when=when))
    child = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert child.stdout.readline() == b"loading\n"
        family = descendants(child.pid)
        assert len(family) >= 2
        files = shared_memory_of([child.pid, *family])
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    deadline = time.monotonic() + 90  # on a busy machine
    left = family
    while left and time.monotonic() < deadline:
        left = {pid: t for pid, t in left.items() if t is not None and start_time(pid) == t}
        time.sleep(0.05)
    assert left == {}, json.dumps(left)
    assert [name for name in files if os.path.exists(name)] == []
    assert list(temporary.iterdir()) == []
    temporary.rmdir()
