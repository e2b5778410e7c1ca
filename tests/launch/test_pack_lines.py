"""launch.pack: what was left out is said aloud, verification tells faults from news, stale targets can be removed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from launch import pack as lines
from launch.display import Display
from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.targets import Output, TargetSpec, TargetStore
from tests.shards.corpus import corpus, flip


@pytest.fixture
def broken(tmp_path) -> Dataset:
    """Twelve utterances, two of them no audio, in one shard."""
    utterances = corpus(tmp_path / "src")
    for i in (3, 5):
        Path(utterances[i].audio).write_bytes(b"no audio")
    return pack(utterances, str(tmp_path / "out"))


def test_what_packing_left_out_is_counted_and_named(broken, tmp_path, capfd):
    told = lines.quarantine_lines(broken)
    assert told[0].startswith("2 utterances were left out")
    assert [line.split(":")[0].strip() for line in told[1:]] == ["toy/toy-3", "toy/toy-5"] or len(told) == 3
    assert all(line.split(":", 1)[1].strip() for line in told[1:])
    assert lines.quarantine_lines(broken, most=1)[-1].strip() == "and 1 more"
    lines.describe_dataset(broken.url, Display())
    out = "".join(capfd.readouterr())
    assert "left out" in out and " 10 " in out and " 2 " in out


def test_ser_pack_says_it(tmp_path, capfd):
    folder = tmp_path / "wav"
    made = corpus(tmp_path / "src")
    (folder / "sad").mkdir(parents=True)
    for u in made:
        shutil.copy(u.audio, folder / "sad")
    (folder / "sad" / "7.wav").write_bytes(b"no audio")
    lines.pack_corpora([f"audiofolder={folder}"], str(tmp_path / "out"), False, None, 1, Display())
    out = "".join(capfd.readouterr())
    assert "1 utterances were left out" in out and "left out" in out.replace("were left out", "")


def test_verify_tells_faults_from_news(broken, capfd):
    def spec(weights):
        return TargetSpec("teacher", (Output("y", "utterance", (2,)),), {"weights": weights})

    stores = [TargetStore.create(broken, spec(w)) for w in ("old", "new")]
    for store in stores:
        for unit in store.due(np.ones(len(broken), bool), [0]):
            store.write(unit, np.ones(len(unit.rows), np.uint8), {"y": [np.zeros(2)] * len(unit.rows)})
    assert lines.verify_dataset(broken.url, 1, Display()) == 0
    out = " ".join("".join(capfd.readouterr()).split())
    assert "2 utterances were left out" in out and ": ok" in out
    assert all(f"--remove-targets teacher/{s.fingerprint}" in out for s in stores)
    lines.remove_targets(broken.url, f"teacher/{stores[0].fingerprint}", Display())
    assert not (Path(broken.url) / stores[0].root).exists() or not any(
        p.is_file() for p in (Path(broken.url) / stores[0].root).rglob("*")
    )
    assert (Path(broken.url) / stores[1].root / "targets.json").is_file()
    for name in (f"teacher/{stores[0].fingerprint}", "teacher", "teacher/"):
        with pytest.raises(UserError):
            lines.remove_targets(broken.url, name, Display())
    flip(Path(broken.url) / "shards" / "000000.tar", 700)
    capfd.readouterr()
    assert lines.verify_dataset(broken.url, 1, Display()) >= 1
    assert "shards/000000.tar" in "".join(capfd.readouterr())
