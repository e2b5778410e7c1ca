"""A tiny real dataset of synthetic tones, packed by `shards.pack`, and recipes over it.

Eight speakers in four sessions, four classes; pitch follows arousal and a word follows valence, so that models of a
second's training have something to learn. Nothing here is speech.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import yaml

from shards.pack import pack
from shards.utterance import Utterance, Vote

CLASSES = ("angry", "happy", "sad", "calm")
WORDS = {"angry": "bad awful", "sad": "bad grey", "happy": "good bright", "calm": "good soft"}
RATE = 16_000

CONV = {"kind": "conv", "width": 8, "blocks": 1, "bands": 20, "strides": [3, 2], "features": "online"}
BERT = {
    "kind": "linguistic",
    "config": {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    },
}  # fmt: skip
HUBERT = {
    "kind": "acoustic",
    "freeze": "none",
    "config": {
        "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "conv_dim": [16, 16], "conv_stride": [20, 16], "conv_kernel": [20, 16],
        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
        "hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1,
    },
}  # fmt: skip


def utterances(folder: Path, count: int = 64, speakers: int = 8, seed: int = 0) -> list[Utterance]:
    """Write `count` wav files of 0.3 to 0.9 s and describe them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        label = CLASSES[(i // speakers) % 4]
        speaker = i % speakers
        seconds = 0.3 + 0.6 * rng.random()
        t = np.arange(int(seconds * RATE)) / RATE
        high, positive = label in ("angry", "happy"), label in ("happy", "calm")
        pitch = (300 if high else 150) * (1 + 0.05 * speaker)
        audio = 0.2 * np.sin(2 * np.pi * pitch * t) + 0.02 * rng.standard_normal(len(t))
        path = folder / f"u{i:03d}.wav"
        sf.write(path, audio.astype(np.float32), RATE, subtype="PCM_16")
        made.append(
            Utterance(
                key=f"tiny-u{i:03d}", corpus="tiny", audio=str(path), recording=f"u{i:03d}", speaker=f"s{speaker}",
                session=f"ses{speaker // 2}", language="en" if speaker % 2 else "fi",
                gender="female" if speaker % 2 else "male", text=f"{WORDS[label]} number {i % 5}", text_source="human",
                label=label, votes=(Vote(label), Vote(label), Vote(CLASSES[(i + 1) % 4])),
                valence=4.0 + positive, arousal=2.0 + 3 * high + 0.5 * rng.random(), dominance=3.0 + 0.3 * (i % 4),
                scale=(1.0, 7.0), licence="CC0",
            )
        )  # fmt: skip
    return made


def make_dataset(folder: Path, **options: Any) -> str:
    """Pack a tiny dataset below `folder`; returns its path."""
    out = folder / "dataset"
    pack(utterances(folder / "wav", **options), str(out), shard_seconds=8.0)
    return str(out)


def recipe_values(folder: Path, dataset: str, models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Plain values of a recipe over the tiny dataset: folds by session, another session is dev."""
    return {
        "name": "tiny",
        "run_dir": str(folder / "run"),
        "data": {"path": dataset, "corpora": [{"reader": "manifest", "root": str(folder)}]},
        "protocol": {
            "name": "tiny",
            "corpora": ["tiny"],
            "classes": {name: [name] for name in CLASSES},
            "dimensions": ["valence", "arousal", "dominance"],
            "folds": {"by": "session", "kind": "leave-one-out"},
            "dev": {"by": "session", "count": 1},
        },
        "folds": ["session-ses0"],
        "views": {"count": 1, "seed": 1, "gain_db": [-3, 3], "speed": [950, 1050]},
        "models": models,
    } | changes


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """Write recipe values to a file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def training(steps: int = 6, **changes: Any) -> dict[str, Any]:
    """Training keys small enough for a second."""
    return {"steps": steps, "slot_seconds": 6.0, "slots": 1, "tensorboard": False, "log_every": 1} | changes


def write_corpus(folder: Path, **options: Any) -> None:
    """A corpus folder that the `manifest` reader reads: the same utterances and a manifest.jsonl."""
    lines = []
    for u in utterances(folder / "wav", **options):
        row = {
            name: getattr(u, name)
            for name in u.__dataclass_fields__
            if getattr(u, name) not in (None, {}, ())
        }
        row |= {"votes": [v.label for v in u.votes], "audio": str(Path(u.audio).relative_to(folder))}
        lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
