"""The run's log: `events.jsonl` is the truth, TensorBoard and other trackers are copies for the eye.

One JSON object a line with at least `step` and `kind`. A resumed run drops what lies after its checkpoint and a torn
last line, so the file reads as if the run had never been killed.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser.trackers import Tracker, end, tell


def read(path: str | Path) -> list[dict[str, Any]]:
    """All whole events of a file (none if it is missing); a torn last line is left out."""
    path = Path(path)
    if not path.exists():
        return []
    events = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


class Events:
    """Writer of one training's events.

    Args:
        directory: The training's directory.
        resume_step: Events of later steps are dropped first; -1 starts afresh.
        tensorboard: Also write scalars for TensorBoard.
        trackers: Others that take every number (`ser.trackers`); they are closed with this.
    """

    def __init__(
        self,
        directory: str | Path,
        resume_step: int = -1,
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
    ):
        self.trackers = list(trackers)
        self.path = Path(directory) / "events.jsonl"
        kept = [event for event in read(self.path) if event["step"] <= resume_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(event) + "\n" for event in kept))
        temporary.replace(self.path)
        self.file = self.path.open("a")
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=resume_step + 1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one event; numbers also go to TensorBoard as `<kind>/<name>`."""
        clean = {name: _plain(value) for name, value in values.items()}
        self.file.write(
            json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **clean}) + "\n"
        )
        self.file.flush()
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in clean.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        tell(self.trackers, step, numbers)

    def close(self, whole: bool = True) -> None:
        """Flush and close; `whole` says whether the training is over."""
        self.file.close()
        end(self.trackers, whole)
        if self.board is not None:
            self.board.close()


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes None, so that any reader can parse the line."""
    if hasattr(value, "item") and (value.numel() if hasattr(value, "numel") else value.size) == 1:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
