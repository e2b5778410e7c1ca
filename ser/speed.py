"""How fast a trained model answers on one CPU thread, and how many multiply-accumulates that takes: no benchmark.

The audio is decoded beforehand; features are computed inside the clock. One utterance at a time, the best of a few
passes, so that a busy machine disturbs it little.
"""

import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.frames import attach
from ser.inputs import complete, needs_of
from ser.macs import HOW, count_macs
from ser.models import load
from ser.models.probe import LAYERS
from ser.setting import Setting
from shards.batch import load_slot
from shards.slots import Slot
from shards.utterance import SAMPLE_RATE

UTTERANCES, PASSES = 5, 3


def real_time_factor(
    setting: Setting, folder: Path, rows: np.ndarray, encoder: Path | None = None
) -> dict[str, Any]:
    """Compute seconds per second of speech of a saved model.

    Args:
        setting: The dataset is read.
        folder: The model's.
        rows: (n,) rows to take utterances from: those of the middle durations.
        encoder: The encoder that a probe reads, whose time counts.

    Returns:
        factor (0.01 is a hundred times faster than speech), macs (multiply-accumulates a second of speech, same
        utterances), and how both were measured.
    """
    model, meta = load(folder)
    attach(model, folder, meta)
    model = model if encoder is None else _Probed(load(encoder)[0], model)
    order = rows[np.argsort(np.asarray(setting.dataset.samples)[rows], kind="stable")]
    middle = max(0, (len(order) - UTTERANCES) // 2)
    chosen = np.sort(order[middle : middle + UTTERANCES])
    needs = needs_of(model, {})
    view = np.zeros(1, dtype=np.int64)
    batches = [
        load_slot(setting.dataset, Slot(chosen[i : i + 1], view), needs, setting.policy)
        for i in range(len(chosen))
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            model(complete(batches[0], model))
            best = min(_pass(model, batches) for _ in range(PASSES))
    finally:
        torch.set_num_threads(threads)
    speech = float(np.asarray(setting.dataset.samples)[chosen].sum()) / SAMPLE_RATE
    macs = count_macs(lambda batch: model(complete(batch, model)), batches)  # a frozen encoder counts too
    return {
        "factor": best / speech,
        "macs": macs / speech,
        "macs_how": HOW,
        "utterances": len(chosen),
        "speech_seconds": speech,
        "how": f"{len(chosen)} test utterances one by one, 1 CPU thread, best of {PASSES}, decoding not counted",
        "cpu": cpu(),
    }


class _Probed:
    """A probe and the encoder below it, heard as one."""

    def __init__(self, encoder: Any, probe: Any):
        self.encoder, self.probe = encoder, probe
        self.inputs: frozenset[str] = encoder.inputs
        self.text_from: str = encoder.text_from
        self.attached: dict[str, Any] = encoder.attached

    def __call__(self, batch: Any) -> Any:
        states = self.encoder.layer_pooled(batch)
        return self.probe(replace(batch, features={**batch.features, LAYERS: states}))


def _pass(model: Any, batches: list[Any]) -> float:
    began = time.perf_counter()
    for batch in batches:
        model(complete(batch, model))
    return time.perf_counter() - began


def cpu() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
