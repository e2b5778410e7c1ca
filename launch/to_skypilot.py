"""Submission to clouds by SkyPilot: a managed job, which comes back after its machines are taken away and goes on.

Guarantees: the run directory lies in a bucket that is mounted, or in an object store, so a new machine finds it; machines
meet by SkyPilot's own list of nodes; the cluster's token is made when the job is sent and travels as SkyPilot's secret, in no
file of ours.
Gives up: SkyPilot does the talking; what it was checked against is the form of its YAML, not a cloud.
"""

import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from launch.profile import Profile
from launch.record import Job, Live, Record
from launch.yaml_text import dump
from shards.errors import UserError

RECIPE = "/tmp/ser-recipe.yaml"
PORT = 6379  # SkyPilot's own Ray, on the same machines, holds 6380; so nothing here may call `ray stop`
_QUEUED = {"PENDING", "SUBMITTED", "STARTING", "RECOVERING"}
_RUNNING = {"RUNNING", "CANCELLING"}


def render(job: Job, profile: Profile) -> str:
    """The task."""
    return dump(task(job, profile))


def task(job: Job, profile: Profile) -> dict[str, Any]:
    """SkyPilot's task as plain values.

    Raises:
        UserError: GPUs of no name, or a run directory that would end with its machine.
    """
    site = profile.sky
    if profile.gpus and site.accelerator is None:
        raise UserError(
            "GPUs of which name?",
            where="profile: sky.accelerator",
            hint="for example H100; sky show-gpus lists them",
        )
    if site.bucket is None and "://" not in job.there:
        raise UserError(
            "the run directory would end with its machine",
            where=job.there,
            hint="mount a bucket at the profile's folder (sky.bucket), or give run_dir a URL",
        )
    resources: dict[str, Any] = {
        "infra": site.infra, "accelerators": f"{site.accelerator}:{profile.gpus}" if profile.gpus else None,
        "cpus": f"{profile.cpus}+" if profile.cpus else None, "memory": _gigabytes(profile.memory), "image_id": site.image,
        "use_spot": site.spot, "disk_size": site.disk_gb, "job_recovery": {"max_restarts_on_errors": 0},
    }  # fmt: skip
    made: dict[str, Any] = {
        "name": job.name,
        "num_nodes": profile.nodes,
        "resources": {key: value for key, value in resources.items() if value is not None},
        "envs": dict(profile.variables),
        "secrets": {"RAY_AUTH_TOKEN": None},
        "file_mounts": {RECIPE: str(job.recipe)},
        "setup": "\n".join(site.install),
        "run": script(job, profile),
    }
    if site.bucket:
        made["file_mounts"][job.folder] = {"source": site.bucket, "mode": "MOUNT"}
    return made


def script(job: Job, profile: Profile) -> str:
    """What every machine runs: Ray on all, the recipe on the first."""
    run = shlex.join([job.python, "-m", "launch.supervise", job.outcome, *job.command(RECIPE)])
    return _RUN.format(
        folder=shlex.quote(job.folder), setup="".join(f"{line}\n" for line in profile.setup), port=PORT,
        python=shlex.quote(job.python), run=run,
    )  # fmt: skip


_RUN = """cd {folder}
{setup}head=$(printf '%s\\n' "$SKYPILOT_NODE_IPS" | head -n 1)
export RAY_AUTH_MODE=token RAY_ADDRESS="$head:{port}" RAY_TMPDIR=/tmp/ser-ray
if [ "$SKYPILOT_NODE_RANK" != 0 ]; then
    until (exec 3<>"/dev/tcp/$head/{port}") 2>/dev/null; do sleep 2; done
    ray start --address "$RAY_ADDRESS" --block --disable-usage-stats || true  # it ends with the head
    exit 0
fi
RAY_ADDRESS= ray start --head --port {port} --block --include-dashboard=false --disable-usage-stats &
ray=$!
{python} -m cluster.node "$SKYPILOT_NUM_NODES" && {run}
code=$?
kill "$ray"
exit "$code"
"""


def _gigabytes(text: str | None) -> str | None:
    """Slurm's "64G" as SkyPilot's "64+" (GB)."""
    if text is None:
        return None
    number, unit = int(text.rstrip("KMGT")), text[-1] if text[-1].isalpha() else "M"
    return f"{max(1, round(number * {'K': 2**-20, 'M': 2**-10, 'G': 1, 'T': 1024}[unit]))}+"


def find(job: Job, profile: Profile) -> list[str]:
    """The name of this run's managed job while it lives."""
    return [job.name] if _phase(job.name).phase in ("queued", "running") else []


def apply(job: Job, text: str, profile: Profile) -> list[str]:
    """Hand the task to SkyPilot's controller of managed jobs."""
    path = job.home / "job.yaml"
    path.write_text(text)
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    _sky("jobs", "launch", "--yes", "--detach-run", "--secret", "RAY_AUTH_TOKEN", str(path), env=token)
    return [job.name]


def status(record: Record) -> Live:
    """What the controller says."""
    return _phase(record.ids[-1])


def logs(record: Record, follow: bool) -> Iterator[str]:
    """What the job printed."""
    yield _sky("jobs", "logs", "--name", record.ids[-1], *([] if follow else ["--no-follow"]))


def cancel(record: Record) -> None:
    """End the job and its machines."""
    _sky("jobs", "cancel", "--yes", "--name", record.ids[-1])


def _phase(name: str) -> Live:
    """The newest managed job of a name."""
    try:
        import sky  # pyright: ignore[reportMissingImports]  # the user's own; no part of ours
    except ImportError:
        raise _absent() from None
    rows = [row for row in sky.get(sky.jobs.queue(refresh=True)) if row["job_name"] == name]
    if not rows:
        return Live("ended", "the controller does not know it (any more)")
    row = max(rows, key=lambda row: row["job_id"])
    state = str(getattr(row["status"], "value", row["status"]))
    phase = "queued" if state in _QUEUED else "running" if state in _RUNNING else "ended"
    return Live(
        phase, f"job {row['job_id']}: {state}", None if phase != "ended" else int(state != "SUCCEEDED")
    )


def _absent() -> UserError:
    return UserError(
        "SkyPilot is not installed",
        hint="pip install skypilot, in an environment of its own; or give it the YAML of --dry-run",
    )


def _sky(*arguments: str, env: dict[str, str] | None = None) -> str:
    if shutil.which("sky") is None:
        raise _absent()
    done = subprocess.run(
        ["sky", *arguments], env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
    raise UserError(f"SkyPilot refuses: {said}", where=shlex.join(["sky", *arguments[:2]]), hint="sky check")
