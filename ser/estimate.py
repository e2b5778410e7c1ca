"""What a recipe will take: memory of a GPU, disk, and time. Pure: sizes and speeds in, bytes and seconds out.

Memory is states (exact, `ser.capacity`), activations (`ser.activations`) and DeepSpeed's buckets; disk is what is stored,
number by number; time is work over measured or stated speed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import product
from typing import Any

from ser.amounts import Amount
from ser.capacity import Need, shape_of, states
from ser.inputs import FUNCTIONALS
from ser.job import Job, jobs, train_config
from ser.models.config import PretrainedConfig, ProbeConfig
from ser.recipe import Recipe, TrainConfig
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

GIB = 2**30
# Bytes of the memory that vendors name; NVIDIA's GB are GiB but for a share that the driver takes.
GPUS = {
    "t4": 15, "v100": 32, "a10g": 22, "l4": 22, "rtx4090": 23.5, "l40s": 44.5, "a100-40gb": 39.5, "a100": 79, "h100": 79.5,
    "h200": 140, "b200": 178, "mi300x": 191,
}  # fmt: skip
RUNTIME = GIB  # CUDA's context, cuDNN's and cuBLAS's workspaces
BUCKET = 500_000_000  # most numbers of a DeepSpeed bucket, see ser.engine
ARROW_FILE, ARROW_ROW = 2_000, 9  # of a side-shard: schema and footer; a row's state and offset
CHECKPOINT_FILE = 25_000  # of a rank's file: pickled names, groups and configuration
PREDICTION = 60  # bytes of a row of predictions.parquet
ITEM = {"float16": 2, "float32": 4}


def gpu_bytes(name: str) -> int:
    """Memory of a GPU by name ("h100"), or of so many GiB ("48").

    Raises:
        UserError: The name is not known.
    """
    size = GPUS.get(name.lower())
    if size is None:
        try:
            size = float(name)
        except ValueError:
            raise UserError(
                f"no GPU {name!r} is known", hint=f"--gpu {'|'.join(GPUS)}, or its memory in GiB: --gpu 48"
            ) from None
    return int(size * GIB)


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU of one training in one layout; `host` is what lies in the machine's memory instead, a worker."""

    stage: int
    offload: str
    states: int
    activations: int
    buckets: int
    host: int

    @property
    def total(self) -> int:
        """With what CUDA itself takes."""
        return self.states + self.activations + self.buckets + RUNTIME


def memory(need: Need, config: TrainConfig, workers: int, activations: float) -> Memory:
    """Memory of a training as `config` lays it out over `workers` GPUs.

    Args:
        need: The model.
        config: `zero_stage`, `offload`, `precision` and `slot_seconds` count.
        workers: GPUs.
        activations: Bytes in fp32 a second of padded audio (`ser.activations`).
    """
    fp32, stage = config.precision == "fp32", config.zero_stage
    word = 4 if fp32 else 2
    size = (need.parameters, need.trainable, stage, workers, fp32)
    here = states(*size, offload=config.offload)
    buckets = word * min(need.trainable, BUCKET) if stage > 0 and workers > 1 else 0
    kept = int(activations * config.slot_seconds * word / 4)
    return Memory(stage, config.offload, here, kept, buckets, states(*size) - here)


def mending(
    need: Need, config: TrainConfig, activations: float, lighter: float, room: int, gpus: int
) -> list[str] | None:
    """Train keys (`key=value`) that make a training fit into `room` bytes a GPU; [] where it does, None where none does.

    What changes no result comes first: workers, stages and offload; then recomputing layers; then smaller slots, as many
    more of them that a step hears as much.

    Args:
        need, config, activations: As in `memory`.
        lighter: Activations with gradient_checkpointing; the same number where the model has no layers to recompute.
        room: Bytes.
        gpus: At most so many workers.
    """
    wide = [w for w in range(1, min(gpus, config.slots) + 1) if config.slots % w == 0 and w >= config.workers]
    layouts = [
        (s, o) for o, least in (("none", 0), ("optimizer", 1), ("parameters", 3)) for s in range(least, 4)
    ]
    layouts = [(s, o) for s, o in layouts if s >= config.zero_stage or o != "none"]
    for halved, recompute in product(range(8), (False, True)):
        if recompute and lighter >= activations:
            continue
        for (stage, offload), workers in product(layouts, wide or [config.workers]):
            slot = config.slot_seconds / 2**halved
            tried = config.model_copy(update={"zero_stage": stage, "offload": offload, "slot_seconds": slot})
            if memory(need, tried, workers, lighter if recompute else activations).total <= room:
                changed = {
                    "train.workers": (workers, config.workers),
                    "train.zero_stage": (stage, config.zero_stage),
                    "train.offload": (offload, config.offload),
                    "model.gradient_checkpointing": ("true" if recompute else "false", "false"),
                    "train.slot_seconds": (slot, config.slot_seconds),
                    "train.slots": (config.slots * 2**halved, config.slots),
                }
                return [f"{key}={new}" for key, (new, old) in changed.items() if new != old]
    return None


@dataclass(frozen=True)
class Stored:
    """Something that will lie on a disk."""

    what: str
    bytes: int
    about: str = ""


def disk(recipe: Recipe, amount: Amount, needs: Sequence[Need], steps: Mapping[Job, int]) -> list[Stored]:
    """What a run will have stored at its end, dataset and checkpoints included.

    Args:
        recipe: The resolved recipe.
        amount: How much it hears.
        needs: Its models.
        steps: Of every training.
    """
    views = max(1, int(recipe.views.get("count", 0)))
    clean = recipe.views.get("count", 0) == 0
    files = amount.shards * (views + (not clean))

    def side(number: float, rows: int, item: int, folders: int = 1) -> int:
        # a dense file holds every row of its shard, asked or not
        return round(
            number * item
            + folders * (rows * ARROW_ROW * (files / max(1, amount.shards)) + files * ARROW_FILE)
        )

    found = [
        Stored(
            "shards",
            amount.shard_bytes,
            f"{amount.whole.seconds / 3600:.2f} h, {amount.whole.rows:,} utterances",
        )
    ]
    heard = amount.trained.seconds * views + amount.held.seconds
    for name, feature in recipe.features.items():
        frames = heard * 100 * feature_size(recipe, name)
        if feature.kind in FUNCTIONALS:
            frames = amount.whole.rows * feature_size(recipe, name)
        found.append(
            Stored(f"features {name}", side(frames, amount.whole.rows, ITEM[feature.dtype]), feature.dtype)
        )
    read = {name for entry in recipe.models.values() for name in entry.target_sources}
    streams = {name for entry in recipe.models.values() for name in entry.encoders}
    for need in needs:
        entry, folds = recipe.models[need.name], list(amount.folds.values())
        if need.name in read and recipe.targets.source == "stored":
            invariant = entry.model.kind == "linguistic"
            times = 1 if invariant else views + (not clean)
            width = need.answers * 4 + need.embedding * ITEM[recipe.targets.dtype] * recipe.targets.embedding
            size = len(folds) * amount.whole.rows * times * width * max(1, entry.cross_fit)
            found.append(
                Stored(
                    f"targets {need.name}",
                    side(size, amount.whole.rows, 1, len(folds)),
                    f"{len(folds)} folds x {times} views",
                )
            )
        shape = shape_of(entry.model) if isinstance(entry.model, PretrainedConfig) else {}
        hidden = int(shape.get("hidden_size", 768))
        if need.name in streams:
            # one that is not trained is the same for all folds
            seconds = (
                heard
                if entry.train is None
                else sum(f.train.seconds * views + f.dev.seconds + f.test.seconds for f in folds)
            )
            size = seconds * frame_rate(shape) * hidden * ITEM[entry.frames.dtype]
            found.append(
                Stored(
                    f"frames {need.name}",
                    side(size, amount.whole.rows, 1, len(folds) if entry.train else 1),
                    entry.frames.dtype,
                )
            )
        if entry.layers:
            size = (
                len(folds)
                * amount.whole.rows
                * (views + (not clean))
                * (int(shape.get("num_hidden_layers", 12)) + 1)
                * hidden
            )
            found.append(
                Stored(
                    f"layers {need.name}",
                    side(size * ITEM[recipe.targets.dtype], amount.whole.rows, 1, len(folds)),
                    recipe.targets.dtype,
                )
            )
    models, states_kept, predicted = 0, 0, 0
    for need in needs:
        for fold, part in amount.folds.items():
            for job in jobs(recipe, fold, need.name):
                models += 4 * need.parameters
                predicted += PREDICTION * (part.dev.rows + part.test.rows)
                if recipe.models[need.name].train is not None:
                    config = train_config(recipe, job)
                    states_kept += kept_checkpoints(config, steps[job]) * checkpoint_bytes(need, config)
    found.append(Stored("models", models, "float32, one a training"))
    found.append(Stored("predictions", predicted))
    found.append(Stored("checkpoints", states_kept, "of every training, as many as it keeps"))
    return found


def frame_rate(shape: Mapping[str, Any]) -> float:
    """Frames a second of a speech encoder; 50 where its strides are transformers' own."""
    return SAMPLE_RATE / math.prod(shape.get("conv_stride", (320,)))


def feature_size(recipe: Recipe, name: str) -> int:
    """Numbers a frame (or an utterance, for functionals) of a stored feature."""
    feature = recipe.features[name]
    if feature.kind == "mel":
        return int(feature.options.get("bands", 64))
    return 88 if feature.kind in FUNCTIONALS else 25


def checkpoint_bytes(need: Need, config: TrainConfig) -> int:
    """Bytes of one checkpoint, all ranks together: weights, and what the optimiser works on."""
    plain = config.precision == "fp32" and config.zero_stage == 0
    word = 4 if config.precision == "fp32" else 2
    files = CHECKPOINT_FILE * (1 if config.zero_stage == 0 else 1 + config.workers)
    return word * need.parameters + (8 if plain else 12) * need.trainable + files


def kept_checkpoints(config: TrainConfig, steps: int) -> int:
    """Checkpoints that lie there at the end: none after the last step; by the clock, as many as are kept."""
    if isinstance(config.checkpoint_every, int):
        return min(config.keep_checkpoints, (steps - 1) // config.checkpoint_every)
    return config.keep_checkpoints if config.checkpoint_every else 0


@dataclass(frozen=True)
class Speed:
    """Seconds of audio a second and GPU: a training's padded, an answer's true; `audio` is reading and decoding."""

    train: float | None
    answer: float | None
    audio: float | None = None


@dataclass(frozen=True)
class Time:
    """GPU-seconds of one model over all folds and seeds; None where a speed is not known.

    `each` holds (workers, seconds from start to end) of every training.
    """

    name: str
    trainings: int
    steps: int
    train: float | None
    answers: float | None
    each: tuple[tuple[int, float], ...]


def time(recipe: Recipe, amount: Amount, name: str, speed: Speed, steps: Mapping[Job, int]) -> Time:
    """What the trainings of a model, their evaluations and its targets take.

    A training's audio is decoded by the training process itself unless it has loader workers, then beside it.
    """
    entry = recipe.models[name]
    every = [job for fold in amount.folds for job in jobs(recipe, fold, name)]
    views = max(1, int(recipe.views.get("count", 0)))
    hears = not (entry.model.kind == "linguistic" or isinstance(entry.model, ProbeConfig))
    decode = 1 / speed.audio if speed.audio and hears else 0.0
    train, answers = 0.0, 0.0
    each: list[tuple[int, float]] = []
    for job in every:
        part = amount.folds[job.fold]
        end = part.dev.seconds + part.test.seconds
        if entry.train is not None:
            config = train_config(recipe, job)
            looks = -(-steps[job] // config.evaluate_every) if config.evaluate_every else 1
            end += looks * part.dev.seconds
            padded = steps[job] * min(config.slots * config.slot_seconds, part.train.seconds)
            one = padded / speed.train if speed.train else float("nan")
            one = (
                max(one, padded * decode / config.loader_workers)
                if config.loader_workers
                else one + padded * decode
            )
            one += end * (1 / speed.answer + decode) if speed.answer else float("nan")
            train += one
            each.append((config.workers, one / config.workers))
    reads = any(name in other.target_sources or name in other.encoders for other in recipe.models.values())
    for part in amount.folds.values() if reads or entry.layers else ():
        seconds = part.train.seconds * (1 if entry.model.kind == "linguistic" else views) + part.dev.seconds
        answers += seconds * (1 / speed.answer + decode) if speed.answer else float("nan")
    whole = sum(steps.get(job, 0) for job in every)
    return Time(name, len(every) if entry.train else 0, whole, _known(train), _known(answers), tuple(each))


def _known(seconds: float) -> float | None:
    return None if seconds != seconds else seconds


def wall(waves: Sequence[Sequence[Time]], gpus: int) -> float | None:
    """Seconds from start to end on `gpus` GPUs, in the order of `ser run`.

    Wave by wave: trainings of one worker, then those of several, then targets, each when those before are done. A training that
    asks for more GPUs than there are is counted as if it took all of them.
    """
    total = 0.0
    for wave in waves:
        if any(one.train is None or one.answers is None for one in wave):
            return None
        every = [(min(w, gpus), seconds * w / min(w, gpus)) for one in wave for w, seconds in one.each]
        total += makespan([one for one in every if one[0] == 1], gpus)
        total += makespan(sorted((one for one in every if one[0] > 1), key=lambda one: -one[0]), gpus)
        total += sum(one.answers or 0.0 for one in wave) / gpus
    return total


def makespan(trainings: Sequence[tuple[int, float]], places: int) -> float:
    """Seconds until all of (workers, seconds) are done, if each begins once all its workers find a place, the first that does first."""
    waiting, running, now = list(trainings), [], 0.0
    while waiting or running:
        free = places - sum(workers for _, workers in running)
        if (fits := next((one for one in waiting if one[0] <= free), None)) is not None:
            waiting.remove(fits)
            heappush(running, (now + fits[1], fits[0]))
        else:
            now, _ = heappop(running)
    return now


def with_stage(config: TrainConfig, stage: int, offload: str) -> TrainConfig:
    """The same training in another layout; `offload` is lifted where a stage cannot carry it."""
    least = {"none": 0, "optimizer": 1, "parameters": 3}[offload]
    return config.model_copy(update={"zero_stage": stage, "offload": offload if stage >= least else "none"})
