"""`ser plan`: what a recipe needs before anything starts, and what would not fit.

Parameters and states are exact; activations, disk, time and cost are estimates whose sources are printed beside them.
"""

import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.display import Display
from launch.planned import beside_table
from ser import throughput
from ser.activations import activations
from ser.amounts import MEAN_SECONDS, Amount, of_dataset, stated, steps
from ser.capacity import GIB, Need
from ser.capacity import plan as needs_of
from ser.estimate import (
    RUNTIME,
    Speed,
    Stored,
    Time,
    disk,
    gpu_bytes,
    memory,
    mending,
    time,
    wall,
    with_stage,
)
from ser.job import Job, digest, jobs, train_config
from ser.models.config import FusedConfig, PretrainedConfig
from ser.recipe import Recipe
from ser.report.words import count
from ser.setting import Setting, open_setting
from shards import manifest
from shards.errors import UserError
from shards.store import Store


@dataclass(frozen=True)
class Asked:
    """What stands on the command line.

    Attributes:
        nodes, gpus_per_node: The cluster.
        gpu: Its GPUs, by name or memory in GiB.
        hours, folds: Of speech, where the dataset is not packed yet.
        speed: "[MODEL=]SECONDS": padded audio a second and GPU in training, stated instead of measured.
        figures: File of measured speeds; default `speed.json` in the run directory.
        measure: Measure here first.
        price: Of a GPU and hour, in whatever currency.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    gpu: str | None = None
    hours: float | None = None
    folds: int | None = None
    speed: list[str] = field(default_factory=list)
    figures: Path | None = None
    measure: bool = False
    price: float | None = None

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Plan:
    """What `make` works out; `amount` and what depends on it is None where nobody knows how much speech there is."""

    needs: list[Need]
    amount: Amount | None
    steps: dict[Job, int]
    kept: dict[str, tuple[float, float]]
    stored: list[Stored]
    waves: list[list[Time]]
    speeds: dict[str, str]


def show(recipe: Recipe, asked: Asked, display: Display) -> Plan:
    """Print the plan of a recipe and return it.

    Raises:
        UserError: A GPU or speed that cannot be read, a hub name whose shape is not known.
    """
    if asked.gpus < 1:
        raise UserError("a plan needs a GPU or more", hint="--nodes 1 --gpus-per-node 8")
    room = gpu_bytes(asked.gpu) if asked.gpu else None  # a typing mistake is said before anything is counted
    stated_speeds(recipe, asked.speed)
    made = make(recipe, asked, display)
    parameters_table(recipe, made, asked, display)
    memory_table(recipe, made, asked, room, display)
    if made.amount is None:
        display.say(
            f"disk and time depend on the speech: pack it (ser pack {recipe.name}), or say how much there is (--hours 100)"
        )
        return made
    disk_table(recipe, made, display)
    time_table(made, asked, display)
    if made.amount.counted:
        beside_table(open_setting(recipe), made.waves, made.steps, display)
    return made


def make(recipe: Recipe, asked: Asked, display: Display) -> Plan:
    """Work out the plan: counts first, then what is measured."""
    packed = Store(recipe.data.path).exists(manifest.NAME)
    setting = open_setting(recipe) if packed else None
    amount = (
        of_dataset(setting) if setting else stated(recipe, asked.hours, asked.folds) if asked.hours else None
    )
    seconds = amount.mean_seconds if amount else MEAN_SECONDS
    path = asked.figures or recipe.directory / throughput.NAME
    if asked.measure:
        _measure(recipe, setting, seconds, path, display)
    needs = needs_of(recipe, asked.gpus)
    trained = [need.name for need in needs if recipe.models[need.name].train is not None]
    kept = _activations(recipe, trained, seconds)
    if amount is None:
        return Plan(needs, None, {}, kept, [], [], {})
    every = [job for name in trained for fold in amount.folds for job in jobs(recipe, fold, name)]
    lasting = {job: steps(recipe, amount, job, setting) for job in every}
    speeds, told = _speeds(recipe, asked, path)
    times = {need.name: time(recipe, amount, need.name, speeds[need.name], lasting) for need in needs}
    from launch.run import levels

    waves = [[times[name] for name in wave if name in times] for wave in levels(recipe)]
    return Plan(needs, amount, lasting, kept, disk(recipe, amount, needs, lasting), waves, told)


def _measure(recipe: Recipe, setting: Setting | None, seconds: float, path: Path, display: Display) -> None:
    for name, key, figure in throughput.measure(recipe, seconds, setting):
        throughput.keep(path, key, figure)
        told = [f"{figure.answer:.1f} s of audio a second" if figure.answer else ""]
        told += [f"{figure.train:.1f} in training"] if figure.train else []
        display.say(f"measured {name} on {figure.device}: {', '.join(told)}")
    display.say(f"kept in {path}")


def _activations(recipe: Recipe, names: list[str], seconds: float) -> dict[str, tuple[float, float]]:
    """Bytes a second of padded audio by model, as the recipe has it and with layers recomputed; equal models once."""
    known: dict[str, float] = {}

    def of(name: str, entry_recipe: Recipe) -> float:
        entry = entry_recipe.models[name]
        # a component that is trained by itself has its own entry
        parts = [entry_recipe.models[other].model.model_dump(mode="json") for other in entry.components]
        key = digest(
            [entry.model.model_dump(mode="json"), parts, sorted({term.loss for term in entry.objective})]
        )
        if key not in known:
            known[key] = activations(entry_recipe, name, seconds)
        return known[key]

    found = {}
    for name in names:
        lighter = _recomputing(recipe, name)
        plain = of(name, recipe)
        found[name] = plain, of(name, lighter) if lighter is not None else plain
    return found


def _recomputing(recipe: Recipe, name: str) -> Recipe | None:
    """The recipe with this model's layers recomputed; None for a model without any."""
    entry = recipe.models[name]
    if isinstance(entry.model, FusedConfig) or not isinstance(entry.model, PretrainedConfig):
        return None
    model = entry.model.model_copy(update={"gradient_checkpointing": True})
    return recipe.model_copy(
        update={"models": {**recipe.models, name: entry.model_copy(update={"model": model})}}
    )


def stated_speeds(recipe: Recipe, given: list[str]) -> dict[str, float]:
    """Speeds from the command line by model; "" is for all others.

    Raises:
        UserError: One that is not "[MODEL=]NUMBER".
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not found[name] > 0 or (name and name not in recipe.models):
            raise UserError(
                f"--speed {text!r} is not [MODEL=]SECONDS", where=f"models: {', '.join(recipe.models)}",
                hint="seconds of audio that one GPU trains on in a second, for example --speed student=900",
            )  # fmt: skip
    return found


def _speeds(recipe: Recipe, asked: Asked, path: Path) -> tuple[dict[str, Speed], dict[str, str]]:
    """Speed of every model, and where it comes from."""
    given, figures = stated_speeds(recipe, asked.speed), throughput.read(path)
    wanted = asked.gpu if asked.gpu and not asked.gpu.replace(".", "").isdigit() else None
    audio = throughput.find(figures, "audio", None)
    speeds, told = {}, {}
    for name, entry in recipe.models.items():
        speed, told[name] = Speed(None, None), "not measured"
        if entry.classical or entry.model.kind == "external":
            speed, told[name] = Speed(math.inf, math.inf), ""
        elif name in given or "" in given:
            # a forward pass is a third of a step's work
            value = given.get(name, given.get("", 0.0))
            speed, told[name] = Speed(value, 3 * value), "stated"
        elif (one := throughput.find(figures, throughput.key(recipe, name), wanted)) is not None:
            speed, told[name] = Speed(one.train, one.answer), f"measured on {one.device}"
        speeds[name] = replace(speed, audio=audio.answer if audio else None)
    return speeds, told


def parameters_table(recipe: Recipe, made: Plan, asked: Asked, display: Display) -> None:
    """Parameters and states of every model."""
    rows = [
        (
            n.name, *map(count, (n.parameters, n.trainable, n.backbone, n.backbone_trainable)),
            f"{n.inference / GIB:.2f}", f"{n.training / GIB:.2f}",
        )
        for n in made.needs
    ]  # fmt: skip
    heads = ["model", "in all", "trained", "no heads", "trained", "GiB bf16", f"GiB/GPU of {asked.gpus}"]  # fmt: skip
    display.table(f"{recipe.name}: bf16 to answer, states of training without activations", heads, rows)


def memory_table(recipe: Recipe, made: Plan, asked: Asked, room: int | None, display: Display) -> None:
    """GiB a GPU of every training by ZeRO stage, with its slot's activations; what does not fit, and what makes it fit."""
    rows, faults = [], []
    for need in made.needs:
        if recipe.models[need.name].train is None:
            continue
        config = train_config(recipe, Job(next(iter(made.amount.folds)) if made.amount else "", need.name, 0))
        plain, lighter = made.kept[need.name]
        stages = [
            memory(need, with_stage(config, s, config.offload), config.workers, plain) for s in range(4)
        ]
        own = stages[config.zero_stage]
        host = f", {own.host / GIB:.2f} on the host" if own.host else ""
        rows.append(
            (
                need.name, config.workers, f"{config.slots} x {config.slot_seconds:g} s", f"{own.activations / GIB:.2f}",
                *(f"{m.total / GIB:.2f}{'*' if m is own else ''}" for m in stages), f"{config.offload}{host}",
            )
        )  # fmt: skip
        if config.workers > asked.gpus:
            faults.append(
                f"{need.name} takes {config.workers} workers, and there are {asked.gpus} GPUs: "
                f"models.{need.name}.train.workers={_most(config.slots, asked.gpus)}"
            )
        elif room is not None and own.total > room:
            knobs = mending(need, config, plain, lighter, room, asked.gpus)
            told = f"{need.name} needs {own.total / GIB:.1f} GiB a GPU, {asked.gpu} has {room / GIB:.1f}"
            keys = " ".join(f"models.{need.name}.{knob}" for knob in knobs or ())
            faults.append(f"{told}: {keys or 'no layout on these GPUs holds it; more GPUs or larger ones'}")
    heads = ["model", "workers", "slots", "activations", *(f"ZeRO {s}" for s in range(4)), "offload"]
    if rows:
        display.table(
            f"GiB a GPU in training: states, activations (estimated), buckets, {RUNTIME // GIB} for CUDA; * as the recipe says",
            heads, rows,
        )  # fmt: skip
    for fault in faults:
        display.say(f"does not fit: {fault}")
    if rows and room is not None and not faults:
        display.say(f"every training fits {asked.gpus} x {asked.gpu} ({room / GIB:.1f} GiB)")


def _most(slots: int, gpus: int) -> int:
    return max(w for w in range(1, gpus + 1) if slots % w == 0)


def disk_table(recipe: Recipe, made: Plan, display: Display) -> None:
    """What lies on disk at the end, and whether it fits where the dataset lies."""
    assert made.amount is not None
    total = sum(one.bytes for one in made.stored)
    rows = [(one.what, f"{one.bytes / 1e9:.3f}", one.about) for one in made.stored if one.bytes]
    how = "counted in the packed dataset" if made.amount.counted else "from the hours stated"
    display.table(f"GB on disk ({how})", ["", "GB", ""], [*rows, ("in all", f"{total / 1e9:.3f}", "")])
    folder = Path(recipe.data.path)
    while not folder.is_dir() and folder != folder.parent and "://" not in recipe.data.path:
        folder = folder.parent
    there = made.stored[0].bytes if made.amount.counted else 0
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < total - there:
        knobs = {
            "targets": "targets.dtype=float16, targets.embedding=false", "layers": "targets.dtype=float16",
            "features": "features.NAME.dtype=float16", "frames": "models.NAME.frames.dtype=float16, views.count=1",
            "checkpoints": "models.NAME.train.keep_checkpoints=1", "models": "fewer seeds or folds",
            "shards": "a data.path with more room", "predictions": "fewer seeds",
        }  # fmt: skip
        largest = max(made.stored, key=lambda one: one.bytes).what
        display.say(
            f"does not fit: {(total - there) / 1e9:.1f} GB are still to come, {free / 1e9:.1f} are free in {folder}; "
            f"most of it is {largest}: {knobs[largest.split()[0]]}"
        )


def time_table(made: Plan, asked: Asked, display: Display) -> None:
    """GPU-hours by model, hours from start to end, and what they cost."""
    rows = [
        (one.name, one.trainings, one.steps, _hours(one.train), _hours(one.answers), made.speeds[one.name])
        for wave in made.waves
        for one in wave
    ]
    heads = ["model", "trainings", "steps", "training", "targets", "speed"]
    display.table("GPU-hours", heads, rows)
    seconds = wall(made.waves, asked.gpus)
    if seconds is None:
        unknown = [name for name, how in made.speeds.items() if how == "not measured"]
        on = f" on {asked.gpu}" if asked.gpu else ""
        display.say(
            f"time is not known: no speed{on} of {', '.join(unknown)}; measure it on such a machine "
            "(ser plan RECIPE --measure), or state it (--speed MODEL=SECONDS of audio a second and GPU)"
        )
        return
    used = sum((one.train or 0.0) + (one.answers or 0.0) for wave in made.waves for one in wave)
    cost = (
        f", {seconds / 3600 * asked.gpus * asked.price:,.2f} at {asked.price:g} an hour and GPU"
        if asked.price
        else ""
    )
    display.say(
        f"{seconds / 3600:.2f} h on {asked.gpus} GPUs held throughout ({used / 3600:.2f} GPU-hours of work){cost}; "
        "packing, features, the report and time between stages are not in it"
    )


def _hours(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 3600:.3f}"
