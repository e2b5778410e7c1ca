"""Checkpoints that either exist whole or not at all.

`checkpoints/step-N/` holds DeepSpeed's files and `state.json`; `COMMIT`, written last, lists the sha256 of every file.
Readers ignore a directory without COMMIT. DeepSpeed's files unpickle on load, so they are loaded only from the run's
own directory and only after every hash has matched.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ser.distributed import World, barrier, gather_objects
from ser.engine import Engine
from shards.errors import UserError


@dataclass
class State:
    """What the loop knows besides weights and moments: all of it readable JSON.

    Attributes:
        step: Next global step.
        best: Best value of the dev metric so far and `best_step`, the step it was measured after.
        stale: Evaluations since the best.
        skipped: Steps skipped for non-finite values; `skipped_in_a_row` of them just now.
        quarantined: Utterances that could not be read while loading, key -> reason.
    """

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)


def save(directory: Path, engine: Engine, state: State, keep: int, identity: dict[str, Any]) -> Path:
    """Write and commit `checkpoints/step-N` (every rank calls); older ones beyond `keep` go afterwards.

    Args:
        directory: The training's directory.
        engine: What to save.
        state: The loop's state; `state.step` names the checkpoint.
        keep: How many committed checkpoints stay.
        identity: What must agree on resume (world, stage, precision, ...).
    """
    world, root = engine.world, directory / "checkpoints"
    tag = f"step-{state.step}"
    if world.main:
        shutil.rmtree(root / tag, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
    barrier(world)
    engine.save(root, tag)
    barrier(world)
    if world.main:
        write_json(root / tag / "state.json", {"state": asdict(state), "identity": identity})
        hashes = {str(p.relative_to(root / tag)): sha256(p) for p in files_of(root / tag)}
        for path in files_of(root / tag):
            fsync(path)
        write_json(root / tag / "COMMIT", hashes)
        for step in committed(directory)[:-keep]:
            shutil.rmtree(root / f"step-{step}")
        referenced = {state.best_step} | {
            read_state(directory, step)[0].best_step for step in committed(directory)
        }
        for path in directory.glob("best-*.safetensors"):
            if int(path.stem.split("-")[1]) not in referenced:
                path.unlink()
    barrier(world)
    return root / tag


def committed(directory: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending."""
    found = []
    for path in (directory / "checkpoints").glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", path.name)
        if match and (path / "COMMIT").is_file():
            found.append(int(match.group(1)))
    return sorted(found)


def read_state(directory: Path, step: int) -> tuple[State, dict[str, Any]]:
    """State and identity of a committed checkpoint."""
    values = json.loads((directory / "checkpoints" / f"step-{step}" / "state.json").read_text())
    return State(**values["state"]), values["identity"]


def restore(directory: Path, engine: Engine, identity: dict[str, Any]) -> State:
    """Load the newest committed checkpoint, or start from nothing.

    Raises:
        UserError: A file's hash differs from COMMIT, or the checkpoint was written by another layout that ZeRO
            cannot re-shard; the message gives the command that converts it.
    """
    steps = committed(directory)
    if not steps:
        return State()
    step = steps[-1]
    folder = directory / "checkpoints" / f"step-{step}"
    problems = gather_objects(verify(folder) if engine.world.main else [], engine.world)[0]
    if problems:
        raise UserError(
            f"the checkpoint does not match its COMMIT: {', '.join(problems[:3])}",
            where=str(folder),
            hint=f"delete it (rm -r {folder}) to go on from the one before",
        )
    state, written = read_state(directory, step)
    _check_identity(folder, written, identity)
    engine.load(directory / "checkpoints", folder.name)
    return state


def _check_identity(folder: Path, written: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse what would not continue the same run."""
    for name in ("zero_stage", "precision", "slots"):
        if written.get(name) != now.get(name):
            raise UserError(
                f"the checkpoint was written with {name}={written.get(name)}, the recipe says {now.get(name)}",
                where=str(folder),
                hint=f"set train.{name}={written.get(name)} again, or remove the run's checkpoints to start anew",
            )
    if written["world"] != now["world"] and written["zero_stage"] > 0:
        raise UserError(
            f"ZeRO stage {written['zero_stage']} state of {written['world']} workers cannot be read by {now['world']}",
            where=str(folder),
            hint=f"go on with {written['world']} workers: models.NAME.train.workers={written['world']}",
        )


def verify(folder: Path) -> list[str]:
    """Names of files of a committed checkpoint that are missing or differ from COMMIT."""
    try:
        expected = json.loads((folder / "COMMIT").read_text())
    except json.JSONDecodeError:
        return ["COMMIT"]
    return [
        name
        for name, value in expected.items()
        if not (folder / name).is_file() or sha256(folder / name) != value
    ]


def drop_uncommitted(directory: Path, world: World) -> None:
    """Remove half-written checkpoints of a killed run."""
    if world.main:
        steps = set(committed(directory))
        for path in (directory / "checkpoints").glob("step-*"):
            if path.name.removeprefix("step-") not in {str(step) for step in steps}:
                shutil.rmtree(path)
    barrier(world)


def files_of(folder: Path) -> list[Path]:
    """All files below a folder but COMMIT, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "COMMIT")


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file's bytes are on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, values: Any) -> None:
    """Write JSON whole: temporary name, sync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(values, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
