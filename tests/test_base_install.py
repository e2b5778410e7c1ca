"""What the base install must do: open a model and predict, read, verify and withdraw; and name the extra for the rest.

A process that cannot import the extras stands for an environment without them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from ser.models import save
from shards.dataset import Dataset
from tests import tiny
from tests.conftest import ROOT

EXTRAS = (
    "webdataset",
    "deepspeed",
    "sklearn",
    "ray",
    "optuna",
    "tensorboard",
    "matplotlib",
    "opensmile",
    "s3fs",
)
PREFIX = f"""
import importlib.machinery, sys

class Rest(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {EXTRAS!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Rest
"""


def without_extras(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run code in a process that has the base dependencies alone."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", PREFIX + code, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def ser(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """`ser ARGUMENTS` in such a process."""
    return without_extras("from launch.cli import main; sys.argv[0] = 'ser'; main()", *arguments, cwd=cwd)


PREDICT = """
import numpy as np, soundfile, torch
from ser.models import load
from shards.batch import Batch

audio, rate = soundfile.read(sys.argv[2], dtype="float32")
model, meta = load(sys.argv[1])
wave = torch.from_numpy(audio)[None]
batch = Batch(np.zeros(1, np.int64), np.zeros(1, np.int64), ["x"], torch.ones(1, dtype=torch.bool),
              torch.tensor([len(audio)]), waveform=wave)
with torch.inference_mode():
    said = model(batch)
assert said.logits.shape == (1, len(meta["classes"])) and bool(torch.isfinite(said.logits).all())
print("predicted", meta["classes"][int(said.logits.argmax())])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "hubert"])
def test_a_saved_model_is_opened_and_predicts(kind, tmp_path):
    config = tiny.CONV if kind == "conv" else tiny.HUBERT
    from ser.models import build

    classes = list(tiny.CLASSES)
    save(build(config, len(classes), False).eval(), tmp_path / "model", {"classes": classes})
    (sound, *_) = tiny.utterances(tmp_path / "wav", count=1)
    assert soundfile.info(sound.audio).samplerate == 16_000
    done = without_extras(PREDICT, tmp_path / "model", sound.audio, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] in classes


@pytest.fixture
def dataset(tiny_dataset, tmp_path) -> Path:
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.mark.slow
def test_a_dataset_is_verified_described_and_withdrawn_from(dataset, tmp_path):
    assert len(Dataset.open(str(dataset)).shards) > 1
    for arguments, expected in (
        (("verify", dataset), ": ok"),
        (("data", dataset), "tiny"),
        (("pack", "--withdraw-speaker", "tiny/s1", "--out", dataset), "is withdrawn"),
    ):
        done = ser(*arguments, cwd=tmp_path)
        assert done.returncode == 0 and expected in done.stdout + done.stderr, done.stderr[-2000:]


@pytest.mark.slow
def test_what_needs_an_extra_names_it(dataset, tmp_path):
    """Packing and erasing write shards (webdataset); whole recipes need Ray."""
    tiny.write_corpus(tmp_path / "corpus", count=4)
    before = sorted(p.name for p in (dataset / "shards").iterdir())
    packing = ser("pack", "--corpus", "manifest=corpus", "--out", "out", cwd=tmp_path)
    assert ser("pack", "--withdraw-speaker", "tiny/s1", "--out", dataset, cwd=tmp_path).returncode == 0
    erasing = ser("pack", "--erase", "--out", dataset, cwd=tmp_path)
    for done in (packing, erasing):
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
        assert "webdataset" in done.stderr and "pip install 'ser-distill[train]'" in done.stderr
    assert sorted(p.name for p in (dataset / "shards").iterdir()) == before
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}], "train": tiny.training(1),
    }  # fmt: skip
    recipe = tiny.write_recipe(tmp_path, tiny.recipe_values(tmp_path, str(tmp_path / "new"), {"m": model}))
    tiny.write_corpus(tmp_path, count=16)
    running = ser("run", recipe, cwd=tmp_path)
    assert running.returncode == 2 and "Traceback" not in running.stderr, running.stderr[-2000:]
    assert "pip install 'ser-distill[" in running.stderr
