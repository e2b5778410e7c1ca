"""Targets: computing and storing a teacher's answers against its bare forward pass, and reading them back.

Stored targets are also set against asking the teacher again in every epoch (what most distillation code does).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from ser.infer import answer_slot, inference_slots
from ser.inputs import needs_of
from ser.models import build
from shards.batch import load_slot
from shards.dataset import Dataset
from shards.pack import pack
from shards.targets import PRESENT, Output, TargetSpec, TargetStore, Unit
from shards.views import ViewPolicy
from tests.bench.common import show, speechlike, timed
from tests.tiny import HUBERT


def main() -> None:
    """Print utterances a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    n = arguments.utterances
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        utterances = speechlike(n, arguments.seconds, Path(name) / "wav")
        pack(utterances, f"{name}/data", shard_seconds=n * arguments.seconds / 4)
        dataset = Dataset.open(f"{name}/data")
        policy = ViewPolicy(count=0)
        model = build(HUBERT, 4, True).eval()
        needs, rows = needs_of(model, {}), np.arange(n)
        device = torch.device("cpu")
        slots = inference_slots(dataset, rows, policy, 0, 60.0, False)
        ready = [load_slot(dataset, slot, needs, policy) for slot in slots]
        outputs = (
            Output("logits", "utterance", (4,)),
            Output("embedding", "utterance", (model.embedding_size,)),
        )
        spec = TargetSpec("bench", outputs, {"view_policy": policy.hash()})
        store = TargetStore.create(dataset, spec)

        def bare() -> None:
            for batch in ready:
                model(batch)

        def ask() -> list:
            return [answer_slot(model, dataset, slot, needs, policy, device, True) for slot in slots]

        def compute() -> None:
            for part in ask():
                shard = int(dataset.shard[part.rows[0]])
                order = np.argsort(part.rows)
                states = np.full(len(order), PRESENT, np.uint8)
                arrays = {"logits": list(part.logits[order]), "embedding": list(part.embedding[order])}
                store.write(Unit(shard, 0, part.rows[order]), states, arrays)

        def read() -> None:
            store.refresh()
            for slot in slots:
                store.read(slot.rows, slot.views)

        table = [
            ("bare forward of the teacher (ceiling)", n / timed(bare)[0]),
            ("teacher online: load, decode, forward", n / timed(ask)[0]),
            ("compute and store targets", n / timed(compute)[0]),
            ("read stored targets", n / timed(read)[0]),
        ]
        show(
            f"targets of a tiny HuBERT, {n} x {arguments.seconds} s (synthetic)", "utt/s", table, table[1][0]
        )
        print(
            f"  stored: {store.size() / n:.0f} bytes an utterance (4 logits, {model.embedding_size}-d embedding)"
        )


if __name__ == "__main__":
    main()
