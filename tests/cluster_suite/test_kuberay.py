"""`ser submit | status | logs | cancel` through the real `kubectl`, against an API server of our own (`tests.cluster_suite.kubernetes`):
no cluster, so what pods and KubeRay's operator would do is said by the tests.

Seen with kubectl 1.20.2 (Debian 12; its `exec` speaks SPDY, so the log is skipped) and 1.32.4.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launch import cli, to_kuberay
from launch import record as records
from launch import submit as submitting
from launch.profile import Profile
from ser.recipe import load
from shards.errors import UserError
from tests.cluster_suite.kubernetes import Api
from tests.processes import free_port
from tests.submitting import write_recipe

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The server; kubectl's settings are this process's."""
    if shutil.which("kubectl") is None:
        words = "no kubectl: apt-get install kubernetes-client"
        assert os.environ.get("SER_REQUIRE_KUBECTL") != "1", words
        pytest.skip(words)
    with Api(tmp_path / "kubernetes") as found:
        monkeypatch.setenv("KUBECONFIG", str(found.config))
        monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps what it has discovered
        yield found


class Sent:
    """A recipe, its profile, and the verbs."""

    def __init__(self, folder: Path):
        self.path = write_recipe(folder, folder, 1, run_dir="runs/tiny")
        kubernetes = {"namespace": "speech", "image": "example/ser:1", "volumes": [{"claim": "runs", "path": str(folder)}]}  # fmt: skip
        values = {"to": "kuberay", "folder": str(folder), "nodes": 2, "cpus": 4, "memory": "8G", "kubernetes": kubernetes}  # fmt: skip
        self.site = folder / "site.yaml"
        self.site.write_text(yaml.safe_dump(values))
        self.profile = Profile.model_validate(values)
        self.recipe = load(str(self.path))

    @property
    def job(self) -> records.Job:
        return submitting.make_job(self.recipe, self.profile, "report")

    def submit(self) -> records.Record:
        return submitting.submit(self.recipe, self.profile, self.job)


@pytest.fixture
def sent(tmp_path) -> Sent:
    return Sent(tmp_path)


def state(record: records.Record) -> tuple[str, str]:
    return records.summary(record, submitting.look(record))


def head(api: Api, record: records.Record, ray_id: str = "ser-1", **status: str) -> Path:
    """What the operator has by the time a job runs; the file that the driver prints into."""
    name = record.ids[0]
    labels = {"ray.io/cluster": f"{name}-c", "ray.io/node-type": "head"}
    pod = {"metadata": {"name": f"{name}-head", "labels": labels}, "spec": {"containers": [{"name": "ray-head"}]}, "status": {"phase": "Running"}}  # fmt: skip
    api.put("pods", "speech", pod)
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": f"{name}-c", "jobId": ray_id}  # fmt: skip
    api.say(name, **running | status)
    log = api.disk / f"session_latest/logs/job-driver-{ray_id}.log"
    log.parent.mkdir(parents=True)
    return log


def test_a_dry_run_asks_nobody(api, sent, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "submit", str(sent.path), "--profile", str(sent.site), "--dry-run")
    assert not end.value.code and len(api.objects) == 2, "two namespaces"
    recipe_map, ray_job = yaml.safe_load_all(capsys.readouterr().out)
    assert (recipe_map["kind"], ray_job["kind"]) == ("ConfigMap", "RayJob")


def call(monkeypatch, *arguments: str) -> None:
    """The `ser` command, in this process."""
    monkeypatch.setattr("sys.argv", ["ser", *arguments])
    cli.main()


def test_a_run_is_put_refused_while_it_lives_and_put_again_when_it_has_ended(api, sent):
    record = sent.submit()
    (name,) = record.ids
    ray_job, recipe_map = api.objects["rayjobs", "speech", name], api.objects["configmaps", "speech", name]
    told = yaml.safe_load(recipe_map["data"]["recipe.yaml"])
    assert told["name"] == sent.recipe.name and ray_job["spec"]["submissionMode"] == "HTTPMode"
    first = ray_job["metadata"]["uid"]
    for living in ({}, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}):
        api.say(name, **living)
        with pytest.raises(UserError, match=f"submitted already: kuberay {name}"):
            sent.submit()
    Path(record.run, records.NAME).unlink()  # as of a submitter that was killed
    with pytest.raises(UserError, match=name):
        sent.submit()
    api.say(name, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message="exit 1")
    again = sent.submit()
    assert again.ids == [name] and again.number == 2
    second = api.objects["rayjobs", "speech", name]
    assert second["metadata"]["uid"] != first and "status" not in second, "the old one has gone before"
    assert "0002" in second["spec"]["entrypoint"]


def test_a_state_is_what_the_operator_says(api, sent):
    record = sent.submit()
    (name,) = record.ids
    for status, wanted in (
        ({}, "queued"),
        ({"jobDeploymentStatus": "Initializing"}, "queued"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, "queued"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running"),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, "queued"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "done"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}, "failed"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "failed"),
    ):  # fmt: skip
        api.say(name, **status)
        assert state(record)[0] == wanted, status
    del api.objects["rayjobs", "speech", name]
    assert state(record) == ("lost", "the cluster does not know it (any more)")


def test_a_cancelled_run_is_gone_with_its_recipe(api, sent):
    record = sent.submit()
    submitting.cancel(record)
    assert not [key for key in api.objects if key[0] in ("rayjobs", "configmaps")]
    found = submitting.find(record.run)
    assert state(found)[0] == "cancelled"
    submitting.cancel(found)  # there is nothing left to do


def speaks_websocket() -> bool:
    said = json.loads(subprocess.run(["kubectl", "version", "--client", "--output=json"], capture_output=True, check=True).stdout)  # fmt: skip
    found = re.match(r"v1\.(\d+)", said["clientVersion"]["gitVersion"])
    return found is not None and int(found[1]) >= 31


@pytest.mark.slow
def test_a_log_is_the_drivers_own_and_is_followed_to_its_end(api, sent, monkeypatch):
    record = sent.submit()
    with pytest.raises(UserError, match="no cluster yet"):
        list(submitting.logs(record, False))
    log = head(api, record)
    if not speaks_websocket():
        with pytest.raises(UserError, match="WebSocket alone"):
            list(submitting.logs(record, False))
        pytest.skip("the rest needs kubectl 1.31: before it, exec speaks SPDY, which our API server does not")
    with pytest.raises(UserError, match=r"Kubernetes refuses: .*exit code 1") as told:
        list(submitting.logs(record, False))
    assert "kubectl exec" in told.value.where
    log.write_text("one\ntwo\n")
    assert list(submitting.logs(record, False)) == ["one\n", "two\n"]
    monkeypatch.setattr(to_kuberay, "GRACE", 0.5)
    lines = submitting.logs(record, True)
    assert [next(lines), next(lines)] == ["one\n", "two\n"]
    with log.open("a") as file:
        file.write("three\n")
    assert next(lines) == "three\n"
    api.say(record.ids[0], jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert list(lines) == []


def test_what_a_cluster_refuses_is_said_without_a_traceback(api, sent, monkeypatch, capsys):
    for verb, resource, words in (
        ("get", "rayjobs", "forbidden"),
        ("create", "configmaps", "forbidden"),
        ("create", "rayjobs", "forbidden"),
    ):  # fmt: skip
        api.forbidden = {(verb, resource)}
        with pytest.raises(UserError, match=words) as told:
            sent.submit()
        assert "kubectl" in told.value.where and "auth can-i" in told.value.hint
        assert not list(sent.recipe.records.glob("submissions/0*")), "nothing of it is left"
        assert not [key for key in api.objects if key[0] == "rayjobs"], "no job without its recipe"
    api.forbidden = set()
    record = sent.submit()
    api.forbidden = {("delete", "rayjobs")}
    with pytest.raises(UserError, match="forbidden"):
        submitting.cancel(record)
    assert not submitting.find(record.run).cancelled
    assert state(record)[0] == "queued"
    config = yaml.safe_load(api.config.read_text())
    config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{free_port()}"
    api.config.write_text(yaml.safe_dump(config))
    found, detail = state(record)
    assert found == "unknown" and "refused" in detail
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "cancel", record.run)
    said = capsys.readouterr().err
    assert (
        end.value.code == 2
        and said.startswith("error: Kubernetes refuses:")
        and "can this machine reach it" in said
    )


def test_a_cluster_without_kuberay_is_named(api, sent):
    api.installed = False
    with pytest.raises(UserError, match="doesn't have a resource type") as told:
        sent.submit()
    assert told.value.hint == "is KubeRay installed there?"


def test_what_does_not_answer_is_given_up(api, sent, monkeypatch):
    record = sent.submit()
    monkeypatch.setattr(to_kuberay, "PATIENCE", 0.001)
    assert "no answer" in state(record)[1]
