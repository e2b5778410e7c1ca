"""Trials without a model: what a sweep starts, watches and kills, over in a moment. `python -m tests.cluster_suite.toy_trials FOLDER
JSON` drives a sweep of them in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ser.sweep import SweepConfig
from tests.launch.test_run import below

SPACE = {
    "x": {"low": -1.0, "high": 1.0},
    "y": {"choice": ["a", "b"]},
    "z": {"low": 1, "high": 3, "int": True, "when": {"y": "b"}},
}
ORPHAN = "import time; time.sleep(1000)"  # outlives every test, unless whoever ends its trial ends it too


def orphans(folder: Path) -> list[str]:
    """What trials below a folder had started and is alive: command lines."""
    return below(f"{ORPHAN} {folder}")


def config(**changes: Any) -> SweepConfig:
    """A sweep over three numbers that no recipe has."""
    values: dict[str, Any] = {
        "space": SPACE,
        "objectives": [{"model": "m", "metric": "ua"}],
        "sampler": {"kind": "tpe", "seed": 3, "options": {"n_startup_trials": 3}},
    }
    return SweepConfig.model_validate(values | changes)


def judge(given: dict[str, Any]) -> float:
    """What a trial is worth: best at x = 0.5, y = b, z = 2."""
    return 1 - (given["x"] - 0.5) ** 2 - (0.2 if given["y"] == "a" else 0.05 * abs(given["z"] - 2))


def main(folder: str) -> int:
    """The trial's process. It leaves a line in `runs.txt` when it starts and one when it ends."""
    from cluster.trials import Outcome

    here = Path(folder)
    told = json.loads((here / "trial.json").read_text())
    runs = here / "runs.txt"
    with runs.open("a") as file:
        file.write(f"start {os.getpid()} {time.time()}\n")
    attempt = runs.read_text().count("start")
    how = told["how"]
    if told["number"] in how.get("orphans", []):
        subprocess.Popen([sys.executable, "-S", "-c", ORPHAN, folder], start_new_session=True)
    if told["number"] in how.get("refused", []):
        Outcome(refused="nonsense").write(here)
        return 2
    if attempt <= how.get("die", {}).get(str(told["number"]), 0):
        print("about to die")
        os.kill(os.getpid(), signal.SIGKILL)
    for step in range(how.get("steps", 1)):
        time.sleep(how.get("seconds", 0.0))
        with (here / "steps.txt").open("a") as file:
            file.write(f"{judge(told['values']) * (step + 1)}\n")
    Outcome(values=[judge(told["values"]), *how.get("more", [])]).write(here)
    with runs.open("a") as file:
        file.write(f"end {os.getpid()} {time.time()}\n")
    return 0


def so_far(number: int, folder: Path) -> dict[int, float]:
    """Step -> value of a trial on its way."""
    path = folder / "steps.txt"
    lines = path.read_text().split() if path.is_file() else []
    return {i + 1: float(value) for i, value in enumerate(lines)}


def sweep_of(folder: Path, sweep: SweepConfig, how: dict[str, Any], **options: Any) -> Any:
    """A sweep of toys; the study lies in `folder`."""
    from cluster.study import open_study
    from cluster.sweep import Sweep

    def prepare(number: int, at: Path, given: dict[str, Any]) -> None:
        at.mkdir(parents=True, exist_ok=True)
        (at / "trial.json").write_text(json.dumps({"number": number, "values": given, "how": how}))

    steps = how.get("steps", 1)
    study = open_study(
        sweep, "toys", folder, {"sweep": sweep.model_dump(mode="json", include={"space"})}, steps
    )
    options = {"say": lambda text: None, "so_far": so_far, "most": steps} | options
    return Sweep(study, sweep, folder / "trials", prepare, "tests.cluster_suite.toy_trials:main", **options)


def runs(folder: Path) -> dict[int, list[list[str]]]:
    """Number -> words of each line that its processes have left."""
    found = {}
    for path in sorted((folder / "trials").glob("*/runs.txt")):
        found[int(path.parent.name)] = [line.split() for line in path.read_text().splitlines()]
    return found


if __name__ == "__main__":
    from cluster.session import Session
    from cluster.sweep import drive

    told = json.loads(sys.argv[2])
    with Session(told.get("address"), cpus=told.get("cpus", 2)) as session:
        x = sweep_of(Path(sys.argv[1]), config(**told["sweep"]), told.get("how", {}), say=print)
        drive(x, session)
