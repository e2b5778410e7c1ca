"""Submission to Slurm: one job of n machines, with Ray inside; or one training, a process a GPU, without Ray.

Guarantees: told to stop before the time limit, or taken off its machines, the job saves, goes back into the queue and
goes on; a cancelled one does not. It knows its own end by the run directory, so no accounting database is needed.
Gives up: a job whose machines vanish without a signal goes on from its last checkpoint.

Ranks of a training without Ray are started by srun, not by torchrun's agent: the agent dies of SIGUSR1 and turns every exit
code into 1.
"""

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator

from launch.follow import follow_files
from launch.profile import Profile
from launch.record import Job, Live, Phase, Record
from launch.supervise import CANCEL
from ser.stopping import EXIT_CODE
from shards.errors import UserError

PATIENCE = 60.0  # seconds in which a cancelled job saves
QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "RESIZING"}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}


def render(job: Job, profile: Profile) -> str:
    """The batch scripts: one, or for folds the preparation, the array and the end."""
    return "\n".join(script(job, profile, part) for part in parts(job))


def parts(job: Job) -> tuple[str, ...]:
    """Of a submission: "" is the whole run; the others are sent in this order, each waiting for the one before."""
    return ("prepare", "folds", "end") if job.folds else ("",)


def script(job: Job, profile: Profile, part: str) -> str:
    """One batch script."""
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options(job, profile, part)), ""]
    lines += [f"cd {shlex.quote(job.folder)} || exit 2", f"home={shlex.quote(str(job.home))}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in profile.variables.items()]
    if part == "folds":
        lines += [f"folds=({shlex.join(job.folds)})", 'fold="${folds[$SLURM_ARRAY_TASK_ID]}"']
    return "\n".join([*lines, _ASKED, *profile.setup, "", *_step(job, profile, part)]) + _WAIT.format(
        code=EXIT_CODE, most=profile.slurm.requeues
    )


# An element of an array has an id of its own, but for one, whose own id names the whole array.
_ASKED = """id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"; id="${id:-$SLURM_JOB_ID}"
stop="$home/meeting-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}.stop"
trap ': > "$stop"' USR1
"""
# `wait` ends early when a trapped signal comes. A job that is cancelled or taken away is no longer RUNNING, and Slurm
# itself sees to it.
_WAIT = """
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
rm -f "$stop"
if [ "$code" -eq {code} ] && [ ! -e "$home/cancel" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ] &&
    [ "$(squeue --noheader --jobs "$id" --format %T)" = RUNNING ]; then
    echo "saved; back into the queue"
    scontrol requeue "$id"
fi
exit "$code"
"""


_LOGS = {"": "/log.txt", "prepare": "/log-0.txt", "folds": "/log-1-fold-%a.txt", "end": "/log-2.txt"}


def options(job: Job, profile: Profile, part: str = "") -> list[str]:
    """The `#SBATCH` options of a job."""
    site = profile.slurm
    ranks = max(1, profile.gpus) if job.training else 1
    given = {
        "job-name": job.name, "partition": site.partition, "account": site.account, "qos": site.qos,
        "reservation": site.reservation, "constraint": site.constraint, "nodes": profile.nodes, "ntasks-per-node": ranks,
        "cpus-per-task": profile.cpus and max(1, profile.cpus // ranks), "mem": profile.memory, "gres": site.gres,
        "gpus-per-node": profile.gpus if profile.gpus and not site.gres else None, "time": profile.time,
        "signal": f"B:USR1@{site.warning}", "open-mode": "append", "output": str(job.home).replace("%", "%%") + _LOGS[part],
    }  # fmt: skip
    if part == "folds":
        most = f"%{site.fold_jobs}" if site.fold_jobs else ""
        given |= {"array": f"0-{len(job.folds) - 1}{most}"}
    stated = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [shlex.quote(option) for option in [*stated, "--requeue", *site.extra]]


def _step(job: Job, profile: Profile, part: str) -> list[str]:
    """The lines that start the job's tasks in the background."""
    srun = ["srun", "--kill-on-bad-exit=0", "--wait=120"]
    if profile.cpus:
        srun.append(
            f"--cpus-per-task={max(1, profile.cpus // (max(1, profile.gpus) if job.training else 1))}"
        )
    inside: list[str] = []
    if profile.container:
        mounts = [*profile.container.mounts, f"{job.folder}:{job.folder}", f"{job.run}:{job.run}"]
        if profile.container.runtime == "pyxis":
            srun += [f"--container-image={profile.container.image}", f"--container-mounts={','.join(mounts)}"]
            srun.append(f"--container-workdir={job.folder}")
        else:
            inside = ["apptainer", "exec", *(["--nv"] if profile.gpus else [])]
            inside += [
                *(f"--bind={mount}" for mount in mounts),
                f"--pwd={job.folder}",
                profile.container.image,
            ]
    task = [job.python, "-m", "launch.slurm_task"]
    outcome = str(job.home / (f"outcome-{part}.json" if part else "outcome.json"))
    if job.training:
        words = shlex.join([*task, "ranks", str(job.home), outcome, str(job.recipe), *job.training])
    elif part == "folds":
        run = [job.python, "-m", "launch.cli", "run", str(job.recipe), "cluster.address=auto", "--fold"]
        named = f'{shlex.quote(str(job.home))}/"outcome-$fold.json"'
        words = f'{shlex.join([*task, "ray", str(job.home)])} {named} {shlex.join(run)} "$fold"'
    else:
        command = job.command()
        if part == "prepare":
            command[command.index("--until") + 1] = "features"
        words = shlex.join([*task, "ray", str(job.home), outcome, *command])
    return [
        f"{shlex.join(srun)} \\",
        f"    {shlex.join(inside)} {words} &".replace("     ", "    "),
        "step=$!",
    ]


def find(job: Job, profile: Profile) -> list[str]:
    """Ids of this run's jobs that wait or work."""
    listed = _slurm("squeue", "--me", "--noheader", f"--name={job.name}", "--format=%F")
    return sorted(set(listed.split()), key=int)


def apply(job: Job, text: str, profile: Profile) -> list[str]:
    """Hand the scripts to sbatch, once Slurm says that it could start them some day: else they would wait for ever."""
    ids: list[str] = []
    try:
        for part in parts(job):
            path = job.home / (f"job-{part}.sh" if part else "job.sh")
            path.write_text(script(job, profile, part))
            _slurm("sbatch", "--test-only", str(path))
            # The end follows however the folds ended: it does what they left.
            after = [f"--dependency={'afterok' if part == 'folds' else 'afterany'}:{ids[-1]}"] if ids else []
            after += ["--kill-on-invalid-dep=yes"] if after else []
            ids.append(_slurm("sbatch", "--parsable", *after, str(path)).split(";")[0].strip())
    except BaseException:
        if ids:
            _slurm("scancel", *ids)
        raise
    return ids


def status(record: Record) -> Live:
    """What squeue says; a job that it no longer knows has ended."""
    known = _slurm(
        "squeue",
        "--noheader",
        "--states=all",
        f"--name={record.name}",
        f"--user={record.user}",
        "--format=%F|%T|%r|%N",  # %F: of an array's elements the array's id
    )
    rows = [line.split("|") for line in known.splitlines() if line.split("|")[0] in record.ids]
    wanted: tuple[tuple[Phase, Collection[str]], ...] = (("running", RUNNING), ("queued", QUEUED))
    for phase, states in wanted:
        for _, state, reason, nodes in rows:
            if state in states:
                return Live(
                    phase, f"on {nodes}" if nodes and phase == "running" else f"{state.lower()}: {reason}"
                )
    return Live("ended", ", ".join(f"{row[1].lower()}" for row in rows))


def logs(record: Record, follow: bool) -> Iterator[str]:
    """What the job printed, over all its times in the queue."""
    return follow_files(record, lambda: sorted(record.home.glob("log*.txt")), status, follow)


def cancel(record: Record) -> None:
    """Let the job save and end where it runs; then, or at once where it waits, take it from the queue."""
    (record.home / CANCEL).touch()
    end = time.monotonic() + PATIENCE
    while status(record).phase == "running" and time.monotonic() < end:
        time.sleep(1)
    if status(record).phase != "ended":
        _slurm("scancel", *record.ids)


def _slurm(*command: str) -> str:
    """Output of one of Slurm's commands; its refusal as a UserError."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no {command[0]} on this machine",
            hint="submit from a login node of the Slurm cluster, or choose another target (--to)",
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    hint = next((words for mark, words in _HINTS.items() if mark in said.lower()), "")
    raise UserError(
        "Slurm refuses: "
        + re.sub(r"^(\w+: )?(error: )?(Batch job submission failed|allocation failure): ", "", said),
        where=shlex.join(command),
        hint=hint or "sinfo shows the partitions; the profile names what the job asks for",
    )


_HINTS = {
    "invalid partition": "sinfo --summarize lists the partitions; set slurm.partition in the profile",
    "invalid account": "sacctmgr show associations user=$USER lists your accounts; set slurm.account in the profile",
    "invalid qos": "sacctmgr show qos lists them; set slurm.qos in the profile",
    "more processors requested": "scontrol show partition: ask for fewer nodes, cpus or gpus in the profile",
    "node configuration is not available": "no machine has this: lower nodes, cpus, gpus, memory or slurm.gres in the profile",
    "time limit": "scontrol show partition shows MaxTime; set time in the profile",
    "unable to contact slurm controller": "is this a login node, and is slurmctld up? scontrol ping",
}
