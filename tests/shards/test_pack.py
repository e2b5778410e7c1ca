"""shards.pack, manifest, verify, withdraw: same bytes always, nothing lost, nothing leaks, damage is named."""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.audio import BadAudio, load
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import key_hash
from shards.pack import pack, plan_shards
from shards.utterance import Utterance
from shards.verify import verify
from shards.withdraw import erase, withdraw
from tests.conftest import ROOT
from tests.shards.corpus import corpus, flip, tree

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


def bad_files(folder: Path) -> dict[str, str]:
    """Broken file -> word of the reason that must be given."""
    folder.mkdir(parents=True)
    tone = 0.1 * np.sin(np.arange(8_000) / 9).astype(np.float32)
    (folder / "text.wav").write_text("this is not audio")
    soundfile.write(folder / "empty.wav", tone[:0], 16_000)
    (folder / "zero.wav").write_bytes(b"")
    nan = tone.copy()
    nan[77] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16_000, subtype="FLOAT")
    soundfile.write(folder / "hour.wav", np.zeros(3_600_000, np.int16), 1_000, subtype="PCM_U8")
    return {
        "text": "unreadable",
        "empty": "empty",
        "zero": "unreadable",
        "nan": "non-finite",
        "hour": "too long",
        "missing": "unreadable",
    }


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


def damage(out: Path) -> dict[str, tuple[str, str | None]]:
    """Name of a case -> (file that must be named, key that must be named)."""
    dataset = Dataset.open(out)
    row = dataset.row("toy-3")
    shard = f"shards/{dataset.shards[dataset.shard[row]].number:06d}.tar"
    index = f"index/{dataset.shards[dataset.shard[row]].number:06d}.parquet"
    return {"audio": (shard, "toy-3"), "json": (shard, "toy-3"), "header": (shard, "toy-3"), "cut": (shard, None),
            "gone": (shard, None), "index": (index, None), "index cut": (index, None), "index gone": (index, None),
            "plan": ("plan.arrow", None), "plan cut": ("plan.arrow", None)}  # fmt: skip


@pytest.mark.parametrize(
    "case", ["audio", "json", "header", "cut", "gone", "index", "index cut", "index gone", "plan", "plan cut"]
)
def test_verify_names_all_damage(utterances, tmp_path, case):
    out = tmp_path / "out"
    dataset = pack(utterances, out, shard_seconds=SECONDS)
    row = dataset.row("toy-3")
    file, key = damage(out)[case]
    path, offset, size = out / file, int(dataset.offset[row]), int(dataset.size[row])
    match case:
        case "audio":
            flip(path, offset + size // 2)
        case "json":
            flip(path, offset + -(-size // 512) * 512 + 512 + 20)
        case "header":
            flip(path, offset - 512)
        case "index":
            flip(path, 100)
        case "plan":
            flip(path, path.stat().st_size // 2)
        case "cut" | "index cut" | "plan cut":
            os.truncate(path, path.stat().st_size // 2)
        case _:
            path.unlink()
    problems = verify(out)
    assert problems and {problem.file for problem in problems} == {file}, problems
    if key:
        assert key in {problem.key for problem in problems}, problems
    if case == "plan cut":  # derived: opening makes it again
        assert Dataset.open(out).keys() == dataset.keys() and verify(out) == []
    if case.startswith("index"):
        (out / "plan.arrow").unlink()
        with pytest.raises(UserError, match=r"index .*(missing|damaged|rows)|damaged"):
            Dataset.open(out).keys()
    if case == "cut":
        found = dataset.audio(range(len(dataset)))
        assert any(isinstance(audio, BadAudio) for audio in found)
        assert all(isinstance(a, BadAudio) or len(a) == n for a, n in zip(found, dataset.samples))
    if case == "gone":
        with pytest.raises(UserError, match="shard is missing"):
            dataset.audio([row])


def test_damaged_manifest_is_a_user_error(utterances, tmp_path):
    pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    path = tmp_path / "out" / "dataset.json"
    whole = path.read_text()
    changed = json.loads(whole)
    changed["shards"][0]["sha256"] = "0" * 64
    for text in (whole[:100], "[]", json.dumps(changed)):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            Dataset.open(tmp_path / "out")
    path.write_text(json.dumps({**json.loads(whole), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        verify(tmp_path / "out")


KILLER = '''
"""Runs a packing job in forked children that kill themselves at their n-th write, sync, rename or deletion."""
import json, os, random, shutil, signal, sys
sys.path.insert(0, {root!r})
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import pandas  # pyarrow asks for it; once here is quicker than in every child
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
