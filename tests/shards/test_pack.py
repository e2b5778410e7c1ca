"""Packing: the same bytes always, additions that leave old files alone, and audio that cannot be packed named and counted."""

import json
import multiprocessing
import random
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.audio import load
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import key_hash
from shards.pack import pack, plan_shards
from shards.utterance import Utterance
from shards.verify import verify
from tests.shards.bad_audio import bad_files
from tests.shards.corpus import corpus, tree

SECONDS = 0.4


@pytest.fixture
def utterances(tmp_path):
    return corpus(tmp_path / "src", "toy") + corpus(tmp_path / "src", "other", 5)


def backwards(function, items):
    return map(function, reversed(items))


def two_processes(function, items):
    # Forked after the parent's threads were started, children may hang; forkserver starts clean ones.
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        yield from pool.imap_unordered(function, items)


def test_packs_what_was_given(utterances, tmp_path):
    dataset = pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    assert len(dataset) == len(utterances) and len(dataset.shards) > 3
    by_key = {u.key: u for u in utterances}
    for row, (key, audio) in enumerate(zip(dataset.keys(), dataset.audio(range(len(dataset))))):
        wanted = np.clip(np.rint(load(by_key[key]).astype(np.float64) * 32768), -32768, 32767) / 32768
        assert np.array_equal(audio, wanted.astype(np.float32))
        assert dataset.row(key) == row and dataset.key_hash[row] == key_hash(key)
    for shard in dataset.shards:
        hashes = dataset.key_hash[shard.rows]
        assert (np.diff(hashes.astype(object)) > 0).all()
        assert len(set(dataset.corpus[shard.rows])) == 1
    meta = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert meta["corpora"]["toy"]["labels"] == {"happy": 4, "sad": 4}
    assert meta["corpora"]["other"]["utterances"] == 5 and meta["generation"] == 1
    assert verify(tmp_path / "out") == []


def test_members_are_reproducible_and_complete(utterances, tmp_path):
    pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    by_key = {u.key: u for u in utterances}
    for path in (tmp_path / "out" / "shards").iterdir():
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in members} == {
                (0, 0o444, 0, 0, "ser", "ser")
            }
            for flac, text in zip(members[::2], members[1::2]):
                told = json.loads(tar.extractfile(text).read())
                given = by_key[told["key"]]
                assert (flac.name, text.name) == (f"{given.key}.flac", f"{given.key}.json")
                assert "audio" not in told and told["duration"] == pytest.approx(load(given).size / 16_000)
                assert told["text"] == given.text and told["extra"] == dict(given.extra)
                assert told["votes"] == [{"label": v.label, "rater": v.rater} for v in given.votes]


@pytest.mark.parametrize("run", [backwards, pytest.param(two_processes, marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_workers_or_order(utterances, tmp_path, run):
    pack(utterances, tmp_path / "one", shard_seconds=SECONDS)
    pack(utterances[::-1], tmp_path / "two", shard_seconds=SECONDS, run=run)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_bytes_do_not_depend_on_where_the_corpus_lies(tmp_path):
    broken = tmp_path / "src" / "bad.wav"
    broken.parent.mkdir()
    broken.write_bytes(b"nothing")
    bad = Utterance(key="bad", corpus="toy", audio=str(broken), recording="r")
    pack([*corpus(tmp_path / "src"), bad], tmp_path / "one", shard_seconds=SECONDS)
    shutil.copytree(tmp_path / "src", tmp_path / "moved")
    moved = [replace(u, audio=u.audio.replace("/src/", "/moved/")) for u in [*corpus(tmp_path / "src"), bad]]
    pack(moved, tmp_path / "two", shard_seconds=SECONDS)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.floats(0.01, 9.0), min_size=1, max_size=40),
    border=st.floats(0.1, 20.0),
    seed=st.integers(0, 99),
)
def test_borders_follow_from_the_set_alone(lengths, border, seed):
    given_ = [
        Utterance(key=f"k{i}", corpus="ab"[i % 2], audio=f"/nowhere/{i}", recording="r", duration=x)
        for i, x in enumerate(lengths)
    ]
    specs = plan_shards(given_, border)
    shuffled = random.Random(seed).sample(given_, len(given_))
    assert [s.digest for s in plan_shards(shuffled, border)] == [s.digest for s in specs]
    assert [s.number for s in specs] == list(range(len(specs)))
    assert sorted(s.utterance.key for spec in specs for s in spec.sources) == sorted(u.key for u in given_)
    for corpus_name in "ab":
        mine = [spec for spec in specs if spec.corpus == corpus_name]
        order = [key_hash(s.utterance.key) for spec in mine for s in spec.sources]
        assert order == sorted(order)
        for i, spec in enumerate(mine):
            seconds = [s.seconds for s in spec.sources]
            assert sum(seconds[:-1]) < border and (sum(seconds) >= border or i == len(mine) - 1)


def test_same_input_again_is_no_work(utterances, tmp_path, monkeypatch):
    pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    monkeypatch.setattr("shards.pack.load", None)  # any decoding would fail
    assert pack(utterances, tmp_path / "out", shard_seconds=SECONDS).generation == 1
    assert pack(utterances[3:], tmp_path / "out", shard_seconds=SECONDS, add=True).generation == 1
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_other_input_is_refused_without_add(utterances, tmp_path):
    pack(utterances[1:], tmp_path / "out")
    with pytest.raises(UserError, match="another dataset"):
        pack(utterances, tmp_path / "out")


def test_add_leaves_old_files_alone(tmp_path):
    first, second = corpus(tmp_path / "src", "toy"), corpus(tmp_path / "src", "later", 9)
    old = pack(first, tmp_path / "out", shard_seconds=SECONDS)
    before = tree(tmp_path / "out")
    dataset = pack([*first, *second], tmp_path / "out", shard_seconds=SECONDS, add=True)
    after = tree(tmp_path / "out")
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"dataset.json", "plan.arrow"} and dataset.generation == 2
    assert dataset.keys()[: len(first)] == old.keys() and len(dataset) == 21
    assert verify(tmp_path / "out") == []
    # A run that pinned the first generation sees exactly what it saw.
    pinned = Dataset.open(tmp_path / "out", generation=1)
    assert pinned.content_hash == old.content_hash and pinned.keys() == old.keys()
    assert [pinned.labels[c] for c in pinned.label if c >= 0] == [old.labels[c] for c in old.label if c >= 0]
    with pytest.raises(UserError, match="no generation 3"):
        Dataset.open(tmp_path / "out", generation=3)
    # The very first command finds its work done, also now.
    assert pack(first, tmp_path / "out", shard_seconds=SECONDS).generation == 2


def test_add_refuses_a_changed_utterance(tmp_path):
    first = corpus(tmp_path / "src")
    pack(first, tmp_path / "out")
    with pytest.raises(UserError, match=r"toy-3.*in the dataset already") as error:
        pack([replace(first[3], label="angry")], tmp_path / "out", add=True)
    assert "000000.tar" in error.value.where and "3.wav" in error.value.where


def test_duplicate_keys_name_both_sources(utterances, tmp_path):
    twin = replace(utterances[0], key=utterances[0].key.upper(), audio="/else/where.wav")
    with pytest.raises(UserError, match="occurs twice") as error:
        pack([*utterances, twin], tmp_path / "out")
    assert utterances[0].audio in error.value.where and "/else/where.wav" in error.value.where
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", [{"extra": {"x": float("nan")}}, {"age": float("inf")}])
def test_fields_that_json_cannot_hold(utterances, tmp_path, what):
    with pytest.raises(UserError, match="cannot be stored"):
        pack([replace(utterances[0], **what)], tmp_path / "out")


def test_nothing_to_pack(tmp_path):
    with pytest.raises(UserError, match="nothing to pack"):
        pack([], tmp_path / "out")
    with pytest.raises(UserError, match="shard_seconds"):
        pack(corpus(tmp_path), tmp_path / "out", shard_seconds=0)
    with pytest.raises(UserError, match="no dataset"):
        Dataset.open(tmp_path / "out")


def test_broken_audio_is_quarantined_and_odd_audio_is_packed(tmp_path):
    folder = tmp_path / "bad"
    reasons = bad_files(folder)
    tone = 0.1 * np.sin(np.arange(19_200) / 9)
    soundfile.write(folder / "eight.wav", np.stack([tone] * 8, 1), 16_000)
    soundfile.write(folder / "fast.wav", tone, 96_000)
    odd = [
        Utterance(key=n, corpus="c", audio=str(folder / f"{n}.wav"), recording=n) for n in ("eight", "fast")
    ]
    odd.append(
        Utterance(
            key="cut",
            corpus="c",
            audio=str(folder / "hour.wav"),
            recording="hour",
            start=3_000.0,
            end=3_001.5,
        )
    )
    bad = [
        Utterance(key=n, corpus="c", audio=str(folder / f"{n}.wav"), recording=n, speaker="x")
        for n in reasons
    ]
    dataset = pack([*odd, *bad], tmp_path / "out", max_quarantined=0.9)
    assert dict(zip(dataset.keys(), dataset.samples.tolist())) == {
        "eight": 19_200,
        "fast": 3_200,
        "cut": 24_000,
    }
    found = {entry["key"]: entry["reason"] for entry in dataset.quarantined()}
    assert found.keys() == reasons.keys() and all(reasons[key] in found[key] for key in found), found
    assert dataset.meta["quarantined"] == 6 and dataset.meta["corpora"]["c"]["quarantined"] == 6
    assert verify(tmp_path / "out") == []


def test_too_much_broken_audio_fails_and_keeps_the_work(tmp_path):
    good = corpus(tmp_path / "src", count=20)
    reasons = bad_files(tmp_path / "bad")
    bad = [
        Utterance(key=n, corpus="toy", audio=str(tmp_path / "bad" / f"{n}.wav"), recording=n) for n in reasons
    ]
    with pytest.raises(UserError, match="at least 3 of 26 utterances have broken audio"):
        pack([*good, *bad], tmp_path / "out", shard_seconds=SECONDS)
    assert not (tmp_path / "out" / "dataset.json").exists()
    dataset = pack([*good, *bad], tmp_path / "out", shard_seconds=SECONDS, max_quarantined=0.5)
    assert len(dataset) == 20 and len(dataset.quarantined()) == 6
    # Two broken files are never enough, whatever the share.
    assert len(pack([good[0], *bad[:2]], tmp_path / "few")) == 1


@pytest.mark.slow
def test_real_corpus(corpora, tmp_path):
    from shards.corpora import read

    utterances = sorted(read("emodb", str(corpora / "emodb")), key=lambda u: u.key)[:60]
    dataset = pack(utterances, tmp_path / "out", shard_seconds=60)
    assert len(dataset) == 60 and verify(tmp_path / "out") == []
    # The corpus is 16-bit 16 kHz mono already: packing must not touch a sample.
    for row in range(0, 60, 7):
        source = next(u for u in utterances if u.key == dataset.keys([row])[0])
        assert np.array_equal(dataset.audio([row])[0], soundfile.read(source.audio, dtype="float32")[0])
