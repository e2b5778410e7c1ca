"""What is known of a submitted run, in its run directory: who was asked, and what became of it.

    <run>/submission.json                  the newest submission: target, ids, host, number
    <run>/submissions/0001/recipe.yaml     the recipe as it was when it was submitted; the job runs this one
    <run>/submissions/0001/job.*           what was sent (script or YAML)
    <run>/submissions/0001/log*.txt        what the job printed, where the run directory is on the job's machine
    <run>/submissions/0001/outcome*.json   written by the job: machine, process, begin, end, exit code

Guarantees: the record is whole or absent; submitter and job never write the same file, so a killed submitter loses
nothing: the job's name is a function of the run directory, and every target is asked for it before a new one is sent.
"""

import getpass
import hashlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ser.stopping import EXIT_CODE
from shards import atomic
from shards.errors import UserError

NAME = "submission.json"
FOLDER = "submissions"
Phase = Literal["queued", "running", "ended", "unknown"]


class Live(NamedTuple):
    """What a target says of a job now."""

    phase: Phase
    detail: str = ""
    code: int | None = None  # of one that has ended, where the target knows it


@dataclass(frozen=True)
class Job:
    """What is to run.

    Attributes:
        name: The target's name for it, the same for every submission of a run directory.
        run: The run directory, absolute.
        number: Of this submission of the run, from 1.
        folder: Where it starts, on the job's machines.
        python: The interpreter there.
        arguments: Of `ser`, the recipe's place left out: {recipe} stands for it.
        there: The run directory on the job's machines.
        folds: Folds of an array of jobs; empty for one job.
        training: Of a training without Ray: (model, fold, seed).
    """

    name: str
    run: Path
    number: int
    folder: str
    python: str
    arguments: tuple[str, ...]
    there: str
    folds: tuple[str, ...] = ()
    training: tuple[str, str, str] | None = None

    @property
    def home(self) -> Path:
        """Folder of this submission in the run directory."""
        return self.run / FOLDER / f"{self.number:04d}"

    @property
    def recipe(self) -> Path:
        """The recipe as submitted."""
        return self.home / "recipe.yaml"

    @property
    def lock(self) -> str:
        """What a process that does the same by hand holds in the run directory."""
        return "sweep/.lock" if self.arguments[0] == "sweep" else ".lock"

    @property
    def outcome(self) -> str:
        """Where the job writes what became of it: in the run directory, or, of a run in an object store, on its machine."""
        if "://" in self.there:
            return f"/tmp/{self.name}-{self.number:04d}/outcome.json"
        return f"{self.there}/{FOLDER}/{self.number:04d}/outcome.json"

    def command(self, recipe: str | None = None, *more: str) -> list[str]:
        """The `ser` command of the job; `recipe` where it is not in the run directory."""
        filled = [a.replace("{recipe}", recipe or str(self.recipe)) for a in self.arguments]
        return [self.python, "-m", "launch.cli", *filled, *more]


@dataclass(frozen=True)
class Record:
    """A submission as it stands in the run directory.

    Attributes:
        ids: The target's own names of its jobs, the last one the one that ends the run.
        host: From where it was submitted.
        cancelled: Whether `ser cancel` was asked for.
        profile: The site's profile, in full.
        about: What else the target needs to find its job again.
    """

    name: str
    target: str
    ids: list[str]
    run: str
    number: int
    host: str
    user: str
    submitted: str
    profile: dict[str, Any]
    cancelled: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Folder of this submission in the run directory."""
        return Path(self.run) / FOLDER / f"{self.number:04d}"


def job_name(recipe_name: str, run: Path | str) -> str:
    """ser-NAME-xxxxxxxx: the same for every submission of a run directory, short enough for a RayJob (47 characters)."""
    plain = re.sub(r"[^a-z0-9]+", "-", recipe_name.lower()).strip("-")[:34].strip("-") or "run"
    return f"ser-{plain}-{hashlib.sha256(str(run).encode()).hexdigest()[:8]}"


def next_number(run: Path) -> int:
    """Of the next submission of a run."""
    taken = [int(p.name) for p in (run / FOLDER).glob("[0-9]*") if p.name.isdigit()]
    return max(taken, default=0) + 1


def new(job: Job, target: str, ids: list[str], profile: dict[str, Any], **about: Any) -> Record:
    """The record of a job that was just sent."""
    return Record(
        name=job.name, target=target, ids=ids, run=str(job.run), number=job.number, host=os.uname().nodename,
        user=getpass.getuser(), submitted=time.strftime("%Y-%m-%d %H:%M:%S %z"), profile=profile, about=about,
    )  # fmt: skip


def write(record: Record) -> None:
    """Put the record into its run directory."""
    atomic.write(Path(record.run) / NAME, json.dumps(asdict(record), indent=1) + "\n")


def read(run: Path) -> Record | None:
    """A run's newest submission; None where it was never submitted.

    Raises:
        UserError: The file is not a record.
    """
    path = run / NAME
    if not path.is_file():
        return None
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"not a submission's record ({error})",
            where=str(path),
            hint="remove the file; the run itself is not touched",
        ) from None


def outcomes(home: Path) -> list[dict[str, Any]]:
    """What the jobs of a submission wrote of themselves."""
    return [json.loads(p.read_text()) for p in sorted(home.glob("outcome*.json"))]


def summary(record: Record, live: Live) -> tuple[str, str]:
    """(state, detail): queued, running, done, stopped, cancelled, failed or lost.

    What the target says of a living job wins; of one that has ended, what the job wrote.
    """
    if live.phase in ("queued", "running"):
        return live.phase, live.detail
    found = outcomes(record.home)
    codes = [one.get("code") for one in found]
    if not found and live.code is not None:  # its run directory is not on this machine
        codes, found = [live.code], [{"ended": "there"}]
    if found and all(code == 0 for code in codes):
        return "done", f"ended {found[-1]['ended']}"
    if record.cancelled:
        return "cancelled", "submit it again to go on"
    if live.phase == "unknown":
        return "unknown", live.detail
    if not found:
        return "lost", live.detail or "it ended before it began to work; its log may say why"
    if any(code is None for code in codes):
        return "lost", live.detail or "it was killed; submit it again to go on"
    worst = max(code for code in codes if code is not None)
    if worst == EXIT_CODE or all(code in (0, EXIT_CODE) for code in codes):
        return "stopped", "it saved and stopped on request; submit it again to go on"
    return "failed", f"exit code {worst}; see its log"
