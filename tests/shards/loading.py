"""Packed tones with plans and stored targets of which every number tells its place, and batches compared bit for bit."""

import os
from pathlib import Path

import numpy as np
import soundfile
import torch

from shards.dataset import Dataset
from shards.loader import Batch
from shards.pack import pack
from shards.plan import Plan, PlanConfig
from shards.targets import PRESENT, VIEW_POLICY, Output, TargetSpec, TargetStore
from shards.utterance import Utterance
from shards.views import ViewPolicy, view_samples

N = 40


POLICY = ViewPolicy(
    count=3, seed=5, gain_db=(-6.0, 6.0), speed=(900, 1100), noise="synthetic", snr_db=(10.0, 20.0),
    crop={"policy": "random", "seconds": 0.25},
)  # fmt: skip


def pack_tones(folder: Path) -> Path:
    """40 utterances of 0.1 to 0.34 s in six shards of two corpora; every third has a text."""
    rng = np.random.default_rng(0)
    utterances = []
    for i in range(N):
        path = folder / f"{i:03d}.wav"
        tone = np.sin(np.arange(1600 + 96 * i) * (0.05 + 0.002 * i)) * 0.3
        soundfile.write(path, tone + rng.normal(0, 0.01, len(tone)), 16000, subtype="PCM_16")
        said = {"text": f"words {i}", "text_source": "human"} if i % 3 == 0 else {}
        corpus = "aa" if i % 2 else "bb"
        utterances.append(
            Utterance(
                key=f"{corpus}-{i:03d}",
                corpus=corpus,
                audio=str(path),
                recording=f"r{i}",
                speaker="s",
                **said,
            )
        )
    assert len(pack(utterances, str(folder / "dataset"), shard_seconds=1.5).shards) >= 5
    return folder / "dataset"


def planned(
    dataset: Dataset, slots: int = 4, policy: ViewPolicy | None = POLICY, pool_shards: int = 2
) -> Plan:
    config = PlanConfig(
        seed=3, slot_seconds=0.8, slots=slots, views=policy.count if policy else 0, pool_shards=pool_shards
    )
    rows = np.flatnonzero(dataset.alive)

    def durations(rows, views):
        return view_samples(policy, dataset.key_hash[rows], views, dataset.samples[rows])

    return Plan(
        dataset.key_hash, dataset.samples, dataset.shard, dataset.corpus, rows, config,
        view_samples=durations if policy else None,
    )  # fmt: skip


def stored(
    dataset: Dataset, name: str, outputs, policy: ViewPolicy | None = POLICY, views=range(4)
) -> TargetStore:
    """A store in which output values tell their row, view and place."""
    spec = TargetSpec(name, outputs, {VIEW_POLICY: (policy or ViewPolicy()).hash()})
    store = TargetStore.create(dataset, spec)
    for unit in store.due(np.ones(len(dataset), bool), views):
        arrays = {o.name: [said(o, int(r), unit.view) for r in unit.rows] for o in outputs}
        store.write(unit, np.full(len(unit.rows), PRESENT, np.uint8), arrays)
    return store


def said(output: Output, row: int, view: int) -> np.ndarray:
    shape = (row % 5 + 1, *output.shape) if output.ragged else output.shape
    return np.arange(int(np.prod(shape))).reshape(shape) + row + 100.0 * view


MEL = (Output("mel", "frame", (3,), "float16"),)


TEACHER = (Output("logits", "utterance", (4,), "float16"), Output("frames", "frame", (2,)))


def same(a: Batch, b: Batch) -> None:
    """Two batches are equal bit for bit, in every field."""
    assert canonical(a.__dict__) == canonical(b.__dict__)


def canonical(value):
    """Nested fields with arrays and tensors as (type, dtype, shape, bytes)."""
    if isinstance(value, dict):
        return {name: canonical(item) for name, item in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        return type(value).__name__, array.dtype.str, array.shape, array.tobytes()
    return value


def spoil(dataset: Dataset, row: int) -> None:
    """Overwrites the FLAC bytes of a row in its tar."""
    shard = dataset.shards[int(dataset.shard[row])]
    os.chmod(shard.url, 0o644)
    with open(shard.url, "r+b") as tar:
        tar.seek(int(dataset.offset[row]))
        tar.write(b"\xa5" * int(dataset.size[row]))
