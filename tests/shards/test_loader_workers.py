"""Loading in worker processes: the same batches, errors that read as if they were here, and nothing left behind."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UserError
from shards.loader import Loader, Needs, iterate, load_slot
from shards.slots import Slot
from shards.targets import VIEW_POLICY, TargetSpec, TargetStore
from shards.views import ViewPolicy
from tests.shards.loading import MEL, POLICY, TEACHER, pack_tones, planned, same, spoil, stored

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return pack_tones(tmp_path_factory.mktemp("packed"))


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
