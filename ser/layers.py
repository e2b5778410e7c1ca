"""The hidden states of a frozen encoder, every layer's mean over time, stored once for all probes and seeds.

Guarantees: the encoder hears each (utterance, view) once; what is stored carries its weights, exposure and views in the
fingerprint, so that a probe never reads the states of another encoder. Test rows are stored too: the states are an input
(as log-mels are), not an answer that a student learns from; whom the encoder has heard enters every probe's exposure.
Gives up: disk, 4 bytes x size x (layers + 1) an utterance and view (100 kB of HuBERT-large); the bill is printed first.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ser.infer import inference_slots
from ser.job import Job, below, directory
from ser.models import load
from ser.models.acoustic import Acoustic
from ser.models.config import ProbeConfig
from ser.models.probe import LAYERS
from ser.produce import Done, Work, machine, read_in, refuse_unreadable
from ser.setting import Setting
from shards.batch import load_slot
from shards.errors import UserError
from shards.loader import Needs
from shards.targets import PRESENT, QUARANTINED, VIEW_POLICY, Output, TargetSpec, TargetStore, Unit
from shards.utterance import SAMPLE_RATE


def layer_spec(setting: Setting, job: Job) -> TargetSpec:
    """What the stored states of a finished encoder are: (layers + 1, size) an utterance, 0 the transformer's input."""
    folder = directory(setting.recipe, job) / "model"
    facts = json.loads((folder / "model.json").read_text())
    shape = facts["skeleton"]["backbone"]
    size = (int(shape["num_hidden_layers"]) + 1, int(shape["hidden_size"]))
    fields = {
        "weights": facts["files"],
        "model": facts["config"],
        "batch": {"slot_seconds": setting.recipe.targets.slot_seconds},
        "precision": "fp32",
        "exposure": facts["meta"]["exposure"],
        "licences": facts["meta"]["licences"],
        VIEW_POLICY: setting.policy.hash(),
    }
    output = Output(LAYERS, "layer-pooled", size, setting.recipe.targets.dtype)
    return TargetSpec(job.model, (output,), fields, machine())


def layer_stores(setting: Setting, job: Job) -> dict[str, TargetStore]:
    """Stored states that a training reads: {"layers": store} for a probe, nothing for other models.

    Raises:
        UserError: They were not computed, or the probe is made for an encoder of another shape.
    """
    config = setting.recipe.models[job.model].model
    if not isinstance(config, ProbeConfig):
        return {}
    spec = layer_spec(setting, below(setting.recipe, job, config.encoder))
    if spec.outputs[0].shape != (config.states, config.size):
        states, size = spec.outputs[0].shape
        raise UserError(
            f"the probe reads {config.states} states of {config.size} numbers, {config.encoder} has {states} of {size}",
            where=f"models.{job.model}.model",
            hint=f"states: {states}, size: {size}",
        )
    return {LAYERS: TargetStore.open(setting.dataset, expect=spec)}


def layer_work(setting: Setting, job: Job) -> list[Work]:
    """States of one encoder still to be computed."""
    fold = setting.folds[job.fold]
    store = TargetStore.create(setting.dataset, layer_spec(setting, job))
    work, wanted, name = [], read_in(setting, fold), f"{job.model}/{LAYERS}"
    for view, rows in wanted.items():
        work += [Work(job, unit.shard, unit.view, {name: unit.rows}) for unit in store.due(rows, [view])]
    refuse_unreadable(setting, store, wanted)
    return work


@torch.inference_mode()
def compute_layers(setting: Setting, work: Work) -> Done:
    """Compute and commit one unit of an encoder's states."""
    torch.set_num_threads(1)
    assert work.teacher is not None
    (rows,) = work.rows.values()
    store = TargetStore.create(setting.dataset, layer_spec(setting, work.teacher))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = directory(setting.recipe, work.teacher) / "model"
    model = encoder(str(folder), store.fingerprint).to(device)
    seconds, needs = setting.recipe.targets.slot_seconds, Needs(waveform=True)
    found: dict[int, np.ndarray] = {}
    quarantined: list[tuple[str, str]] = []
    for slot in inference_slots(
        setting.dataset, rows, setting.policy, work.view, seconds, model.needs_equal_lengths
    ):
        batch = load_slot(setting.dataset, slot, needs, setting.policy)
        quarantined += batch.quarantined
        states = model.layer_pooled(batch.to(device)).float().cpu().numpy()
        found |= {int(row): states[i] for i, row in enumerate(slot.rows) if batch.present[i]}
    arrays = [found.get(int(row)) for row in rows]
    state = np.array([QUARANTINED if a is None else PRESENT for a in arrays], np.uint8)
    blank = np.zeros(store.spec.outputs[0].shape, np.float32)
    lost = store.write(
        Unit(work.shard, work.view, rows), state, {LAYERS: [blank if a is None else a for a in arrays]}
    )
    quarantined += [(key, "its hidden states are not finite") for key in setting.dataset.keys(lost)]
    return Done(len(rows), float(setting.dataset.samples[rows].sum()) / SAMPLE_RATE, quarantined)


@lru_cache(maxsize=2)
def encoder(folder: str, fingerprint: str) -> Acoustic:
    """A finished encoder in evaluation mode; its fingerprint is part of the key, so one trained again is loaded again."""
    model, _ = load(Path(folder))
    assert isinstance(model, Acoustic)
    return model.eval()
