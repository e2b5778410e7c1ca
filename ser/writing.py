"""Files of a checkpoint, written while the training waits or while it goes on.

Guarantees: in the background every tensor is copied to host memory before the caller goes on, so the files hold the very
state of that moment, whatever later steps do; each file is synced and its sha256 taken by the rank that wrote it; an
error of any rank's writer is raised on all.
Gives up: host memory for one copy of what this rank saves. DeepSpeed 0.19.8 has an engine of its own for this
(`checkpoint.writer.decoupled`); see `tests/bench/results/checkpoints.md` for why it is not used.
"""

import copy
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import torch

from ser.distributed import World, any_rank, gather_objects
from shards.errors import UserError


class Writing:
    """What one rank writes of one checkpoint.

    Args:
        folder: Of the checkpoint.
        background: Write in a thread, from copies, once `start` is called; else at once.
    """

    def __init__(self, folder: Path, background: bool):
        self.folder, self.background = folder, background
        self.hashes: dict[str, str] = {}  # relative name -> sha256
        self.error: str | None = None
        self._waiting: list[tuple[Any, Path]] = []
        self._thread: threading.Thread | None = None

    def add(self, state_dict: Any, path: str) -> None:
        """One file; takes the place of `save` of DeepSpeed's checkpoint engine."""
        if self.background:
            self._waiting.append((snapshot(state_dict, {}), Path(path)))
        else:
            self._write(state_dict, Path(path))

    def start(self) -> None:
        """All files are known: from here on nothing of the training is read."""
        if self.background:
            self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
            self._thread.start()

    def rest(self) -> None:
        """Wait until this rank writes no more."""
        if self._thread is not None:
            self._thread.join()

    def done(self, world: World) -> bool:
        """Whether every rank has written its files (every rank calls)."""
        return not any_rank(self._thread is not None and self._thread.is_alive(), world)

    def collect(self, world: World) -> dict[str, str]:
        """Wait for every rank; names and sha256 of all files that they wrote (every rank calls).

        Raises:
            UserError: A rank could not write.
        """
        self.rest()
        hashes: dict[str, str] = {}
        for rank, (error, found) in enumerate(gather_objects((self.error, self.hashes), world)):
            if error is not None:
                raise UserError(
                    f"the checkpoint could not be written (rank {rank}): {error}",
                    where=str(self.folder),
                    hint="make room there, then run the same command: it goes on from the checkpoint before",
                )
            hashes |= found
        return hashes

    def _work(self) -> None:
        while self._waiting and self.error is None:
            self._write(*self._waiting.pop(0))
        self._waiting.clear()

    def _write(self, state_dict: Any, path: Path) -> None:
        try:
            torch.save(state_dict, str(path))
            with path.open("rb") as file:
                os.fsync(file.fileno())
                self.hashes[str(path.relative_to(self.folder))] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
        except Exception as error:  # torch's archive writer says RuntimeError where the disk is full
            self.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def snapshot(value: Any, seen: dict[int, Any]) -> Any:
    """A state dict with every tensor copied to host memory and every container anew; shared tensors stay shared.

    Args:
        value: Nested dicts, lists and tuples.
        seen: id -> (tensor, its copy), of what was copied already.
    """
    if torch.is_tensor(value):
        if id(value) not in seen:
            seen[id(value)] = value, value.detach().to("cpu", copy=True)
        return seen[id(value)][1]
    if isinstance(value, dict):
        made = copy.copy(value)  # keeps the type, and what torch hangs onto a state dict
        for key, item in value.items():
            made[key] = snapshot(item, seen)
        return made
    if isinstance(value, (list, tuple)):
        items = [snapshot(item, seen) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return copy.copy(value)
