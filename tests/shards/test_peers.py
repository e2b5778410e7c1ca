"""Unmodified peers read the shards: webdataset, datasets and Ray Data."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from shards.pack import pack
from tests.conftest import ROOT
from tests.shards.corpus import corpus


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    base = tmp_path_factory.mktemp("peers")
    dataset = pack(corpus(base / "src", "toy"), base / "out", shard_seconds=0.4)
    tars = sorted(str(path) for path in (base / "out" / "shards").iterdir())
    assert len(tars) >= 2
    return dataset, tars


def agree(dataset, found: list[tuple[str, bytes, dict]]) -> None:
    """Key, FLAC bytes and facts as a peer gave them, against the dataset."""
    assert sorted(key for key, _, _ in found) == sorted(dataset.keys())
    for key, flac, told in found:
        row = dataset.row(key)
        audio, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
        assert rate == 16_000 and np.array_equal(audio, dataset.audio([row])[0])
        assert told["key"] == key and told["text"] == dataset.fields(["text"], [row])["text"][0].as_py()


def test_webdataset(packed):
    import webdataset

    dataset, tars = packed
    samples = webdataset.WebDataset(tars, shardshuffle=False)
    agree(dataset, [(s["__key__"], s["flac"], json.loads(s["json"])) for s in samples])


@pytest.mark.slow
def test_datasets(packed, tmp_path):
    dataset, tars = packed
    # A process of its own: datasets looks for its cache when imported, and must not go to the network.
    script = """
import json, pickle, sys
from datasets import Features, List, Value, load_dataset
text, number = Value("string"), Value("float64")
facts = {name: text for name in ("key", "corpus", "recording", "speaker", "session", "language", "gender", "text",
                                 "text_source", "label", "licence")}
facts |= {name: number for name in ("start", "end", "age", "duration", "valence", "arousal", "dominance")}
facts |= {"scale": List(number), "votes": List({"label": text, "rater": text}),
          "extra": {"take": Value("int64"), "scripted": Value("bool")}}
features = Features({"__key__": text, "__url__": text, "flac": Value("binary"), "json": facts})
found = load_dataset("webdataset", data_files={"train": sys.argv[2:]}, split="train", features=features,
                     cache_dir=sys.argv[1])
pickle.dump([(row["__key__"], row["flac"], row["json"]) for row in found], open(sys.argv[1] + "/found", "wb"))
"""
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *tars],
        env=env,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    import pickle

    agree(dataset, pickle.loads((tmp_path / "found").read_bytes()))


@pytest.mark.slow
def test_ray_data(packed):
    dataset, tars = packed
    # A process of its own: Ray Data leaves threads behind.
    script = f"""
import sys, pickle
sys.path.insert(0, {str(ROOT)!r})
from cluster.session import Session
with Session(cpus=1):
    import ray
    rows = ray.data.read_webdataset(sys.argv[1:], decoder=None).take_all()
    sys.stdout.buffer.write(pickle.dumps([(r["__key__"], r["flac"], r["json"]) for r in rows]))
"""
    done = subprocess.run([sys.executable, "-c", script, *tars], capture_output=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    import pickle

    found = pickle.loads(done.stdout[done.stdout.index(b"\x80\x04") :])
    agree(
        dataset,
        [
            (key.decode() if isinstance(key, bytes) else key, flac, json.loads(text))
            for key, flac, text in found
        ],
    )
