"""Submission to a running Ray cluster by its Jobs API.

Guarantees: the submission's id is known before it is sent (run and number), so none is sent twice; the cluster's token comes
from a file or the environment and is neither printed nor written; the job starts in the profile's `folder` on the cluster,
never in Ray's own temporary copy of the package, whose contents end with the session.
"""

import asyncio
import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch import parcel
from launch.profile import Profile
from launch.record import Job, Live, Record, outcomes
from launch.supervise import CANCEL
from shards.errors import UserError

RECIPE = "submitted/recipe.yaml"
PATIENCE = 60  # seconds in which a job that is ended may save
_RUNNING = {"PENDING": "queued", "RUNNING": "running"}
_OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # each would replace the profile's address


def request(job: Job, profile: Profile) -> dict[str, Any]:
    """What is sent, but for the package itself."""
    run = job.command(f"$package/{RECIPE}")
    # Joined by hand: $package is for the shell there.
    words = [f'"{word}"' if word.startswith("$package") else shlex.quote(word) for word in run]
    steps = ['package="$PWD"', 'export PYTHONPATH="$PWD:${PYTHONPATH:-}"', f"cd {shlex.quote(job.folder)}"]
    start = f"exec {shlex.quote(job.python)} -m launch.supervise {shlex.quote(job.outcome)} {' '.join(words)}"
    # The recipe's own variables may differ from the job's; those of the workers win.
    env = {
        **profile.variables,
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(PATIENCE),
    }
    return {
        "submission_id": f"{job.name}-{job.number:04d}",
        "entrypoint": " && ".join([*steps, *profile.setup, start]),
        "runtime_env": {"working_dir": str(job.home / "package.zip"), "env_vars": env},
        "metadata": {"run": job.there},
    }


def render(job: Job, profile: Profile) -> str:
    """The request and the list of what travels."""
    site, here = profile.ray, Path.cwd()
    files = _files(job, profile, here)
    own = [name for name, path in files.items() if path.is_relative_to(here)]
    said = [f"# to {site.address}; {len(files) + 1} files travel: {RECIPE}"]
    said += [f"#   {len(files) - len(own)} of the package's own code"] if site.code else []
    said += [f"#   {name}" for name in own]
    return "\n".join([*said, json.dumps(request(job, profile), indent=2)]) + "\n"


def _files(job: Job, profile: Profile, here: Path) -> dict[str, Path]:
    """What travels from `here`: never the run itself, wherever it lies."""
    site, exclude = profile.ray, list(profile.ray.exclude)
    if job.run.is_relative_to(here.resolve()):
        exclude.append(str(job.run.relative_to(here.resolve())))
    return parcel.contents(here, site.ship, exclude, site.code, site.limit_mb)


def find(job: Job, profile: Profile) -> list[str]:
    """Ids of live jobs of this run."""
    with _asking(profile.ray.model_dump()) as client:
        every = client.list_jobs()
    mine = (j for j in every if (j.submission_id or "").startswith(f"{job.name}-"))
    return sorted(str(j.submission_id) for j in mine if str(j.status) in _RUNNING)


def apply(job: Job, text: str, profile: Profile) -> list[str]:
    """Pack what travels, send it, and start the job."""
    site = profile.ray
    files = _files(job, profile, Path.cwd())
    parcel.write(job.home / "package.zip", files, {RECIPE: job.recipe.read_text()})
    (job.home / "job.json").write_text(text)
    with _asking(site.model_dump()) as client:
        return [client.submit_job(**request(job, profile))]


def status(record: Record) -> Live:
    """What the cluster says."""
    try:
        with _asking(record.profile.get("ray", {})) as client:
            info = client.get_job_info(record.ids[-1])
    except UserError as error:
        if "does not exist" not in error.what:
            raise
        return Live("ended", "the cluster does not know it (any more)")
    phase = _RUNNING.get(str(info.status))
    if phase is not None:
        return Live("queued" if phase == "queued" else "running", (info.message or "").splitlines()[0])
    code = 0 if str(info.status) == "SUCCEEDED" else info.driver_exit_code or 1
    return Live("ended", str(info.status).lower(), code)


def logs(record: Record, follow: bool) -> Iterator[str]:
    """What the job printed."""
    with _asking(record.profile.get("ray", {})) as client:
        if not follow:
            yield client.get_job_logs(record.ids[-1])
            return
        tail = client.tail_job_logs(record.ids[-1])
        with asyncio.Runner() as runner:
            while True:
                try:
                    yield runner.run(anext(tail))
                except StopAsyncIteration:
                    return


def cancel(record: Record) -> None:
    """Let the job save and end where its run directory is ours too; else, or when it does not, stop it."""
    (record.home / CANCEL).touch()
    end = time.monotonic() + (PATIENCE if outcomes(record.home) else 0)
    while status(record).phase == "running" and time.monotonic() < end:
        time.sleep(1)
    if status(record).phase == "ended":
        return
    with _asking(record.profile.get("ray", {})) as client:
        client.stop_job(record.ids[-1])
    end = time.monotonic() + PATIENCE
    while status(record).phase != "ended" and time.monotonic() < end:
        time.sleep(0.5)


def token(site: Mapping[str, Any]) -> str | None:
    """The cluster's token: the profile's file, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or Ray's own file.

    Raises:
        UserError: The profile's file cannot be read.
    """
    named = site.get("token_file")
    if named is None and os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(
        named or os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    ).expanduser()
    try:
        return path.read_text().strip()
    except OSError as error:
        if named is None:
            return None
        raise UserError(f"the cluster's token cannot be read ({error.strerror})", where=str(path), hint="mend ray.token_file in the profile") from None  # fmt: skip


@contextlib.contextmanager
def _asking(site: Mapping[str, Any]) -> Iterator[Any]:
    """A client of the cluster's Jobs API; its refusals as UserErrors."""
    from cluster.place import require_ray

    require_ray()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    address = site.get("address") or "http://127.0.0.1:8265"
    known = token(site)
    saved = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        yield JobSubmissionClient(address, headers={"Authorization": f"Bearer {known}"} if known else {})
    except AuthenticationError:
        raise UserError(
            "the cluster refuses the token" if known else "the cluster asks for a token",
            where=address,
            hint="ray.token_file in the profile names a file with the head's token (RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH serve as well)",
        ) from None
    except (ConnectionError, TimeoutError) as error:
        raise UserError(
            f"no Ray cluster answers ({str(error).splitlines()[0][:200]})",
            where=address,
            hint="ray start --head --include-dashboard=true on the head; ray.address in the profile; a tunnel (ssh -L)?",
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"the cluster refuses: {str(error).strip().splitlines()[-1][:300]}", where=address
        ) from None
    finally:
        os.environ |= saved
