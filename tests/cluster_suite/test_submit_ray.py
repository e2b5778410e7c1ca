"""Submission to a real Ray cluster by its Jobs API, and to a detached process of this machine."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import yaml

from cluster.node import AT_ONCE
from launch import record as records
from launch import submit as submitting
from tests.conftest import ROOT
from tests.processes import free_port
from tests.submitting import gates, results, saved, ser, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(address, token file) of a cluster whose dashboard listens on loopback; its temporary folder has a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ser-jobs-", dir="/tmp"))
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    port = free_port()
    env = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder), "PYTHONPATH": "",
        "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **AT_ONCE,
    }  # fmt: skip
    options = {
        "port": free_port(), "dashboard-host": "127.0.0.1", "dashboard-port": port, "num-cpus": 2, "min-worker-port": 0,
        "max-worker-port": 0, "ray-client-server-port": free_port(), "dashboard-agent-listen-port": free_port(),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--include-dashboard=true",
    ]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: b"Ray runtime started" in (folder / "head.log").read_bytes(), "the head starts", 120)
        yield f"http://127.0.0.1:{port}", token
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(head.pid, number)
                head.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        shutil.rmtree(folder, ignore_errors=True)


def profile(folder: Path, cluster, **changes) -> Path:
    address, token = cluster
    path = folder / "ray.yaml"
    values = {
        "to": "ray",
        "folder": str(folder),
        "python": sys.executable,
        "ray": {"address": address, "token_file": str(token)},
    }
    values["ray"] |= changes.pop("ray", {})
    path.write_text(yaml.safe_dump(values | changes))
    return path


def state(recipe: Path) -> str:
    record = records.read(recipe.parent / "run")
    assert record is not None
    return records.summary(record, submitting.look(record))[0]


def ends(recipe: Path, seconds: float = 600) -> str:
    until(lambda: state(recipe) not in ("queued", "running", "unknown"), "the job ends", seconds)
    return state(recipe)


@pytest.fixture(scope="module")
def done_on_ray(cluster, corpus, tmp_path_factory):
    """A run submitted with files around it that must stay at home; (recipe, what following its log gave)."""
    folder = tmp_path_factory.mktemp("ray")
    recipe = write_recipe(folder, corpus, STEPS)
    (folder / ".env").write_text("SECRET=1")
    (folder / "data").mkdir()
    (folder / "data/audio.txt").write_text("x")
    (folder / "notes.txt").write_text("x")
    site = profile(folder, cluster, ray={"ship": ["."]})
    # A wrong RAY_ADDRESS in the environment must not win over the profile.
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
    try:
        submitted = ser("submit", str(recipe), "--profile", str(site), cwd=folder)
    finally:
        del os.environ["RAY_ADDRESS"]
    assert submitted.returncode == 0, submitted.stderr
    followed = ser("logs", "--follow", str(folder / "run"), timeout=600)
    assert ends(recipe) == "done", followed.stdout
    return recipe, followed.stdout


def test_a_job_runs_to_its_end_in_the_shared_folder_and_its_log_is_followed(done_on_ray, cluster):
    recipe, followed = done_on_ray
    assert "joining Ray at auto" in followed and "report.html" in followed
    assert (recipe.parent / "run/report.html").is_file()
    told = ser("status", str(recipe))
    assert told.returncode == 0 and "done" in told.stdout
    token = cluster[1].read_text()
    for path in [p for p in (recipe.parent / "run").rglob("*") if p.is_file()]:
        assert token.encode() not in path.read_bytes(), f"{path} holds the token"
    assert token not in followed


def test_what_stayed_at_home(done_on_ray):
    package = done_on_ray[0].parent / "run/submissions/0001/package.zip"
    names = zipfile.ZipFile(package).namelist()
    assert "notes.txt" in names and "launch/cli.py" in names and "submitted/recipe.yaml" in names
    assert not [
        name
        for name in names
        if name.startswith(("data/", "run/")) or ".env" in name or name.endswith((".wav", "token"))
    ]


def test_a_cancelled_job_goes_on_when_it_is_submitted_again(done_on_ray, cluster, corpus, tmp_path):
    recipe, run = write_recipe(tmp_path, corpus, STEPS), tmp_path / "run"
    held = gates(tmp_path, 25)
    site = profile(
        tmp_path,
        cluster,
        ray={"ship": []},
        environment={"SER_TEST_GATE": held["SER_TEST_GATE"], "PYTHONPATH": held["PYTHONPATH"]},
    )
    first = ser("submit", str(recipe), "--profile", str(site), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    until(lambda: saved(run, 20), "the training begins")
    again = ser("submit", str(recipe), "--profile", str(site), cwd=tmp_path)
    assert again.returncode == 2 and "submitted already: ray ser-tiny-" in again.stderr
    assert ser("cancel", str(run)).returncode == 0
    assert state(recipe) == "cancelled"
    (tmp_path / "go-25").touch()
    second = ser("submit", str(recipe), "--profile", str(site), cwd=tmp_path)
    assert second.returncode == 0 and "-0002" in second.stdout, second.stderr
    assert ends(recipe) == "done"
    assert results(run) == results(done_on_ray[0].parent / "run")


def test_no_cluster_no_token_and_a_wrong_token_are_told_apart_and_leave_nothing(cluster, corpus, tmp_path):
    recipe = write_recipe(tmp_path, corpus, 1)
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    for changes, words in (
        ({"address": f"http://127.0.0.1:{free_port()}"}, "no Ray cluster answers"),
        ({"token_file": str(wrong)}, "the cluster refuses the token"),
        ({"token_file": str(tmp_path / "none")}, "token cannot be read"),
    ):
        site = profile(tmp_path, cluster, ray=changes)
        done = ser("submit", str(recipe), "--profile", str(site), cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_a_local_job_survives_the_shell_is_cancelled_and_goes_on_to_the_same_results(
    done_on_ray, corpus, tmp_path
):
    recipe, run = write_recipe(tmp_path, corpus, STEPS), tmp_path / "run"
    env = os.environ | gates(tmp_path, 25)
    words = f'"{sys.executable}" -m launch.cli submit "{recipe}" --to local; echo submitted; sleep 600'
    shell = subprocess.Popen(
        ["bash", "-c", words], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored where the tests run under nohup
    )  # fmt: skip
    assert shell.stdout is not None
    try:
        assert any("submitted" in line for line in iter(shell.stdout.readline, ""))
        until((run / records.NAME).is_file, "the record")
    finally:
        os.killpg(shell.pid, signal.SIGHUP)  # the terminal closes
        shell.wait(30)
    until(lambda: saved(run, 20), "the training begins")
    assert state(recipe) == "running"
    again = ser("submit", str(recipe), "--to", "local")
    assert again.returncode == 2 and "submitted already: local" in again.stderr, again.stderr
    assert ser("cancel", str(run)).returncode == 0
    assert state(recipe) == "cancelled"
    assert json.loads((run / "submissions/0001/outcome.json").read_text())["code"] == 75
    (tmp_path / "go-25").touch()
    second = ser("submit", str(recipe), "--to", "local")
    assert second.returncode == 0, second.stderr
    assert ends(recipe) == "done", (run / "submissions/0002/log.txt").read_text()
    assert results(run) == results(done_on_ray[0].parent / "run")
