"""Trainings that are killed at a chosen moment, recorded, or fed something bad. All run in processes of their own."""

import functools
import importlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import UserError
from tests.processes import run_killed, run_ranks


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the `call`-th call of `module:name` on `rank`.

    Attributes:
        where: "module:attribute" or "module:Class.method".
        call: Which call, from 1.
        when: "before" it, "after" it, or "torn": after it, with the file that it wrote (an argument that names one)
            cut in half.
        rank: Which process.
    """

    where: str
    call: int = 1
    when: str = "before"
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.when} {self.where} {self.call}"


def patch(where: str, make: Callable[[Callable], Callable]) -> None:
    """Replace `module:attribute` by `make(original)` in this process."""
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, functools.wraps(getattr(owner, last))(make(getattr(owner, last))))


def arm(kill: Kill) -> None:
    """Put a kill in place."""
    count = 0

    def make(original: Callable) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count < kill.call:
                return original(*args, **kwargs)
            if kill.when != "before":
                result = original(*args, **kwargs)
                if kill.when == "torn":
                    (path,) = [a for a in map(str, args) if "/" in a and Path(a).is_file()]
                    os.truncate(path, os.path.getsize(path) // 2)
                del result
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("unreachable")

        return wrapper

    patch(kill.where, make)


def note_heard(path: str, engine: Any, step: int, slots: list) -> None:
    """Append what a global step hears on this rank to `path`: {"step", "slots": {slot number: [key/view]}}."""
    world = engine.world
    heard = {
        str(world.rank + i * world.size): [f"{key}/{view}" for key, view in zip(b.keys, b.views)]
        for i, b in enumerate(slots)
    }
    with open(f"{path}.{world.rank}", "a") as file:
        file.write(json.dumps({"step": step, "slots": heard}) + "\n")


def record_steps(path: str) -> None:
    """Note what each global step hears."""

    def make(original: Callable) -> Callable:
        def wrapper(x: Any, engine: Any, step: int, slots: list, factor: float) -> Any:
            note_heard(path, engine, step, slots)
            return original(x, engine, step, slots, factor)

        return wrapper

    patch("ser.train:train_step", make)


def heard_steps(path: str | Path) -> dict[int, dict[int, list[str]]]:
    """Step -> slot -> what was heard, over all ranks; a step done twice must have heard the same."""
    found: dict[int, dict[int, list[str]]] = {}
    for part in Path(path).parent.glob(Path(path).name + ".*"):
        for line in part.read_text().splitlines():
            event = json.loads(line)
            for slot, keys in event["slots"].items():
                before = found.setdefault(event["step"], {}).setdefault(int(slot), keys)
                assert before == keys, "a repeated step hears the same"
    return found


def train_one(values: dict, job: tuple, kill: Kill | None = None, record: str | None = None) -> str:
    """In a process: train `job` of a recipe given as plain values, perhaps until the kill."""
    from ser.job import Job
    from ser.recipe import Recipe
    from ser.strict import validate
    from ser.train import train

    if kill is not None and kill.rank == int(os.environ["RANK"]):
        arm(kill)
    if record is not None:
        record_steps(record)
    return str(train(validate(Recipe, values, where="test"), Job(*job)))


def refused(values: dict, job: tuple) -> str:
    """In a process: the error with which training is refused, "" where it is not."""
    try:
        train_one(values, job)
    except UserError as error:
        return str(error)
    return ""


def trained(values: dict, job: tuple, world: int = 1, record: str | None = None) -> Path:
    """Train to the end; returns the training's directory."""
    return Path(run_ranks(train_one, world, values, job, None, record)[0])


def killed(values: dict, job: tuple, kill: Kill, world: int = 1, record: str | None = None) -> None:
    """Train until the kill."""
    run_killed(train_one, world, values, job, kill, record)


TIMES = ("time", "utterances_per_second", "wait_share")


def events(folder: Path) -> list[dict]:
    """Events of a training, times aside."""
    from ser.events import read

    return [{k: v for k, v in e.items() if k not in TIMES} for e in read(folder / "events.jsonl")]


def same_training(a: Path, b: Path) -> None:
    """Two finished trainings gave the same weights to the bit, the same events and the same predictions."""
    import pyarrow.parquet as pq

    for folder in (a, b):
        assert (folder / "DONE").is_file()
        assert not list(folder.glob("best-*")) and not list(folder.glob("**/*.tmp"))
    for name in ("model/model.safetensors", "model/model.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), f"{name} differs"
    assert events(a) == events(b)
    assert pq.read_table(a / "predictions.parquet").equals(pq.read_table(b / "predictions.parquet"))
