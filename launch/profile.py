"""A site's profile: where jobs go and what they are given there. One YAML file, no secret in it.

    to: slurm
    folder: /shared/me/ser          # jobs start here; every node has it
    python: /shared/me/venv/bin/python
    setup: [module load cuda]
    environment: {HF_HOME: /shared/hf}
    nodes: 2
    gpus: 4                         # a node
    time: "08:00:00"
    slurm: {partition: gpu, account: speech}

Guarantees: an unknown key is refused with the nearest name; a value that looks like a secret is refused, because scripts
and records hold the whole profile.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ser.strict import Strict, read_yaml, validate
from shards.errors import UserError

TARGETS = ("local", "slurm", "ray", "kuberay", "skypilot")
Target = Literal["local", "slurm", "ray", "kuberay", "skypilot"]
SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL)S?$")
LOGIN = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # a URL with a password in it
LEAST = 60  # seconds of work a job must have before it is told to stop
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# One line of a script: nothing in a profile may end a directive and begin another.
_LINE = r"^[^\r\n]+$"


class Container(Strict):
    """The image that a job's processes run in.

    Attributes:
        image: A file or a registry's name, as the runtime wants it.
        runtime: pyxis (`srun --container-image`) or apptainer.
        mounts: "host:inside[:ro]" folders; the job's folder and the run directory are always mounted.
    """

    image: str = Field(pattern=_LINE)
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: list[str] = []


class Slurm(Strict):
    """What only Slurm knows.

    Attributes:
        start: ray (Ray on all nodes, the recipe on top) or srun (one training, a process a GPU, without Ray).
        warning: Seconds before the end of the time limit at which the job is told to save and go back into the queue.
        requeues: How often a job goes back into the queue by itself.
        fold_jobs: With `--folds`, jobs of the array that run at once; None is all.
        extra: More `#SBATCH` options, for example "--exclude=n17".
    """

    partition: str | None = Field(default=None, pattern=_NAME)
    account: str | None = Field(default=None, pattern=_NAME)
    qos: str | None = Field(default=None, pattern=_NAME)
    reservation: str | None = Field(default=None, pattern=_NAME)
    constraint: str | None = Field(default=None, pattern=_LINE)
    gres: str | None = Field(default=None, pattern=_LINE)
    start: Literal["ray", "srun"] = "ray"
    warning: int = Field(default=300, ge=1, le=65535)
    requeues: int = Field(default=100, ge=0)
    fold_jobs: int | None = Field(default=None, ge=1)
    extra: list[str] = []

    @field_validator("extra")
    @classmethod
    def _options(cls, values: list[str]) -> list[str]:
        for value in values:
            if not re.fullmatch(r"--[a-z-]+(=[^\r\n]*)?", value):
                raise ValueError(f"{value!r} is not an option such as --exclude=n17")
        return values


class RayJobs(Strict):
    """A running Ray cluster with a dashboard.

    Attributes:
        address: Of the dashboard, http://HOST:8265.
        token_file: Holds the cluster's token; default RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
        ship: Files and folders below the working folder that travel to the cluster, beside the code.
        exclude: More patterns of what never travels.
        code: Whether this installation's own code travels.
        limit_mb: Refuse to send more.
    """

    address: str = Field(default="http://127.0.0.1:8265", pattern=r"^https?://\S+$")
    token_file: str | None = None
    ship: list[str] = []
    exclude: list[str] = []
    code: bool = True
    limit_mb: float = Field(default=64, gt=0)


class Volume(Strict):
    """A persistent volume claim and where it is mounted in every pod."""

    claim: str = Field(pattern=_NAME)
    path: str = Field(pattern=r"^/")


class Toleration(Strict):
    """A taint that pods put up with, as Kubernetes spells it."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Kubernetes(Strict):
    """What only KubeRay knows.

    Attributes:
        image: Holds this package and its environment.
        volumes: Shared folders: one of them holds the profile's `folder`.
        token_secret: Kubernetes secret with the key `auth_token` (KubeRay 1.6 on); None lets the operator make one (1.5.1 on).
        secrets: Kubernetes secrets whose keys become environment variables (an object store's credentials).
        ray_version: Of the image; default the version installed here.
        queue: Of Kueue, where the cluster has it.
        retries: New clusters after a failed one (backoffLimit); each goes on from the run directory.
        keep: Seconds for which a finished job's cluster stays.
    """

    namespace: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    image: str | None = Field(default=None, pattern=_LINE)
    pull_secret: str | None = None
    service_account: str | None = None
    volumes: list[Volume] = []
    tolerations: list[Toleration] = []
    node_selector: dict[str, str] = {}
    token_secret: str | None = None
    secrets: list[str] = []
    ray_version: str | None = None
    queue: str | None = None
    gpu_resource: str = "nvidia.com/gpu"
    retries: int = Field(default=2, ge=0)
    keep: int = Field(default=300, ge=0)


class Sky(Strict):
    """What only SkyPilot knows.

    Attributes:
        infra: Where, as SkyPilot spells it ("aws/us-east-1", "k8s"); None lets it choose.
        accelerator: GPU name, for example H100; needed where `gpus` is given.
        spot: Whether machines may be taken away; managed jobs come back.
        image: Machine or container image.
        disk_gb: Disk of each machine.
        bucket: Object-store URL that is mounted at the profile's `folder`; runs survive machines there.
        install: Shell lines that install this package.
    """

    infra: str | None = None
    accelerator: str | None = Field(default=None, pattern=_NAME)
    spot: bool = True
    image: str | None = None
    disk_gb: int = Field(default=256, ge=10)
    bucket: str | None = Field(default=None, pattern=r"^(s3|gs|r2|cos|oci|https)://\S+$")
    install: list[str] = ["pip install 'ser-distill[train,cluster]'"]


class Profile(Strict):
    """A site.

    Attributes:
        to: The target that this profile is for; `--to` may say it instead.
        folder: Where jobs start, on every node; default the folder in which the command is given.
        python: Interpreter there; default this one.
        setup: Shell lines before anything else.
        environment: Variables of every process; no secrets. Jobs elsewhere have HF_HUB_OFFLINE=1 unless this says otherwise.
        nodes: Machines a job is given.
        cpus: CPUs of each; None leaves it to the site.
        gpus: GPUs of each.
        memory: Of each, "64G".
        time: Wall-clock limit, as Slurm spells it: "08:00:00", "2-00:00:00" or minutes.
    """

    to: Target | None = None
    folder: str | None = Field(default=None, pattern=r"^(/|[a-z0-9]+://)[^\r\n]*$")
    python: str | None = Field(default=None, pattern=_LINE)
    setup: list[str] = []
    environment: dict[str, str] = {}
    nodes: int = Field(default=1, ge=1)
    cpus: int | None = Field(default=None, ge=1)
    gpus: int = Field(default=0, ge=0)
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    time: str | None = Field(default=None, pattern=r"^(\d+-)?\d+(:\d+){0,2}$")
    container: Container | None = None
    slurm: Slurm = Slurm()
    ray: RayJobs = RayJobs()
    kubernetes: Kubernetes = Kubernetes()
    sky: Sky = Sky()

    @property
    def variables(self) -> dict[str, str]:
        """What every process of a job finds in its environment."""
        offline = {} if self.to == "local" else {"HF_HUB_OFFLINE": "1"}
        return offline | self.environment

    @property
    def offline(self) -> bool:
        """Whether jobs ask no hub."""
        return self.variables.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")

    @field_validator("environment")
    @classmethod
    def _plain(cls, values: dict[str, str]) -> dict[str, str]:
        for name in values:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of a variable")
        return values

    @model_validator(mode="after")
    def _time_to_work(self) -> "Profile":
        if self.to in (None, "slurm") and self.time and seconds(self.time) < self.slurm.warning + LEAST:
            raise ValueError(
                f"time {self.time} ends {self.slurm.warning} s (slurm.warning) after the job is told to stop, "
                f"which leaves it less than {LEAST} s to work: raise time, or lower slurm.warning"
            )
        return self

    @model_validator(mode="after")
    def _container_fits(self) -> "Profile":
        if self.container and self.to not in (None, "slurm"):
            raise ValueError("container is Slurm's; pods have kubernetes.image, machines sky.image")
        return self


def named(name: str) -> Profile:
    """The profile of a file, or by name from `$SER_PROFILES` or ~/.config/ser.

    Raises:
        UserError: No such profile, or a key or value that does not fit.
    """
    path = _find(name)
    values = read_yaml(path) or {}
    _refuse_secrets(values, str(path))
    return validate(Profile, values, where=str(path))


def read(name: str | None, to: str | None) -> Profile:
    """A profile with its target; without a name an empty one.

    Args:
        name: A path, or NAME for NAME.yaml in the folder of profiles.
        to: The target as given on the command line; it must not contradict the profile's.

    Raises:
        UserError: As `named`; no target, or another one than the profile's.
    """
    profile = named(name) if name else Profile()
    if to is not None and to not in TARGETS:
        raise UserError(f"no target {to!r}", hint=f"--to {' | '.join(TARGETS)}")
    if to is not None and profile.to is not None and profile.to != to:
        raise UserError(
            f"the profile is for {profile.to}, not for {to}",
            where=str(name),
            hint=f"--to {profile.to}, or another --profile",
        )
    chosen = to or profile.to
    if chosen is None:
        raise UserError("submit where?", hint=f"--to {' | '.join(TARGETS)}, or a profile with the key `to`")
    return profile.model_copy(update={"to": chosen})


def seconds(time: str) -> int:
    """Of a time limit as Slurm spells it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, rest_seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, rest_seconds = parts
    else:
        hours, (minutes, rest_seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest_seconds


def _refuse_secrets(values: Any, where: str) -> None:
    """Before validation, whose messages repeat values."""
    for place, name, value in _leaves(values):
        said = [name] if place.startswith("environment.") else []
        said += re.findall(r"(\w+)=", value)  # of a shell line
        if any(SECRET.search(one.upper()) for one in said) or LOGIN.search(value):
            raise UserError(
                f"{place} looks like a secret, and a profile is written into scripts and records",
                where=where,
                hint="keep it in the environment or in the usual files of the site (kubernetes.secrets for pods)",
            )


def _leaves(values: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """(place, last key, text) of every value."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{place}.{key}".lstrip("."))
    elif isinstance(values, list):
        for value in values:
            yield from _leaves(value, place)
    else:
        yield place, place.rpartition(".")[2], str(values)


def folder() -> Path:
    """Where profiles lie that are called by name."""
    return Path(os.environ.get("SER_PROFILES") or Path.home() / ".config" / "ser")


def _find(name: str) -> Path:
    for path in (Path(name), folder() / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(p.stem for p in folder().glob("*.yaml"))
    raise UserError(
        f"no profile {name!r}",
        where=f"{Path.cwd()}, {folder()}",
        hint=f"known: {', '.join(known)}" if known else f"write one at {folder() / f'{name}.yaml'}",
    )
