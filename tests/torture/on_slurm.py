"""A job under torture as a submission to a real Slurm of two machines, one of which dies at the drawn moment and comes back."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from launch.to_slurm import QUEUED, RUNNING
from tests.cluster_suite.slurm import PACKAGES, Slurm, missing


def absent() -> str:
    """Why there can be no Slurm here; "" where there can."""
    if lacking := missing():
        return f"no {', '.join(lacking)} (apt-get install {PACKAGES})"
    return "" if os.getuid() == 0 else "slurmd starts other users' jobs: it must be root"


@contextlib.contextmanager
def two_machines() -> Iterator[Slurm]:
    """With a CPU each."""
    # munge's socket must be reached by everybody
    with (
        tempfile.TemporaryDirectory(prefix="ser-slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        Slurm(Path(folder)) as slurm,
    ):
        yield slurm


def profile(folder: Path, environment: dict[str, str]) -> Path:
    """Of a job on both machines, with this environment."""
    path = folder / "site.yaml"
    values = {
        "to": "slurm", "nodes": 2, "cpus": 1, "memory": "2G", "time": "00:30:00", "slurm": {"partition": "debug"},
        "environment": environment,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


def to_its_end(
    slurm: Slurm, run: Path, struck: Callable[[], dict | None], patience: float
) -> subprocess.CompletedProcess:
    """Wait for the end of a run's submission; the machine that `struck` names is killed once, and is back when Slurm has
    put the job back into its queue.
    """
    job, end = json.loads((run / "submission.json").read_text())["ids"][-1], time.monotonic() + patience
    home = max((run / "submissions").iterdir())

    def state() -> str:
        while not (
            told := slurm.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()
        ):
            assert time.monotonic() < end, f"Slurm does not tell how {job} is"
            time.sleep(1)
        return told

    def said() -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(home.glob("log*.txt")))

    def until(ready: Callable[[], bool]) -> None:
        while not ready():
            assert time.monotonic() < end, (
                f"{job} did not end in {patience:.0f} s: {state()} {said()[-1500:]}"
            )
            time.sleep(0.2)

    killed = struck() is not None  # by a submission before this one
    until(lambda: state() not in QUEUED | RUNNING or (not killed and struck() is not None))
    if not killed and (hit := struck()):
        slurm.kill_machine(hit["node"])
        until(lambda: state() not in RUNNING)
        slurm.start_machine(hit["node"])
        slurm.ask("scontrol", "update", f"NodeName={hit['node']}", "State=RESUME")
        until(lambda: state() not in QUEUED | RUNNING)
    outcome = home / "outcome.json"
    code = json.loads(outcome.read_text())["code"] if outcome.is_file() else None
    return subprocess.CompletedProcess(job, 1 if code is None else code, said(), "")
