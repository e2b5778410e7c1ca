"""A real packed dataset from a few lines: every utterance a tenth of a second of its own noise."""

from pathlib import Path

import numpy as np
import soundfile as sf

from shards.dataset import Dataset
from shards.pack import pack
from shards.utterance import Utterance, make_key


def utterances(folder: Path, rows: list[dict]) -> list[Utterance]:
    """Utterances from dicts of fields; `corpus` and `recording` have defaults, `same` shares another's audio."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, row in enumerate(rows):
        row = dict(row)
        corpus, same = row.pop("corpus", "toy"), row.pop("same", i)
        path = folder / f"{i}.wav"
        sf.write(path, np.random.default_rng(same).normal(0, 0.1, 1600).astype(np.float32), 16000)
        row.setdefault("recording", f"rec{i}")
        if row.get("text"):
            row.setdefault("text_source", "human")
        out.append(Utterance(key=make_key(corpus, f"u{i}"), corpus=corpus, audio=str(path), **row))
    return out


def packed(tmp: Path, rows: list[dict]) -> Dataset:
    """The rows packed and opened. Dataset order is not the list's: use `number` to go back."""
    return pack(utterances(tmp / "audio", rows), str(tmp / "data"), shard_seconds=2)


def number(dataset: Dataset, rows=None) -> list[int]:
    """Places in the list of dicts of dataset rows."""
    return [int(key.rsplit("-u", 1)[1]) for key in dataset.keys(rows)]


def grid(speakers=6, labels=("a", "b", "c"), repeats=2, **fields) -> list[dict]:
    """Every speaker says every label `repeats` times; even speakers are female; two speakers a session."""
    return [
        {
            "speaker": f"s{s}",
            "session": f"{s // 2}",
            "gender": "female" if s % 2 == 0 else "male",
            "label": label,
            **fields,
        }
        for s in range(speakers)
        for label in labels
        for _ in range(repeats)
    ]
