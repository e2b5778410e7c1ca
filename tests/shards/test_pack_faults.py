"""Packing that is killed, stopped or short of space: the same command gives the same bytes, and nothing half-done is believed."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.verify import verify
from tests.conftest import ROOT
from tests.shards.corpus import corpus, tree

SECONDS = 0.4


@pytest.fixture
def utterances(tmp_path):
    return corpus(tmp_path / "src", "toy") + corpus(tmp_path / "src", "other", 5)


KILLER = '''
"""Runs a packing job in forked children that kill themselves at their n-th write, sync, rename or deletion."""
import json, os, random, shutil, signal, sys
sys.path.insert(0, {root!r})
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import pandas, webdataset.writer  # asked for by pyarrow and by packing; once here is quicker than in every child
from shards import pack as packing, store as storing, targets, withdraw as withdrawing
from tests.shards.corpus import corpus

base, scenario, points = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
given = corpus(base / "src", "toy", 8)
more = corpus(base / "src", "later", 5)

def job(out):
    if scenario == "pack":
        packing.pack(given, out, shard_seconds=0.4)
    elif scenario == "add":
        packing.pack(more, out, shard_seconds=0.4, add=True)
    else:
        withdrawing.withdraw(out, "toy/s1")
        withdrawing.erase(out)

def prepare(out):
    if scenario == "pack":
        return
    dataset = packing.pack(given, out, shard_seconds=0.4)
    spec = targets.TargetSpec("teacher", (targets.Output("y", "frame", (3,)),))
    store = targets.TargetStore.create(dataset, spec)
    for unit in store.due(np.ones(len(dataset), bool), [0, 1]):
        said = [np.full((2 + row % 3, 3), row + 100 * unit.view, np.float32) for row in unit.rows]
        store.write(unit, np.ones(len(said), np.uint8), {{"y": said}})

def forked(function, *args):
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def arm(at, log):
    count = [0]
    def tick(what):
        count[0] += 1
        if log:
            with open(log, "a") as file:
                file.write(what + "\\n")
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
    def around(name, original):
        def wrapped(*args, **kwargs):
            tick("before " + name)
            result = original(*args, **kwargs)
            tick("after " + name)
            return result
        return wrapped
    real_create = storing.Store.create
    @contextmanager
    def create(self, name):
        with real_create(self, name) as file:
            class Halves:  # every write can die in its middle
                def write(self, data):
                    half = len(data) // 2
                    file.write(data[:half])
                    file.flush()
                    tick("half of " + name.rsplit("/")[0])
                    return half + file.write(data[half:])
            yield Halves()
    storing.Store.create = create
    for name in ("replace", "fsync", "unlink"):
        setattr(os, name, around(name, getattr(os, name)))

def armed(at, log, out):
    arm(at, log)
    job(out)

whole = base / "whole"
assert forked(prepare, whole) == 0
assert forked(armed, -1, base / "log", whole) == 0
events = (base / "log").read_text().splitlines()
total = len(events)
# One of each kind of event for certain (the last: those of the commit), and a seeded sample of the others.
chosen = set({{what: at for at, what in enumerate(events, 1)}}.values())
chosen |= set(random.Random(scenario).sample(range(1, total + 1), min(points, total)))
chosen = sorted(chosen)
for at in chosen:
    out = base / f"killed-{{at}}"
    assert forked(prepare, out) == 0
    assert forked(armed, at, None, out) == -signal.SIGKILL, at
    assert forked(job, out) == 0, at
print(json.dumps([events, chosen]))
'''


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["pack", "add", "erase"])
def test_kill_anywhere_then_the_same_command_gives_the_same_bytes(tmp_path, scenario):
    script = tmp_path / "killer.py"
    script.write_text(KILLER.format(root=str(ROOT)))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), scenario, "8"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    events, chosen = json.loads(done.stdout.splitlines()[-1])
    assert {"half of shards", "half of index", "half of dataset.json", "after replace"} <= {
        events[at - 1] for at in chosen
    }
    assert scenario != "erase" or "half of targets" in {events[at - 1] for at in chosen}
    wanted = tree(tmp_path / "whole")
    for at in chosen:
        assert tree(tmp_path / f"killed-{at}") == wanted, (
            f"killed at event {at}, {events[at - 1]}, of {len(events)}"
        )


def test_finished_shards_are_not_made_again(utterances, tmp_path, monkeypatch):
    def stops(function, items):
        yield from map(function, items[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(utterances, tmp_path / "out", shard_seconds=SECONDS, run=stops)
    assert not (tmp_path / "out" / "dataset.json").exists()
    made = []
    dataset = pack(
        utterances, tmp_path / "out", shard_seconds=SECONDS, progress=lambda r, *_: made.append(r.written)
    )
    assert made == [False, False] + [True] * (len(dataset.shards) - 2)
    # Leavings of another plan are removed, and never taken for shards of this one.
    with pytest.raises(KeyboardInterrupt):
        pack(utterances, tmp_path / "two", shard_seconds=0.1, run=lambda f, items: stops(f, items * 2))
    assert len(tree(tmp_path / "two")) == 4
    pack(utterances, tmp_path / "three", shard_seconds=0.01)
    (tmp_path / "three" / "dataset.json").unlink()
    assert len(tree(tmp_path / "three")) > len(tree(tmp_path / "out"))
    for name in ("two", "three"):
        pack(utterances, tmp_path / name, shard_seconds=SECONDS)
        assert tree(tmp_path / name) == tree(tmp_path / "out")


def test_an_index_never_vouches_for_a_later_tar(utterances, tmp_path, monkeypatch):
    """Killed between tar and index of other labels of equal length, the first labels' index must not be believed."""

    def dies(*_):
        raise KeyboardInterrupt

    changed = [replace(u, label="angry" if u.label == "happy" else u.label) for u in utterances]
    pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    (tmp_path / "out" / "dataset.json").unlink()
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "out" / "shards").iterdir()}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shards.pack.write_index", dies)
        pack(changed, tmp_path / "out", shard_seconds=SECONDS)
    assert sizes == {p.name: p.stat().st_size for p in (tmp_path / "out" / "shards").iterdir()}
    dataset = pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    assert "toy/happy" in dataset.labels and verify(tmp_path / "out") == []


def test_full_disk_is_a_user_error_and_resumable(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        utterances = corpus(tmp_path / "src", count=60)
        with pytest.raises(UserError, match="no space left"):
            pack(utterances, disk / "out", shard_seconds=SECONDS)
        assert not (disk / "out" / "dataset.json").exists()
        assert not [p for p in disk.rglob("*") if p.name.startswith(".tmp")]
        with pytest.raises(UserError, match="no dataset"):
            Dataset.open(disk / "out")
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert len(pack(utterances, disk / "out", shard_seconds=SECONDS)) == 60
        pack(utterances, tmp_path / "whole", shard_seconds=SECONDS)
        assert tree(disk / "out") == tree(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)
