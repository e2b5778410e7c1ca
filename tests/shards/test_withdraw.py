"""Withdrawal is a tombstone; erasure removes audio, rows and targets, and neither comes back."""

from pathlib import Path

import pytest

from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import key_hash
from shards.pack import pack
from shards.utterance import Utterance
from shards.verify import verify
from shards.withdraw import erase, withdraw
from tests.shards.bad_audio import bad_files
from tests.shards.corpus import corpus, tree

SECONDS = 0.4


@pytest.fixture
def utterances(tmp_path):
    return corpus(tmp_path / "src", "toy") + corpus(tmp_path / "src", "other", 5)


def test_withdrawal_is_a_tombstone(utterances, tmp_path):
    old = pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    before = tree(tmp_path / "out")
    dataset = withdraw(tmp_path / "out", "toy/s1")
    after = tree(tmp_path / "out")
    assert {name for name in after if before.get(name) != after[name]} == {"dataset.json"}
    gone = [u.key for u in utterances if (u.corpus, u.speaker) == ("toy", "s1")]
    assert dataset.keys() == old.keys() and gone
    assert [key for key, alive in zip(dataset.keys(), dataset.alive) if not alive] == sorted(
        gone, key=key_hash
    )
    assert old.alive.all() and Dataset.open(tmp_path / "out", generation=1).alive.all()
    assert withdraw(tmp_path / "out", "toy/s1").generation == 2
    with pytest.raises(UserError, match="no speaker 'toy/s9'") as error:
        withdraw(tmp_path / "out", "toy/s9")
    assert "toy/s" in error.value.hint


def test_erase_removes_audio_rows_and_targets(utterances, tmp_path):
    out = tmp_path / "out"
    old = pack(utterances, out, shard_seconds=SECONDS)
    secret = [
        old.flac([row])[0] for row in range(len(old)) if old.speaker[row] == old.speakers.index("toy/s1")
    ]
    touched = {int(old.shard[r]) for r in range(len(old)) if old.speaker[r] == old.speakers.index("toy/s1")}
    for shard in old.shards:
        old.store.put(f"targets/t/0123/v003/{shard.number:06d}.arrow", b"target")
    withdraw(out, "toy/s1")
    dataset = erase(out)
    assert dataset.generation == 3 and dataset.alive.all() and "toy/s1" not in dataset.speakers
    kept = {u.key for u in utterances if (u.corpus, u.speaker) != ("toy", "s1")}
    assert set(dataset.keys()) == kept and verify(out) == []
    numbers = {shard.number for shard in dataset.shards}
    assert not numbers & touched and min(numbers - {s.number for s in old.shards}) >= len(old.shards)
    left = {int(Path(name).stem) for name in dataset.store.list("targets")}
    assert left == {s.number for s in old.shards} - touched
    for path in out.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(flac in data for flac in secret), path
    with pytest.raises(UserError, match="erased"):
        Dataset.open(out, generation=1)
    # Neither the old command nor an addition brings the speaker back.
    assert pack(utterances, out, shard_seconds=SECONDS).generation == 3
    more = corpus(tmp_path / "src", "toy", 14)
    added = pack(more, out, shard_seconds=SECONDS, add=True)
    assert {u.key for u in more if u.speaker != "s1"} <= set(added.keys()) and "toy/s1" not in added.speakers
    again = tree(out)
    erase(out)
    assert tree(out) == again


def test_a_speaker_with_broken_audio_only_can_be_erased(tmp_path):
    bad_files(tmp_path / "bad")
    bad = Utterance(
        key="text", corpus="toy", audio=str(tmp_path / "bad" / "text.wav"), recording="r", speaker="bob"
    )
    pack([*corpus(tmp_path / "src"), bad], tmp_path / "out")
    withdraw(tmp_path / "out", "toy/bob")
    dataset = erase(tmp_path / "out")
    assert dataset.quarantined() == [] and len(dataset) == 12 and verify(tmp_path / "out") == []
