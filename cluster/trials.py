"""One trial on the cluster: its folder, the Ray task that watches over it, and what that takes.

Guarantees: a trial's process is no child of Ray's worker but of a reaper (`cluster.reaper`), so it ends with its worker, its
node or its driver, and leaves no process; it sees the GPUs of its task and nothing of Ray's settings.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import reaper
from cluster.place import Home
from ser.sweep import Resources
from shards import atomic

OUTCOME = "outcome.json"
_ROOT = Path(__file__).resolve().parents[1]
_reaper: subprocess.Popen | None = None  # of this worker: the pipes to it


@dataclass(frozen=True)
class Outcome:
    """How a trial ended by its own account: values of the objectives, or why it is refused."""

    values: list[float] | None = None
    refused: str | None = None

    def write(self, folder: Path) -> None:
        """Put it into the trial's folder, whole."""
        atomic.write(folder / OUTCOME, json.dumps({"values": self.values, "refused": self.refused}))


def outcome(folder: Path) -> Outcome | None:
    """What a trial says of its end; None while it has said nothing."""
    try:
        return Outcome(**json.loads((folder / OUTCOME).read_text()))
    except FileNotFoundError:
        return None


def last_words(folder: Path, most: int = 300) -> str:
    """The last line that a trial printed."""
    try:
        text = (folder / "log.txt").read_text(errors="replace")
    except FileNotFoundError:
        return "it printed nothing"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:most] if lines else "it printed nothing"


def request_stop(folder: Path, now: bool = False) -> None:
    """Ask the reaper of a trial to end it: with a moment to save where it is, or at once."""
    atomic.write(folder / reaper.STOP, reaper.NOW if now else "", durable=False)


def attend(entry: str, folder: str, home: Home, preload: str) -> int | None:
    """The Ray task: run `entry(folder)` in a process of its own and wait for it.

    Returns:
        Its exit code, negative for a signal; None when nobody knows.

    Raises:
        UserError: This machine does not share the driver's folders.
    """
    global _reaper
    home.enter()
    if (Path(folder) / reaper.STOP).exists():
        return None
    if _reaper is None:
        _reaper = _start(preload)
    assert _reaper.stdin is not None and _reaper.stdout is not None
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    request = {
        "entry": entry,
        "argument": folder,
        "folder": folder,
        "cwd": home.folder,
        "environment": environment,
    }
    try:
        _reaper.stdin.write(json.dumps(request).encode() + b"\n")
        _reaper.stdin.flush()
        answer = _reaper.stdout.readline()
    except BrokenPipeError:
        answer = b""
    if answer:
        return json.loads(answer)["code"]
    _reaper = None  # it is gone
    return None


def _start(preload: str) -> subprocess.Popen:
    code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); sys.argv[1:] = [{preload!r}]; import runpy; runpy.run_module('cluster.reaper', run_name='__main__')"
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    started.wait()  # it goes on as nobody's child
    return started


def options(want: Resources) -> dict[str, Any]:
    """What a trial's task takes, as Ray is told."""
    more = {"memory": memory(want)} if want.memory_gb is not None else {}
    return {"num_cpus": want.cpus, "num_gpus": want.gpus, "max_retries": 0, **more}


def memory(want: Resources) -> int:
    """Bytes that a trial takes of what its machine has told Ray; 0 where it does not say."""
    return int((want.memory_gb or 0) * 2**30)
