"""Submission to this machine: a detached process that survives the shell. Its id is PID@START (START in clock ticks)."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator

from launch.follow import follow_files
from launch.profile import Profile
from launch.record import Job, Live, Record, outcomes
from launch.supervise import started
from shards.errors import UserError

PATIENCE = 60.0  # seconds in which a job saves and ends before it is killed


def render(job: Job, profile: Profile) -> str:
    """The shell script that is started."""
    lines = ["#!/bin/bash", "set -eu", f"cd {shlex.quote(job.folder)}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in profile.variables.items()]
    lines += profile.setup
    outcome = shlex.quote(str(job.home / "outcome.json"))
    lines += [
        f"exec {shlex.quote(job.python)} -m launch.supervise {outcome} \\",
        f"    {shlex.join(job.command())}",
    ]
    return "\n".join(lines) + "\n"


def find(job: Job, profile: Profile) -> list[str]:
    """Ids of live jobs of this run on this machine, also of one whose submitter was killed before it wrote a record."""
    found = [one for home in (job.run / "submissions").glob("[0-9]*") for one in outcomes(home)]
    here = [
        one for one in found if one["host"] == os.uname().nodename and started(one["pid"]) == one["started"]
    ]
    return [f"{one['pid']}@{one['started']}" for one in here]


def apply(job: Job, text: str, profile: Profile) -> list[str]:
    """Start the script in a session of its own."""
    script = job.home / "job.sh"
    script.write_text(text)
    with (job.home / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            ["/bin/bash", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return [f"{process.pid}@{started(process.pid)}"]


def status(record: Record) -> Live:
    """Whether the process lives."""
    if record.host != os.uname().nodename:
        found = outcomes(record.home)
        if found and all(one["code"] is not None for one in found):
            return Live("ended")
        return Live("unknown", f"it was started on {record.host}; ask there")
    pid, ticks = record.ids[-1].split("@")
    # A dead child of ours (tests, notebooks) stays in /proc until it is waited for.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(int(pid), os.WNOHANG)
    alive = started(int(pid)) is not None and str(started(int(pid))) == ticks
    return Live("running", f"process {pid} on {record.host}") if alive else Live("ended")


def logs(record: Record, follow: bool) -> Iterator[str]:
    """What it printed."""
    return follow_files(record, lambda: [record.home / "log.txt"], status, follow)


def cancel(record: Record) -> None:
    """Let it save and end; kill it when it does not.

    Raises:
        UserError: It runs on another machine.
    """
    live = status(record)
    if live.phase == "unknown":
        raise UserError(
            "it runs on another machine", where=record.host, hint=f"ser cancel there: {live.detail}"
        )
    if live.phase == "ended":
        return
    pid = int(record.ids[-1].split("@")[0])
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while status(record).phase == "running" and time.monotonic() < end:
        time.sleep(0.1)
    if status(record).phase == "running":
        os.killpg(pid, signal.SIGKILL)  # its command ends with it
