"""How fast this machine trains and asks a recipe's models: a few real steps each, kept for later plans.

Guarantees: steps are those of `ser.engine` (DeepSpeed, the recipe's ZeRO stage and precision, forward, backward, update)
over slots of the recipe's size; a figure is kept with the device's name and what it was measured of, so that a figure of
another machine, model or slot is not taken for one of this.
Gives up: weights are random and inputs noise (speed does not depend on them); the loss is a plain sum; one worker, so
communication between GPUs is not in it. Reading and decoding audio is measured by itself, where the dataset is packed.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.activations import batch_of
from ser.agreement import outputs
from ser.capacity import hollow, whole
from ser.checkpoint import write_json
from ser.job import Job, digest, train_config
from ser.protocol import load_protocol
from ser.recipe import Recipe
from ser.setting import Setting

NAME = "speed.json"
WARM, STEPS = 1, 3


@dataclass(frozen=True)
class Figure:
    """What was measured of one model, or of loading ("audio").

    Attributes:
        device: Name of the GPU or CPU.
        train, answer: Padded seconds of audio a second that a training step and a forward pass work through.
        states: Bytes of weights, gradients and moments counted in plain fp32 training; None elsewhere.
        peak: Most bytes of GPU memory that a step took; None on a CPU.
    """

    device: str
    train: float | None = None
    answer: float | None = None
    states: int | None = None
    peak: int | None = None


def device_name() -> str:
    """What computes here."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    from ser.speed import cpu

    return cpu()


def key(recipe: Recipe, name: str) -> str:
    """Of what a figure holds: the model's shape and what decides how long its slots take."""
    train = recipe.models[name].train
    how = train.model_dump(include={"slot_seconds", "precision", "zero_stage", "offload"}) if train else {}
    whole_model = whole(recipe, recipe.models[name].model).model_dump(mode="json")
    return digest([whole_model, how, None if train else recipe.targets.slot_seconds])


def read(path: Path) -> dict[str, list[Figure]]:
    """All figures of a file by key; none where there is no file."""
    if not path.is_file():
        return {}
    return {name: [Figure(**one) for one in found] for name, found in json.loads(path.read_text()).items()}


def keep(path: Path, name: str, figure: Figure) -> None:
    """Put a figure into a file, in place of an older one of the same key and device."""
    every = read(path)
    every[name] = [one for one in every.get(name, []) if one.device != figure.device] + [figure]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {name: [asdict(one) for one in found] for name, found in every.items()})


def find(figures: dict[str, list[Figure]], name: str, gpu: str | None) -> Figure | None:
    """The newest figure of a key on a device whose name contains `gpu` (any device where that is None)."""
    fit = [one for one in figures.get(name, []) if gpu is None or gpu.lower() in one.device.lower()]
    return fit[-1] if fit else None


def measure(recipe: Recipe, seconds: float, setting: Setting | None) -> Iterator[tuple[str, str, Figure]]:
    """(model, key, figure) of every model that computes here, and of "audio" where the dataset is packed.

    Args:
        recipe: The resolved recipe.
        seconds: Duration of an utterance in the slots.
        setting: The packed dataset, if there is one.
    """
    if setting is not None:
        yield "audio", "audio", Figure(device_name(), answer=_loading(setting))
    for name, entry in recipe.models.items():
        if not entry.classical and entry.model.kind != "external":
            yield name, key(recipe, name), _model(recipe, name, seconds)


def _loading(setting: Setting) -> float:
    """Seconds of audio a second that one process reads, decodes and turns into a view."""
    from shards.batch import load_slot
    from shards.loader import Needs
    from shards.slots import Slot

    rows = np.arange(min(16, len(setting.dataset)))
    slot = Slot(rows, np.full(len(rows), setting.train_views[0]))
    audio = float(np.asarray(setting.dataset.samples)[rows].sum()) / 16_000
    return audio / _timed(
        lambda: load_slot(setting.dataset, slot, Needs(waveform=True), setting.policy), torch.device("cpu")
    )


def _model(recipe: Recipe, name: str, seconds: float) -> Figure:
    from ser.distributed import join

    world = join()
    entry, answers = recipe.models[name], outputs(recipe, name)
    classes = len(load_protocol(recipe.protocol).classes) if answers.classes else 0
    slot = entry.train.slot_seconds if entry.train else recipe.targets.slot_seconds
    rows = max(1, int(slot / seconds))
    model = hollow(whole(recipe, entry.model), classes, answers.dimensions or entry.role == "encoder")
    batch = batch_of(model, rows, seconds, world.device)
    model.to(world.device).eval()
    with torch.no_grad():
        answer = rows * seconds / _timed(lambda: model(batch), world.device)
    if entry.train is None:
        return Figure(device_name(), answer=answer)
    train, states, peak = _training(recipe, name, model, batch)
    return Figure(device_name(), rows * seconds / train, answer, states, peak)


def _training(recipe: Recipe, name: str, model: Any, batch: Any) -> tuple[float, int | None, int | None]:
    """Seconds of a step over one slot, bytes of states where they can be counted, and peak memory of a GPU."""
    from ser.build import Trainable
    from ser.distributed import join
    from ser.engine import Engine, clips_itself
    from ser.start import encoder_parameters

    world = join()
    job = Job("", name, recipe.seeds_of(name)[0])
    config = train_config(recipe, job).model_copy(update={"slots": 1, "workers": 1})
    torch.set_num_threads(config.threads)
    engine = Engine(Trainable(model.train(), None), config, world, encoder_parameters(model))
    gradients = 0

    def step() -> None:
        nonlocal gradients
        output = engine.engine(batch)
        told = [part for part in (output.logits, output.dimensions, output.embedding) if part is not None]
        engine.backward(
            sum((part.float().square().mean() for part in told), torch.zeros((), device=world.device))
        )
        gradients = sum(p.grad.nbytes for p in engine.trained if p.grad is not None)
        engine.micro_step(1.0, last=True)

    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = _timed(step, world.device)
    peak = torch.cuda.max_memory_allocated() if world.device.type == "cuda" else None
    if not clips_itself(config):
        return took, None, peak  # DeepSpeed keeps them in flat buffers of its own
    weights = sum(p.nbytes for p in engine.module.parameters())
    moments = [value for state in engine.optimizer.state.values() for value in state.values()]
    return took, weights + gradients + sum(m.nbytes for m in moments if m.ndim), peak


def _timed(once: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, the best of a few after one that does not count."""
    best = float("inf")
    for i in range(WARM + STEPS):
        began = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= WARM:
            best = min(best, time.perf_counter() - began)
    return best
