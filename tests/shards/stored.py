"""A teacher whose every number follows from row, view and turn; its targets stored, and compared with a plain dictionary."""

from pathlib import Path

import numpy as np
import soundfile

from shards.dataset import Dataset
from shards.pack import pack
from shards.targets import ABSENT, PRESENT, Output, TargetSpec, TargetStore, Unit
from shards.utterance import Utterance

OUTPUTS = (
    Output("logits", "utterance", (4,)),
    Output("layers", "layer-pooled", (2, 3), "float16"),
    Output("mel", "frame", (5,), "float16"),
    Output("tokens", "token", ()),
)


FIELDS = {
    "weights": "9f86d0",
    "labels": ["angry", "happy"],
    "view_policy": "0" * 16,
    "batch": {"seconds": 60, "fp": 32},
}


SPEC = TargetSpec("wav-teacher", OUTPUTS, FIELDS, {"torch": "2.13"})


N = 20


def make(folder: Path, seed: int = 0, n: int = N) -> Dataset:
    """n utterances of 0.1 to 0.2 s in shards of about six; the seed changes the audio, not the keys."""
    rng = np.random.default_rng(seed)
    wavs = folder / f"wavs{seed}"
    wavs.mkdir(parents=True)
    utterances = []
    for i in range(n):
        path = wavs / f"{i:03d}.wav"
        soundfile.write(
            path, rng.uniform(-0.5, 0.5, 1600 + 80 * i).astype(np.float32), 16000, subtype="PCM_16"
        )
        utterances.append(
            Utterance(
                key=f"toy-{i:03d}", corpus="toy", audio=str(path), recording=f"r{i}", speaker=f"s{i % 4}"
            )
        )
    return pack(utterances, str(folder / "dataset"), shard_seconds=0.9)


def says(row: int, view: int, turn: int = 0) -> dict[str, np.ndarray]:
    """What the teacher of these tests says; a pure function."""
    rng = np.random.default_rng([row, view, turn])
    frames = int(rng.integers(0, 7))
    return {
        "logits": rng.standard_normal(4).astype(np.float32),
        "layers": rng.standard_normal((2, 3)).astype(np.float16),
        "mel": rng.standard_normal((frames, 5)).astype(np.float16),
        "tokens": rng.standard_normal(frames + 1).astype(np.float32),
    }


def commit(store: TargetStore, unit: Unit, states=None, turn: int = 0) -> np.ndarray:
    said = [says(int(row), unit.view, turn) for row in unit.rows]
    states = np.ones(len(unit.rows), np.uint8) if states is None else states
    return store.write(unit, states, {o.name: [s[o.name] for s in said] for o in store.spec.outputs})


def fill(store: TargetStore, views=(0,), wanted=None) -> None:
    wanted = np.ones(len(store.dataset), bool) if wanted is None else wanted
    for unit in store.due(wanted, views):
        commit(store, unit)


def agrees(store: TargetStore, rows, views, oracle: dict) -> None:
    """Reading equals the oracle {(row, view): (state, {name: array})}; what it does not hold is ABSENT."""
    rows, views = np.asarray(rows), np.broadcast_to(views, np.shape(rows))
    found, states = store.read(rows, views), store.state(rows, views)
    for i, at in enumerate(zip(rows.tolist(), views.tolist())):
        state, said = oracle.get(at, (ABSENT, {}))
        assert states[i] == state, at
        for o in store.spec.outputs:
            nothing = np.zeros((0, *o.shape) if o.ragged else o.shape, o.dtype)
            wanted = said[o.name] if state == PRESENT else nothing
            assert found[o.name][i].dtype == np.dtype(o.dtype)
            np.testing.assert_array_equal(found[o.name][i], wanted)
