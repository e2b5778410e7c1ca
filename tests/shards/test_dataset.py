"""shards.dataset and shards.columns: right columns, range reads, remote equals local, opening at a million rows."""

import json
import os
import pickle
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import columns, manifest
from shards.audio import BadAudio
from shards.cache import Cache
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import FORMAT, SCHEMA, index_name
from shards.pack import pack
from shards.store import Store
from shards.verify import verify
from shards.withdraw import erase, withdraw
from tests.shards.corpus import corpus, flip, s3_server, tree

SECONDS = 0.4


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    base = tmp_path_factory.mktemp("packed")
    given_ = corpus(base / "src", "toy") + corpus(base / "src", "other", 5)
    return {u.key: u for u in given_}, pack(given_, base / "out", shard_seconds=SECONDS)


def test_columns_agree_with_the_utterances(packed):
    by_key, dataset = packed
    assert dataset.corpora == ["other", "toy"] and dataset.speakers == sorted(dataset.speakers)

    def word(vocabulary, code):
        return vocabulary[code] if code >= 0 else None

    def own(corpus_name, value):
        return None if value is None else f"{corpus_name}/{value}"

    for row, key in enumerate(dataset.keys()):
        given_ = by_key[key]
        assert word(dataset.labels, dataset.label[row]) == own(given_.corpus, given_.label)
        assert word(dataset.speakers, dataset.speaker[row]) == own(given_.corpus, given_.speaker)
        assert word(dataset.recordings, dataset.recording[row]) == own(given_.corpus, given_.recording)
        assert word(dataset.languages, dataset.language[row]) == given_.language
        assert word(dataset.corpora, dataset.corpus[row]) == given_.corpus
        has = [given_.valence, given_.arousal, given_.dominance, given_.text]
        assert dataset.bits[row] == sum(bit for bit, value in zip((1, 2, 4, 8), has) if value is not None)
        shard = dataset.shards[dataset.shard[row]]
        assert shard.rows.start <= row < shard.rows.stop and shard.index == dataset.shard[row]
    kinds = {name: getattr(dataset, name).dtype for name in columns.NUMBERS}
    assert kinds == {name: np.dtype(kind.to_pandas_dtype()) for name, kind in columns.NUMBERS.items()}
    assert not any(getattr(dataset, name).flags.writeable for name in [*columns.NUMBERS, "alive"])


def test_fields_keep_the_order_asked(packed):
    by_key, dataset = packed
    rows = [7, 0, 7, 16]
    table = dataset.fields(["key", "text", "extra", "votes", "scale"], rows)
    assert table["key"].to_pylist() == dataset.keys(rows)
    for told in table.to_pylist():
        given_ = by_key[told["key"]]
        assert told["text"] == given_.text and json.loads(told["extra"]) == dict(given_.extra)
        assert told["scale"] == (list(given_.scale) if given_.scale else None)
    assert len(dataset.fields(["duration"])) == len(dataset)
    with pytest.raises(UserError, match="no column 'texts'"):
        dataset.fields(["texts"])
    with pytest.raises(UserError, match="no utterance"):
        dataset.row("toy-99")


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 16), max_size=20))
def test_audio_of_any_rows_in_any_order(packed, rows):
    _, dataset = packed
    found = dataset.audio(rows)
    assert [len(audio) for audio in found] == dataset.samples[rows].tolist()
    for row, audio in zip(rows, found):
        assert np.array_equal(audio, dataset.audio([row])[0])


def test_reading_never_walks_a_tar(packed, monkeypatch):
    _, dataset = packed
    monkeypatch.setattr("tarfile.open", None)
    assert len(Dataset.open(dataset.url).audio([3])) == 1


def test_pickle_reopens_the_same_generation(tmp_path):
    dataset = pack(corpus(tmp_path / "src"), tmp_path / "out", shard_seconds=SECONDS)
    blob = pickle.dumps(dataset)
    pack(corpus(tmp_path / "src", "more", 3), tmp_path / "out", add=True)
    again = pickle.loads(blob)
    assert len(blob) < 1_000 and again.generation == 1 and again.keys() == dataset.keys()
    assert len(Dataset.open(tmp_path / "out")) == 15


def test_damaged_audio_comes_back_as_bad_audio(tmp_path):
    dataset = pack(corpus(tmp_path / "src"), tmp_path / "out", shard_seconds=SECONDS)
    shard = tmp_path / "out" / "shards" / f"{dataset.shards[dataset.shard[4]].number:06d}.tar"
    flip(shard, int(dataset.offset[4]))  # the "fLaC" mark
    found = dataset.audio(range(len(dataset)))
    assert [i for i, audio in enumerate(found) if isinstance(audio, BadAudio)] == [4]


def test_plan_is_rebuilt_when_missing_old_or_torn(tmp_path):
    dataset = pack(corpus(tmp_path / "src"), tmp_path / "out", shard_seconds=SECONDS)
    path = tmp_path / "out" / "plan.arrow"
    whole = path.read_bytes()
    for content in (None, b"", whole[: len(whole) // 2], b"x" * len(whole), whole[:-20]):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert Dataset.open(tmp_path / "out").samples.tolist() == dataset.samples.tolist()
        assert path.read_bytes() == whole


def test_read_only_folder_keeps_its_plan_in_the_cache(tmp_path, monkeypatch):
    dataset = pack(corpus(tmp_path / "src"), tmp_path / "out", shard_seconds=SECONDS)
    (tmp_path / "out" / "plan.arrow").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    before = tree(tmp_path / "out")
    store = Store(tmp_path / "out", Cache(tmp_path / "cache"))
    assert Dataset(store).keys() == dataset.keys() == Dataset(store).keys()
    assert tree(tmp_path / "out") == before and len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(UserError, match="more than the whole cache"):
        Dataset(Store(tmp_path / "out", Cache(tmp_path / "tiny", 100)))


def test_empty_shard_of_broken_audio_only(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"no")
    good = corpus(tmp_path / "src")
    bad = [type(good[0])(key="x", corpus="a", audio=str(tmp_path / "x.wav"), recording="x")]
    dataset = pack([*bad, *good], tmp_path / "out", shard_seconds=SECONDS)
    assert dataset.shards[0].rows == slice(0, 0) and len(dataset) == len(good)
    assert len(dataset.audio(range(len(dataset)))) == len(good) and verify(tmp_path / "out") == []


@pytest.mark.slow
def test_everything_on_s3_equals_local(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    given_ = corpus(tmp_path / "src", "toy")
    local = pack(given_, tmp_path / "out", shard_seconds=SECONDS)
    with s3_server("dataset-tests") as bucket:
        url = f"{bucket}/deep/set"
        remote = pack(given_, url, shard_seconds=SECONDS)
        held = {name: remote.store.read(name) for name in remote.store.list()}
        assert held == {
            n: (tmp_path / "out" / n).read_bytes() for n in tree(tmp_path / "out") if n != "plan.arrow"
        }
        assert (remote.keys(), remote.speakers) == (local.keys(), local.speakers)
        rows = [5, 0, 11, 5]
        assert all(np.array_equal(a, b) for a, b in zip(remote.audio(rows), local.audio(rows)))
        assert verify(url) == []
        name = f"shards/{remote.shards[-1].number:06d}.tar"
        remote.store.put(name, held[name][:-1] + b"x")
        assert {p.file for p in verify(url)} == {name}  # past the cache
        remote.store.put(name, held[name])
        more = pack(corpus(tmp_path / "src", "more", 3), url, shard_seconds=SECONDS, add=True)
        assert more.generation == 2 and len(more) == 15
        remote.store.put("targets/t/fp/any/000000.arrow", b"x")
        withdraw(url, "toy/s0")
        erased = erase(url)
        assert "toy/s0" not in erased.speakers and verify(url) == []
        assert all(isinstance(a, np.ndarray) for a in erased.audio(range(len(erased))))
        left = {n for n in erased.store.list() if n.startswith("shards/")}
        assert left == {f"shards/{s.number:06d}.tar" for s in erased.shards}
        with pytest.raises(UserError, match="no dataset"):
            Dataset.open(f"{bucket}/nothing")


def test_sources_may_be_remote(tmp_path):
    given_ = corpus(tmp_path / "src", "toy", 4)
    wanted = pack(given_, tmp_path / "out")
    with s3_server("source-tests") as bucket:
        store, far = Store(bucket), []
        for utterance in given_:
            name = utterance.audio.rsplit("/", 1)[-1]
            with open(utterance.audio, "rb") as file:
                store.put(name, file.read())
            fields = {name: getattr(utterance, name) for name in type(utterance).__dataclass_fields__}
            far.append(type(utterance)(**{**fields, "audio": f"{bucket}/{name}"}))
        assert pack(far, tmp_path / "far").content_hash == wanted.content_hash
    assert tree(tmp_path / "far") == tree(tmp_path / "out")


def million(folder, shards: int, rows: int) -> None:
    """A dataset without audio: index files and dataset.json of `shards` x `rows` utterances."""
    store, entries = Store(folder), []
    for number in range(shards):
        first = number * rows
        rng = np.random.default_rng(number)
        names = pa.array([f"utterance-{i:08d}" for i in range(first, first + rows)])
        known = {
            "key": names,
            "recording": names,
            "corpus": pa.array(["big"] * rows),
            "speaker": pa.array([f"s{i % 5000}" for i in range(first, first + rows)]),
            "label": pa.array([f"l{i % 8}" for i in range(rows)]),
            "key_hash": np.sort(rng.integers(0, 2**63, rows).astype(np.uint64)),
            "samples": rng.integers(16_000, 160_000, rows),
            "offset": np.arange(rows) * 60_000,
            "size": np.full(rows, 59_000),
        }
        table = pa.table({f.name: known.get(f.name, pa.nulls(rows, f.type)) for f in SCHEMA}, schema=SCHEMA)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        store.put(index_name(number), sink.getvalue().to_pybytes())
        entries.append({"number": number, "corpus": "big", "rows": rows, "seconds": 1.0, "bytes": 0, "sha256": str(number),
                        "index_sha256": "", "quarantined": 0, "generation": 1})  # fmt: skip
    meta = {"format": FORMAT, "generation": 1, "content_hash": manifest.content_hash(entries), "shards": entries,
            "next_shard": shards, "inputs": [], "withdrawn": [], "removed": []}  # fmt: skip
    manifest.save(store, meta)


@pytest.mark.slow
def test_a_million_rows_open_at_once(tmp_path):
    million(tmp_path, shards=50, rows=20_000)
    begin = time.perf_counter()
    Dataset.open(tmp_path)
    built = time.perf_counter() - begin
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        dataset = Dataset.open(tmp_path)
        assert len(dataset) == 1_000_000 and int(dataset.samples[999_999]) > 0
        times.append(time.perf_counter() - begin)
    print(f"built in {built:.1f} s, opened in {min(times) * 1e3:.1f} ms")
    assert min(times) < 0.5
    begin = time.perf_counter()
    assert len(dataset.speakers) == 5_000 and len(dataset.recordings) == 1_000_000
    print(f"vocabularies in {time.perf_counter() - begin:.2f} s")


def test_a_slot_is_read_from_its_own_shards_index_alone(tmp_path, monkeypatch):
    """Opening and loading a slot touches no other index file, and what is kept is bounded."""
    from shards import dataset as module
    from shards.batch import Needs, load_slot
    from shards.slots import Slot

    packed_ = pack(corpus(tmp_path / "src"), tmp_path / "out", shard_seconds=SECONDS)
    assert len(packed_.shards) >= 3
    keys, texts = packed_.keys(), packed_.fields(["text"])["text"].to_pylist()
    first = packed_.shards[0].rows.stop
    rows = np.array([first, 0, first + 1, first])
    touched = []
    read = Store.read

    def spy(self, name):
        touched.append(name)
        return read(self, name)

    monkeypatch.setattr(Store, "read", spy)
    dataset = Dataset.open(tmp_path / "out")
    needs = Needs(waveform=True, text=True)
    batch = load_slot(dataset, Slot(rows, np.zeros(4, np.int64)), needs)
    assert batch.keys == [keys[r] for r in rows] and batch.text == [texts[r] for r in rows]
    own = {index_name(dataset.shards[i].number) for i in (0, 1)}
    assert {name for name in touched if name.startswith("index/")} == own
    before = len(touched)
    load_slot(dataset, Slot(rows, np.zeros(4, np.int64)), needs)
    assert len(touched) == before, "kept"
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    everywhere = np.random.default_rng(0).permutation(len(dataset))
    assert dataset.keys(everywhere) == [keys[r] for r in everywhere]
    assert len(dataset._held) == 1 and dataset.keys([]) == []
    with pytest.raises(UserError, match="no column"):
        dataset.fields(["texts"], [0])
