"""The packing of a recipe's corpora: what came is added, what changed is refused, what was merely moved about is kept."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from launch.display import Display
from launch.packing import pack_stage
from launch.runner import Line, Runner
from ser.recipe import load
from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.withdraw import erase, withdraw
from tests import tiny
from tests.shards.corpus import tree

MODEL = {"role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}], "train": tiny.training(1)}  # fmt: skip


def write(folder: Path, name: str, count: int = 12, seed: int = 0) -> Path:
    """A corpus of one manifest."""
    tiny.write_corpus(folder, count=count, seed=seed)
    edit(folder, lambda row: row | {"key": row["key"].replace("tiny", name), "corpus": name})
    return folder


def edit(corpus: Path, change) -> None:
    """Rewrite every row of a corpus's manifest; a row that becomes None is left out."""
    path = corpus / "manifest.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))


class Packing:
    """A recipe over corpora in `folder`, packed again and again."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "dataset"
        self.named: list[str] = []  # in the protocol

    def __call__(self, *names: str, **data) -> Line:
        corpora = [
            {"reader": "manifest", "root": str(self.folder / name), "options": {"corpus": name}}
            for name in names
        ]
        values = tiny.recipe_values(self.folder, str(self.out), {"student": MODEL})
        values["protocol"]["corpora"] = self.named
        values["data"] |= {"corpora": corpora, "shard_seconds": 3.0} | data
        runner = Runner(load(str(tiny.write_recipe(self.folder, values))), Display(quiet=True), alone=True)
        pack_stage(runner)
        return runner.lines[-1]

    def shards(self) -> dict[str, str]:
        return {
            name: digest for name, digest in tree(self.out).items() if name.startswith(("shards", "index"))
        }

    def refuses(self, *words: str) -> str:
        before = tree(self.out)
        with pytest.raises(UserError) as error:
            self("one")
        message = str(error.value)
        assert all(word in message for word in (*words, str(self.folder / "one"), "data.path=")), message
        assert tree(self.out) == before
        return message


@pytest.fixture
def packing(tmp_path) -> Packing:
    write(tmp_path / "one", "one")
    packing = Packing(tmp_path)
    assert packing("one").made > 1
    return packing


def test_a_corpus_that_was_copied_or_touched_is_the_same(packing):
    before = packing.shards()
    assert (line := packing("one")).made == 0 and line.kept == 1
    for path in (packing.folder / "one").rglob("*"):
        os.utime(path, (1, 1))
    assert packing("one").made == 0
    shutil.copytree(packing.folder / "one", packing.folder / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(packing.folder / "one")
    (packing.folder / "copy").rename(packing.folder / "one")
    edit(packing.folder / "one", lambda row: dict(reversed(row.items())))
    assert packing("one").made == 0 and packing.shards() == before


def test_while_no_file_changed_none_is_opened(packing, monkeypatch):
    monkeypatch.setattr("shards.corpora.read", None)
    assert packing("one").kept == 1


def test_an_edited_manifest_is_refused_by_utterance_and_field(packing):
    edit(packing.folder / "one", lambda row: row | ({"label": "calm"} if row["key"] == "one-u003" else {}))
    assert "one-u003: label" in packing.refuses("1 utterances changed")
    assert "gone" not in packing.refuses()


@pytest.mark.parametrize("longer", [0, 800])
def test_replaced_audio_is_refused_even_where_its_size_is_the_same(packing, longer):
    path = packing.folder / "one" / "wav" / "u005.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, np.concatenate([0.5 * samples, np.zeros(longer)]), rate, subtype="PCM_16")
    packing.refuses("one-u005: audio")


def test_what_was_taken_away_is_refused(packing):
    edit(packing.folder / "one", lambda row: None if row["key"] == "one-u007" else row)
    packing.refuses("1 are gone (one-u007)")


def test_a_corpus_that_can_no_longer_be_read_is_refused(packing):
    (packing.folder / "one" / "wav" / "u002.wav").unlink()
    packing.refuses("no longer what was packed", "1 audio files are missing")


def test_a_corpus_that_is_not_there_any_more_stands_as_it_was_packed(packing):
    write(packing.folder / "two", "two")
    shutil.rmtree(packing.folder / "one")
    assert packing("one").kept == 1
    assert packing("one", "two").made and sorted(Dataset.open(packing.out).corpora) == ["one", "two"]
    with pytest.raises(UserError, match="there is no manifest"):
        packing("one", "three")


def test_what_came_is_added_and_no_old_shard_changes(packing):
    before = packing.shards()
    write(packing.folder / "two", "two", seed=1)
    line = packing("one", "two")
    assert line.made and "12 utterances added" in line.note
    after = packing.shards()
    assert before.items() <= after.items() and len(after) > len(before)
    assert sorted(Dataset.open(packing.out).corpora) == ["one", "two"]
    assert packing("one", "two").made == packing("one").made == packing("two").made == 0
    write(packing.folder / "one", "one", count=16)
    # The sixteen utterances are drawn from the same stream, so the first twelve are the same.
    assert "4 utterances added" in packing("one", "two").note
    assert after.items() <= packing.shards().items() and len(Dataset.open(packing.out)) == 28


def test_what_a_recipe_no_longer_names_is_told_unless_the_protocol_chooses(packing, capfd):
    write(packing.folder / "two", "two")
    packing("one", "two")
    assert "warning" not in capfd.readouterr().err
    for named, warned in (([], 1), (["one"], 0), ([], 1)):
        packing.named = named
        packing("one")
        told = " ".join(capfd.readouterr().err.split())
        assert told.count("holds 12 utterances that no corpus of this recipe gave") == warned


def test_a_corpus_that_lies_elsewhere_and_lacks_some_is_refused(packing):
    shutil.copytree(packing.folder / "one", packing.folder / "cut")
    edit(packing.folder / "cut", lambda row: None if row["key"] == "one-u007" else row)
    with pytest.raises(UserError, match=r"1 are gone \(one-u007\)"):
        packing("cut")


def test_a_dataset_that_another_command_packed_is_known_by_its_utterances(tmp_path):
    write(tmp_path / "one", "one")
    write(tmp_path / "two", "two")
    packing = Packing(tmp_path)
    from shards.corpora import read

    pack(read("manifest", str(tmp_path / "one"), corpus="one"), str(packing.out), shard_seconds=3.0)
    before = packing.shards()
    assert packing("one").made == 0
    (packing.out / ".recipe").unlink()
    assert packing("one", "two").made and before.items() <= packing.shards().items()
    (packing.out / ".recipe").unlink()
    edit(tmp_path / "one", lambda row: row | {"key": row["key"] + "x"})
    packing.refuses("12 are gone")


def test_a_withdrawn_speaker_may_leave_the_corpus_too(packing):
    withdraw(str(packing.out), "one/s1")
    assert packing("one").made == 0
    edit(packing.folder / "one", lambda row: None if row["speaker"] == "s1" else row)
    assert packing("one").made == 0
    erase(str(packing.out))
    os.utime(packing.folder / "one" / "manifest.jsonl", (1, 1))
    assert packing("one").made == 0
    assert "one/s1" not in Dataset.open(packing.out).speakers


def test_the_longest_utterance_is_the_recipes_to_say(packing, tmp_path, capfd):
    long = [path for path in (tmp_path / "one" / "wav").iterdir() if soundfile.info(path).duration > 0.6]
    assert 3 <= len(long) < 12
    limits = {"path": str(tmp_path / "short"), "max_seconds": 0.6, "max_quarantined": 1.0}
    assert packing("one", **limits).made
    assert len(Dataset.open(tmp_path / "short")) == 12 - len(long)
    told = " ".join(capfd.readouterr().err.split())
    assert f"{len(long)} utterances were left out" in told and f"{len(long)} are too long: pack anew" in told
    with pytest.raises(UserError, match=r"packed with data.max_seconds=0.6, and this recipe says 120"):
        packing("one", path=str(tmp_path / "short"))


def test_other_options_are_refused_by_name(packing):
    with pytest.raises(UserError, match=r"packed with data.shard_seconds=3, and this recipe says 4") as error:
        packing("one", shard_seconds=4)
    assert "data.shard_seconds=3 uses it as it is" in error.value.hint
