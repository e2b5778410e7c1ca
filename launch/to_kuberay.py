"""Submission to Kubernetes as a RayJob of KubeRay (ray.io/v1): a cluster of its own that starts, runs and ends with the run.

Guarantees: a retry is a new cluster that goes on from the run directory; the cluster asks for a token (authOptions; KubeRay 1.5.1
on); the operator itself submits (HTTPMode), so no submitter pod can fail in its place; secrets are named, never written.
Gives up: `kubectl` does the talking, with the context that it has. Nothing is mounted but what the profile names.
"""

import contextlib
import importlib.metadata
import json
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from launch.profile import Kubernetes, Profile
from launch.record import Job, Live, Record
from launch.yaml_text import dump
from shards.errors import UserError

RECIPE = "/etc/ser/recipe.yaml"
PATIENCE = 300.0  # seconds: a RayJob that is deleted waits for its cluster
GRACE = 3.0  # seconds between two looks at a job whose log is followed, and for its last lines
_QUEUED = {"", "Initializing", "Waiting", "Suspending", "Suspended", "Retrying"}


def render(job: Job, profile: Profile) -> str:
    """The recipe's ConfigMap and the RayJob, as two YAML documents; the recipe's text stands once it is submitted."""
    text = job.recipe.read_text() if job.recipe.is_file() else "# the recipe as it is when it is submitted\n"
    documents = [_recipe_map(job, profile, text), ray_job(job, profile)]
    return "---\n".join(dump(d) for d in documents)


def ray_job(job: Job, profile: Profile) -> dict[str, Any]:
    """The RayJob.

    Raises:
        UserError: No image, or no volume that holds the job's folder.
    """
    site = profile.kubernetes
    _refuse_unusable(job, profile)
    version = site.ray_version or importlib.metadata.version("ray")
    auth = {"mode": "token"} | ({"secretName": site.token_secret} if site.token_secret else {})
    cluster: dict[str, Any] = {
        "rayVersion": version,
        "authOptions": auth,
        "headGroupSpec": {"rayStartParams": {}, "template": _pod(job, profile, head=True)},
    }
    if profile.nodes > 1:
        workers = profile.nodes - 1
        cluster["workerGroupSpecs"] = [
            {
                "groupName": "workers", "replicas": workers, "minReplicas": workers, "maxReplicas": workers,
                "rayStartParams": {}, "template": _pod(job, profile, head=False),
            }
        ]  # fmt: skip
    spec: dict[str, Any] = {
        "entrypoint": entrypoint(job, profile),
        "submissionMode": "HTTPMode",
        "backoffLimit": site.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": site.keep,
        "rayClusterSpec": cluster,
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(job, site), "spec": spec}


def entrypoint(job: Job, profile: Profile) -> str:
    """What the head runs."""
    run = shlex.join([job.python, "-m", "launch.supervise", job.outcome, *job.command(RECIPE)])
    return " && ".join([f"cd {shlex.quote(job.folder)}", *profile.setup, f"exec {run}"])


def _metadata(job: Job, site: Kubernetes) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "ser"}
    labels |= {"kueue.x-k8s.io/queue-name": site.queue} if site.queue else {}
    return {"name": job.name, "namespace": site.namespace, "labels": labels}


def _recipe_map(job: Job, profile: Profile, text: str) -> dict[str, Any]:
    metadata = {"name": job.name, "namespace": profile.kubernetes.namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"recipe.yaml": text}}


def _pod(job: Job, profile: Profile, head: bool) -> dict[str, Any]:
    site = profile.kubernetes
    resources = {"cpu": str(profile.cpus) if profile.cpus else None, "memory": _memory(profile.memory)}
    resources |= {site.gpu_resource: profile.gpus or None}
    have = {name: value for name, value in resources.items() if value is not None}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    for number, volume in enumerate(site.volumes):
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": volume.claim}})
        mounts.append({"name": f"volume-{number}", "mountPath": volume.path})
    if head:
        volumes.append({"name": "recipe", "configMap": {"name": job.name}})
        mounts.append({"name": "recipe", "mountPath": "/etc/ser", "readOnly": True})
    container: dict[str, Any] = {
        "name": "ray-head" if head else "ray-worker",
        "image": site.image,
        "env": [{"name": name, "value": value} for name, value in profile.variables.items()],
        "resources": {"limits": have, "requests": dict(have)},
        "volumeMounts": mounts,
    }
    if site.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in site.secrets]
    spec: dict[str, Any] = {"containers": [container], "volumes": volumes}
    if site.service_account:
        spec["serviceAccountName"] = site.service_account
    if site.pull_secret:
        spec["imagePullSecrets"] = [{"name": site.pull_secret}]
    if site.node_selector:
        spec["nodeSelector"] = dict(site.node_selector)
    if site.tolerations:
        spec["tolerations"] = [t.model_dump(exclude_none=True) for t in site.tolerations]
    return {"spec": spec}


def _memory(text: str | None) -> str | None:
    """Slurm's "64G" (binary) as Kubernetes' "64Gi"; bare numbers are MiB."""
    return None if text is None else (f"{text}Mi" if text.isdigit() else f"{text}i")


def _refuse_unusable(job: Job, profile: Profile) -> None:
    site = profile.kubernetes
    if site.image is None:
        raise UserError("pods of which image?", where="profile: kubernetes.image", hint="one that holds this package: FROM rayproject/ray, pip install ser-distill[train,cluster]")  # fmt: skip
    for what in (job.folder, job.there):
        inside = any(f"{what}/".startswith(f"{volume.path.rstrip('/')}/") for volume in site.volumes)
        if "://" not in what and not inside:
            raise UserError(
                "no volume holds it, so it would end with its pod",
                where=what,
                hint="mount a claim there (kubernetes.volumes), set the profile's folder below one, or give run_dir a URL",
            )


def find(job: Job, profile: Profile) -> list[str]:
    """The name of this run's RayJob while it lives."""
    found = _get(job.name, profile.kubernetes.namespace)
    return [job.name] if found is not None and _phase(found).phase in ("queued", "running") else []


def apply(job: Job, text: str, profile: Profile) -> list[str]:
    """Put both documents; a RayJob of this name that has ended goes first, for its spec cannot be changed."""
    (job.home / "job.yaml").write_text(text)
    namespace = profile.kubernetes.namespace
    _kubectl("delete", "rayjob", job.name, f"--namespace={namespace}", "--ignore-not-found", "--wait=true")
    try:
        _kubectl("apply", "--filename", str(job.home / "job.yaml"))
    except UserError:
        # one document may have been taken: a RayJob without its recipe, or with that of a submission before
        with contextlib.suppress(UserError):
            _kubectl("delete", "rayjob", job.name, f"--namespace={namespace}", "--ignore-not-found")
        raise
    return [job.name]


def status(record: Record) -> Live:
    """What the operator wrote of it."""
    found = _get(record.ids[-1], _namespace(record))
    return Live("ended", "the cluster does not know it (any more)") if found is None else _phase(found)


def _phase(found: dict[str, Any]) -> Live:
    said = found.get("status", {})
    deployment, state = said.get("jobDeploymentStatus", ""), said.get("jobStatus", "")
    detail = " ".join(x for x in (deployment, state, said.get("reason", ""), said.get("message", "")) if x)
    if deployment in _QUEUED or (deployment == "Running" and state in ("", "PENDING")):
        return Live("queued", detail)
    if deployment == "Running":
        return Live("running", detail)
    return Live("ended", detail, 0 if state == "SUCCEEDED" else 1)


def logs(record: Record, follow: bool) -> Iterator[str]:
    """What the head printed: the driver's own log, by Ray's job."""
    found = _get(record.ids[-1], _namespace(record)) or {}
    cluster, ray_id = (found.get("status", {}).get(key) for key in ("rayClusterName", "jobId"))
    if not cluster or not ray_id:
        raise UserError(
            "it has no cluster yet, or no more",
            where=record.ids[-1],
            hint="ser status; its log is in the run directory too",
        )
    head = _kubectl("get", "pods", f"--namespace={_namespace(record)}", f"--selector=ray.io/cluster={cluster},ray.io/node-type=head", "--output=name").split()  # fmt: skip
    if not head:
        raise UserError(
            "its cluster has no head now", where=record.ids[-1], hint="ser status; ser logs, a little later"
        )
    log = f"/tmp/ray/session_latest/logs/job-driver-{ray_id}.log"
    tail = ["tail", "-n", "+1", *(["-F"] if follow else []), log]
    command = ["kubectl", "exec", f"--namespace={_namespace(record)}", "--container=ray-head", head[0], "--", *tail]  # fmt: skip
    ended = threading.Event()
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:  # fmt: skip
        assert process.stdout is not None
        if follow:
            threading.Thread(target=_end_with, args=(record, process, ended), daemon=True).start()
        try:
            yield from process.stdout
            code = process.wait()
        finally:
            process.terminate()  # of a reader that has seen enough
        errors.seek(0)
        if code and not ended.is_set() and (not follow or status(record).phase != "ended"):
            raise _refusal(command[1:], errors.read().strip() or f"exit code {code}")


def _end_with(record: Record, process: subprocess.Popen, ended: threading.Event) -> None:
    """`tail -F` goes on for ever: end it some seconds after its job."""
    while process.poll() is None:
        with contextlib.suppress(UserError):  # asked again
            if status(record).phase == "ended":
                time.sleep(GRACE)  # its last lines are still on their way
                ended.set()
                process.terminate()
                return
        time.sleep(GRACE)  # between two questions to the API server


def cancel(record: Record) -> None:
    """Delete the RayJob and the ConfigMap; its cluster goes with it."""
    for kind in ("rayjob", "configmap"):
        _kubectl("delete", kind, record.ids[-1], f"--namespace={_namespace(record)}", "--ignore-not-found")


def _namespace(record: Record) -> str:
    return record.profile.get("kubernetes", {}).get("namespace", "default")


def _get(name: str, namespace: str) -> dict[str, Any] | None:
    said = _kubectl("get", "rayjob", name, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
    return json.loads(said) if said.strip() else None


def _kubectl(*arguments: str) -> str:
    if shutil.which("kubectl") is None:
        raise UserError(
            "there is no kubectl on this machine",
            hint="install it, or take the YAML of --dry-run to a machine that has it",
        )
    try:
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _refusal(arguments, f"no answer within {PATIENCE:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    raise _refusal(arguments, done.stderr.strip() or f"exit code {done.returncode}")


def _refusal(arguments: Sequence[str], said: str) -> UserError:
    """What kubectl could not do, in its own last words."""
    absent = ("the server doesn't have a resource type", 'no matches for kind "RayJob"')
    away = ("was refused", "no such host", "i/o timeout", "Unable to connect", "no answer")
    hint = "kubectl config current-context; kubectl auth can-i create rayjobs"
    if any(words in said for words in absent):
        hint = "is KubeRay installed there?"
    elif any(words in said for words in away):
        hint = "is it the right cluster (kubectl config current-context), and can this machine reach it (kubectl version)?"
    if arguments[0] == "delete" and "no answer" in said:
        hint = "something holds it (finalizers): kubectl get -o yaml; the same command asks again"
    return UserError(
        f"Kubernetes refuses: {said.strip().splitlines()[-1]}",
        where=shlex.join(["kubectl", *arguments[:3]]),
        hint=hint,
    )
