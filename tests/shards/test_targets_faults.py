"""Stored targets after kills and damage: one unit is lost at most, and every wrong number is named."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UserError
from shards.target_list import list_targets, remove, verify_targets
from shards.targets import PRESENT, TargetSpec, TargetStore
from tests.shards.stored import FIELDS, OUTPUTS, SPEC, N, agrees, fill, says

ROOT = Path(__file__).resolve().parents[2]


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


WRITER = """
import sys, numpy as np
sys.path.insert(0, {root!r})
from shards.dataset import Dataset
from shards.targets import TargetStore, Unit
from tests.shards.stored import N, SPEC, commit
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
