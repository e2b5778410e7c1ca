"""What erasing does to stored targets: survivors' are carried over, of the others no byte is left."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.target_list import carry, list_targets, remove, verify_targets
from shards.targets import ABSENT, PRESENT, Output, TargetSpec, TargetStore
from shards.utterance import Utterance
from shards.withdraw import erase, withdraw
from tests.shards.stored import OUTPUTS, SPEC, N, agrees, commit, fill, says


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
