"""Checkpoints that either exist whole or not at all.

`checkpoints/step-N/` holds DeepSpeed's files and `state.json`; `COMMIT`, written last, lists the sha256 of every file.
Readers ignore a directory without COMMIT. DeepSpeed's files unpickle on load, so they are loaded only from the run's
own directory and only after every hash has matched.

A ZeRO 1-3 checkpoint of another number of workers (or of stage 1 where 2 is asked for, or the reverse) is converted first:
`checkpoints/universal-N/`, committed in the same way, stays until the next checkpoint is saved.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ser.distributed import World, barrier, on_main
from ser.engine import BUFFERS, Engine
from ser.universal import ConversionFailed, convert, family
from ser.writing import Writing
from shards.atomic import raise_if_full
from shards.errors import UserError

CONVERTING = ".converting-"


@dataclass
class State:
    """What the loop knows besides weights and moments: all of it readable JSON.

    Attributes:
        step: Next global step.
        best: Best value of the dev metric so far and `best_step`, the step it was measured after.
        stale: Evaluations since the best.
        skipped: Steps skipped for non-finite values; `skipped_in_a_row` of them just now.
        quarantined: Utterances that could not be read while loading, key -> reason.
        memory: Of CCC terms that remember recent steps: term -> moments (6, 3) in float64.
    """

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    memory: dict[str, list[list[float]]] = field(default_factory=dict)


@dataclass
class Saving:
    """A checkpoint that is being written; `finish` commits it."""

    folder: Path
    engine: Engine
    state: State  # the loop's own: what it refers to by then is kept
    saved: dict[str, Any]
    keep: int
    writing: Writing


def save(directory: Path, engine: Engine, state: State, keep: int, identity: dict[str, Any]) -> Path:
    """Write and commit `checkpoints/step-N` (every rank calls); older ones beyond `keep` go afterwards.

    Args:
        directory: The training's directory.
        engine: What to save.
        state: The loop's state; `state.step` names the checkpoint.
        keep: How many committed checkpoints stay.
        identity: What must agree on resume (world, stage, precision, ...).

    Raises:
        UserError: A rank could not write.
    """
    return finish(begin(directory, engine, state, keep, identity))


def begin(
    directory: Path,
    engine: Engine,
    state: State,
    keep: int,
    identity: dict[str, Any],
    background: bool = False,
) -> Saving:
    """The first half of `save`: with `background` the training may go on, and is over in the time of a copy."""
    world, root = engine.world, directory / "checkpoints"
    tag = f"step-{state.step}"
    if world.main:
        shutil.rmtree(root / tag, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
    barrier(world)
    saved = {"state": asdict(state), "identity": identity}
    return Saving(root / tag, engine, state, saved, keep, engine.save(root, tag, background))


def finish(saving: Saving) -> Path:
    """The second half: wait for every rank's files, commit, and drop what is no longer needed (every rank calls)."""
    world, folder = saving.engine.world, saving.folder
    hashes = saving.writing.collect(world)

    def publish() -> None:
        try:
            write_json(folder / "state.json", saving.saved)
            _commit(folder, hashes)
        except OSError as error:
            raise_if_full(error, str(folder))
            raise
        _prune(folder.parent.parent, saving)

    on_main(publish, world)
    return folder


class Saver:
    """The checkpoints of one training: at most one of them is being written while the training goes on.

    Every rank calls each of these in the same order.
    """

    def __init__(
        self, directory: Path, engine: Engine, keep: int, identity: dict[str, Any], background: bool
    ):
        self.directory, self.engine, self.keep, self.identity = directory, engine, keep, identity
        self.background = background
        self._saving: Saving | None = None

    def save(self, state: State, wait: bool = False) -> None:
        """Save `state.step`; with `wait`, or without `background`, it is committed when this returns."""
        self.settle()
        background = self.background and not wait
        self._saving = begin(self.directory, self.engine, state, self.keep, self.identity, background)
        if not background:
            self.settle()

    def poll(self) -> None:
        """Commit what every rank has written by now."""
        if self._saving is not None and self._saving.writing.done(self.engine.world):
            self.settle()

    def settle(self) -> None:
        """Wait for what is being written, and commit it."""
        saving, self._saving = self._saving, None
        if saving is not None:
            finish(saving)

    def close(self) -> None:
        """Write no more. What is not committed by now is removed by whoever goes on."""
        if self._saving is not None:
            self._saving.writing.rest()


def _prune(directory: Path, saving: Saving) -> None:
    """Remove checkpoints beyond those to keep, their universal forms, and best weights that nothing refers to."""
    root = directory / "checkpoints"
    for step in committed(directory)[: -saving.keep]:
        shutil.rmtree(root / f"step-{step}")
    for path in root.glob("universal-*"):
        shutil.rmtree(path)
    referenced = {saving.state.best_step} | {
        read_state(directory, step)[0].best_step for step in committed(directory)
    }
    for path in directory.glob("best-*.safetensors"):
        if int(path.stem.split("-")[1]) not in referenced:
            path.unlink()


def _commit(folder: Path, known: dict[str, str] | None = None) -> None:
    """Write COMMIT once every other file is on disk; those of `known` sha256 are."""
    hashes = dict(known or {})
    for path in files_of(folder):
        name = str(path.relative_to(folder))
        if name not in hashes:
            hashes[name] = sha256(path)
            fsync(path)
    write_json(folder / "COMMIT", hashes)


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


def last_world(directory: Path) -> int | None:
    """Workers that wrote the newest committed checkpoint; None without one."""
    steps = committed(directory)
    return read_state(directory, steps[-1])[1]["world"] if steps else None


def restore(directory: Path, engine: Engine, identity: dict[str, Any]) -> State:
    """Load the newest committed checkpoint, or start from nothing.

    Raises:
        UserError: A file's hash differs from COMMIT, or the checkpoint was written by another layout that cannot be
            converted; the message says what to change.
    """
    steps = committed(directory)
    if not steps:
        return State()
    step = steps[-1]
    folder = directory / "checkpoints" / f"step-{step}"
    on_main(lambda: _check_files(folder), engine.world)
    state, written = read_state(directory, step)
    resharded = _needs_resharding(folder, written, identity)
    if resharded:
        name = on_main(lambda: _universal(folder, written).name, engine.world)
        folder = folder.with_name(name)
    engine.load(folder.parent, folder.name, resharded)
    return state


def _check_files(folder: Path) -> None:
    problems = verify(folder)
    if problems:
        raise UserError(
            f"the checkpoint does not match its COMMIT: {', '.join(problems[:3])}",
            where=str(folder),
            hint=f"delete it (rm -r {folder}) to go on from the one before",
        )


def _needs_resharding(folder: Path, written: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the checkpoint must be converted for this layout; refuses what would not continue the same run."""
    for name, alike in (("zero_stage", family), ("precision", str), ("slots", int)):
        if alike(written[name]) != alike(now[name]):
            raise UserError(
                f"the checkpoint was written with {name}={written[name]}, the recipe says {now[name]}",
                where=str(folder),
                hint=f"set models.NAME.train.{name}={written[name]} again, or remove the run's checkpoints to start anew",
            )
    moved = any(written[name] != now[name] for name in ("world", "zero_stage"))
    return moved and now["zero_stage"] > 0


def _universal(folder: Path, written: dict[str, Any]) -> Path:
    """The universal form of a checkpoint whose files have been verified: made and committed unless it stands already."""
    made = folder.with_name(folder.name.replace("step-", "universal-"))
    source = {"commit": sha256(folder / "COMMIT")}
    stands = (made / "COMMIT").is_file() and not verify(made)
    if stands and json.loads((made / "source.json").read_text()) == source:
        return made
    shutil.rmtree(made, ignore_errors=True)
    # A name of its own: the converter of a killed run may breathe for a moment longer.
    work = Path(tempfile.mkdtemp(prefix=CONVERTING, dir=folder.parent))
    try:
        convert(folder, work / made.name)
        (work / made.name).rename(made)
        for name in ("state.json", BUFFERS):
            shutil.copyfile(folder / name, made / name)
        write_json(made / "source.json", source)
        _commit(made)
    except ConversionFailed as error:
        raise UserError(
            f"the checkpoint of {written['world']} workers cannot be re-sharded: {error}",
            where=str(folder),
            hint=f"go on with {written['world']} workers: models.NAME.train.workers={written['world']}",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


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
        root, steps = directory / "checkpoints", committed(directory)
        for path in root.glob("step-*"):
            if path.name.removeprefix("step-") not in {str(step) for step in steps}:
                shutil.rmtree(path)
        for path in root.glob("universal-*"):
            if path.name != f"universal-{steps[-1] if steps else None}" or not (path / "COMMIT").is_file():
                shutil.rmtree(path)
        for path in root.glob(CONVERTING + "*"):
            shutil.rmtree(path, ignore_errors=True)
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
