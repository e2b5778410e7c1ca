"""Frames of frozen encoders: stored once for every fold, or computed on the spot by an encoder that is at hand.

Guarantees: an encoder hears each (utterance, view) of its fold once, whatever number of models and seeds read its
frames; stored frames carry the encoder's weights, layer, exposure and views in their fingerprint; frames computed on
the spot are rounded as stored ones are, so that both give the same answers within the backbone's padding tolerance.
A saved model that reads frames names the encoder it needs by the sha256 of its weights.

Gives up: disk. Frames of a 1024-wide encoder in half precision take 100 kB a second of speech and view: the bill is
printed before they are made, and what does not fit on the disk is refused.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser.infer import inference_slots
from ser.job import Job, below, directory
from ser.models import SERModel, load
from ser.models.speech import Speech
from ser.produce import Done, Work, machine, read_in, refuse_unreadable
from ser.setting import Setting
from shards.batch import load_slot
from shards.errors import UserError
from shards.loader import Needs
from shards.targets import PRESENT, QUARANTINED, VIEW_POLICY, Output, TargetSpec, TargetStore, Unit
from shards.utterance import SAMPLE_RATE

OUTPUT = "frames"


# -- what is stored ------------------------------------------------------------------------------------------------


def encoder_json(setting: Setting, job: Job) -> dict[str, Any]:
    """model.json of a finished encoder."""
    return json.loads((directory(setting.recipe, job) / "model" / "model.json").read_text())


def frame_spec(setting: Setting, job: Job) -> TargetSpec:
    """What the stored frames of a finished encoder are."""
    facts, entry = encoder_json(setting, job), setting.recipe.models[job.model]
    fields = {
        "weights": facts["files"],
        "model": facts["config"],
        "layer": entry.frames.layer,
        "batch": {"slot_seconds": setting.recipe.targets.slot_seconds},
        "precision": "fp32",
        "exposure": facts["meta"]["exposure"],
        "licences": facts["meta"]["licences"],
        VIEW_POLICY: setting.policy.hash(),
    }
    output = Output(OUTPUT, "frame", (int(facts["skeleton"]["frame_size"]),), entry.frames.dtype)
    return TargetSpec(job.model, (output,), fields, machine())


def frame_stores(setting: Setting, job: Job) -> dict[str, TargetStore]:
    """Stored frames that a training reads, by encoder; a fingerprint that does not fit is refused by field."""
    recipe = setting.recipe
    return {
        name: TargetStore.open(setting.dataset, expect=frame_spec(setting, below(recipe, job, name)))
        for name in recipe.encoders_below(job.model)
    }


def frame_sizes(setting: Setting, job: Job) -> dict[str, int]:
    """Numbers a frame of every encoder that a training reads."""
    recipe = setting.recipe
    found = {}
    for name in recipe.encoders_below(job.model):
        found[name] = int(encoder_json(setting, below(recipe, job, name))["skeleton"]["frame_size"])
    return found


def frame_work(setting: Setting, job: Job) -> list[Work]:
    """Frames of one encoder still to be computed."""
    fold = setting.folds[job.fold]
    store = TargetStore.create(setting.dataset, frame_spec(setting, job))
    work, wanted = [], read_in(setting, fold)
    for view, rows in wanted.items():
        work += [Work(job, u.shard, u.view, {job.model: u.rows}) for u in store.due(rows, [view])]
    refuse_unreadable(setting, store, wanted)
    return work


def refuse_full_disk(setting: Setting, size: int) -> None:
    """Refuse to store `size` bytes that do not fit where the dataset lies (a local folder; an object store is not asked).

    Raises:
        UserError: Naming what is needed and what is free.
    """
    path = Path(setting.dataset.url)
    if not path.is_dir():
        return
    free = shutil.disk_usage(path).free
    if size > free:
        raise UserError(
            f"what is to be stored takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            where=str(path),
            hint="fewer views, fewer folds, dtype: float16, or a data.path with more room",
        )


@torch.inference_mode()
def compute_frames(setting: Setting, work: Work) -> Done:
    """Compute and commit one unit of an encoder's frames."""
    torch.set_num_threads(1)
    assert work.teacher is not None
    (rows,) = work.rows.values()
    store = TargetStore.create(setting.dataset, frame_spec(setting, work.teacher))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = directory(setting.recipe, work.teacher) / "model"
    model = _encoder(str(folder), store.fingerprint).to(device).eval()
    layer = setting.recipe.models[work.teacher.model].frames.layer
    found: dict[int, np.ndarray] = {}
    quarantined: list[tuple[str, str]] = []
    seconds = setting.recipe.targets.slot_seconds
    for slot in inference_slots(
        setting.dataset, rows, setting.policy, work.view, seconds, model.needs_equal_lengths
    ):
        batch = load_slot(setting.dataset, slot, Needs(waveform=True), setting.policy)
        quarantined += batch.quarantined
        frames, counts = model.frames(batch.to(device), layer)
        for i, row in enumerate(slot.rows):
            if batch.present[i]:
                found[int(row)] = frames[i, : int(counts[i])].float().cpu().numpy()
    arrays = [found.get(int(row)) for row in rows]
    states = np.array([QUARANTINED if a is None else PRESENT for a in arrays], np.uint8)
    lost = store.write(Unit(work.shard, work.view, rows), states, {OUTPUT: arrays})
    quarantined += [(key, "its frames are not finite") for key in setting.dataset.keys(lost)]
    heard = float(setting.dataset.samples[rows].sum()) / SAMPLE_RATE
    return Done(len(rows), heard, quarantined)


@lru_cache(maxsize=4)
def _encoder(folder: str, fingerprint: str) -> Speech:
    # The fingerprint is part of the key: an encoder that was trained again is loaded again.
    model, _ = load(Path(folder))
    assert isinstance(model, Speech)
    return model


# -- encoders at hand ----------------------------------------------------------------------------------------------


class Attached:
    """An encoder in front of a model: (waveform, lengths) -> (frames (B, T, E) float32, frame counts (B,))."""

    def __init__(self, model: Speech, layer: int, dtype: str):
        self.model = model.eval().requires_grad_(False)
        self.layer, self.dtype = layer, getattr(torch, dtype)

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        assert batch.waveform is not None, "needs_of asks for the waveform of what is not stored"
        with torch.no_grad():
            frames, counts = self.model.to(batch.waveform.device).frames(batch, self.layer)
        return frames.to(self.dtype).float(), counts


def encoder_facts(setting: Setting, job: Job) -> dict[str, Any]:
    """What a model that reads frames says of its encoders: weights, layer, sizes, and where they lay."""
    recipe, out = setting.recipe, {}
    own = directory(recipe, job) / "model"
    for name in recipe.encoders_below(job.model):
        lower = below(recipe, job, name)
        facts, folder = encoder_json(setting, lower), directory(recipe, lower) / "model"
        out[name] = {
            **recipe.models[name].frames.model_dump(),
            "size": facts["skeleton"]["frame_size"],
            "files": facts["files"],
            "parameters": facts["parameters"]["total"],
            "hub_names": facts["hub_names"],
            "licences": facts["meta"]["licences"],
            "path": os.path.relpath(folder, own),
        }
    return out


def attach(model: SERModel, folder: Path, meta: Mapping[str, Any], others: Sequence[Path] = ()) -> None:
    """Put the encoders that a saved model needs in front of it.

    They are looked for inside its folder (`encoders/<name>`), where they lay in the run that made it, and in `others`.

    Raises:
        UserError: One is not at hand, or is another one now.
    """
    for name, facts in meta.get("encoders", {}).items():
        places = [folder / "encoders" / name, folder / facts["path"], *others]
        there = [place for place in places if (place / "model.json").is_file()]
        fit = [p for p in there if json.loads((p / "model.json").read_text())["files"] == facts["files"]]
        if not fit:
            what = "another encoder lies there now" if there else "it is not at hand"
            called = f" ({', '.join(facts['hub_names'])})" if facts["hub_names"] else ""
            raise UserError(
                f"{meta.get('name', 'the model')} reads frames of the encoder {name}{called}, and {what}",
                where=str(folder),
                hint=f"put the encoder's model folder at {folder / 'encoders' / name}; its weights have the sha256 "
                f"{facts['files']['model.safetensors'][:16]}...",
            )
        encoder, _ = load(fit[0])
        assert isinstance(encoder, Speech)
        model.attached[name] = Attached(encoder, facts["layer"], facts["dtype"])
        model.needs_equal_lengths = model.needs_equal_lengths or encoder.needs_equal_lengths
