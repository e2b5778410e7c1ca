"""Submission without a cluster: profiles, what is rendered for each target, what travels, and what becomes of a job."""

import json
import os
import shlex
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
import yaml

from launch import parcel, profile, to_ray, to_skypilot, to_slurm
from launch.profile import Profile
from launch.record import Job
from launch.submit import make_job
from launch.supervise import started
from ser.recipe import load
from shards.errors import UserError
from tests.conftest import ROOT
from tests.submitting import until, write_recipe


def job(**changes) -> Job:
    made = Job(
        name="ser-tiny-01234567", run=Path("/shared/runs/tiny"), number=3, folder="/shared", python="python",
        arguments=("run", "{recipe}", "--until", "report", "cluster.address=auto"), there="/shared/runs/tiny",
    )  # fmt: skip
    return replace(made, **changes)


def site(to: str, **values) -> Profile:
    return Profile.model_validate({"to": to, **values})


MISTAKES = {
    "unknown key": ({"partition": "gpu"}, "unknown key 'partition'"),
    "unknown key of Slurm": ({"slurm": {"partitoin": "gpu"}}, "did you mean 'partition'"),
    "a secret in the setup": (
        {"setup": ["module load x; export WANDB_API_KEY=abc"]},
        "setup looks like a secret",
    ),
    "a login": (
        {"environment": {"STUDY": "postgresql://me:abc@db/x"}},
        "environment.STUDY looks like a secret",
    ),
    "told to stop before it began": ({"time": "5"}, "raise time, or lower slurm.warning"),
    "a secret": ({"environment": {"WANDB_API_KEY": "abc"}}, "looks like a secret"),
    "a second line": ({"slurm": {"constraint": "a\n#SBATCH --uid=0"}}, "slurm.constraint"),
    "no option": ({"slurm": {"extra": ["rm -rf"]}}, "is not an option"),
    "no time": ({"time": "tomorrow"}, "time"),
    "no number": ({"nodes": 0}, "nodes"),
    "a relative folder": ({"folder": "here"}, "folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_profile_that_does_not_fit_is_refused_in_words(name, tmp_path):
    values, words = MISTAKES[name]
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as error:
        profile.read(str(path), "slurm")
    assert words in str(error.value) and str(path) in str(error.value)
    assert "abc" not in str(error.value), "a secret is not repeated"


def test_a_profile_is_found_by_name_and_names_its_target(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_PROFILES", str(tmp_path))
    (tmp_path / "lumi.yaml").write_text("{to: slurm, gpus: 8}")
    assert profile.read("lumi", None).to == "slurm"
    with pytest.raises(UserError, match="is for slurm, not for ray"):
        profile.read("lumi", "ray")
    with pytest.raises(UserError, match="no profile 'lumy'") as error:
        profile.read("lumy", None)
    assert "lumi" in error.value.hint
    with pytest.raises(UserError, match="submit where"):
        profile.read(None, None)


@pytest.mark.parametrize(
    "time,seconds",
    [("5", 300), ("5:30", 330), ("08:00:00", 28800), ("2-00", 172800), ("1-2:30", 95400), ("1-0:0:1", 86401)],
)
def test_time_limits_are_read_as_slurm_reads_them(time, seconds):
    assert profile.seconds(time) == seconds


@pytest.mark.parametrize(
    "known,named",
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "0"}, "8_0"),
        (
            {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"},
            "8_1",
        ),  # the array's last element
    ],
)
def test_a_script_asks_slurm_for_itself_alone(known, named, tmp_path):
    """The element whose own id is the array's is not taken for the whole array."""
    for name in ("squeue", "scontrol"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/asked"\necho RUNNING\n')
        (tmp_path / name).chmod(0o755)
    text = to_slurm.script(job(run=tmp_path), site("slurm"), "")
    waits = text[text.index("\nwait") :]
    start = text[text.index("id=") : text.index("trap")]
    words = f"home={tmp_path}\n{start}\n(exit 75) & step=$!\n{waits}"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **known}
    assert subprocess.run(["bash", "-c", words], env=env, check=False).returncode == 75
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"squeue --noheader --jobs {named} --format %T", f"scontrol requeue {named}"]


def test_a_batch_script_asks_for_what_the_profile_says():
    values = {
        "nodes": 2, "cpus": 16, "gpus": 4, "memory": "64G", "time": "08:00:00", "setup": ["module load cuda"],
        "environment": {"HF_HOME": "/shared/my models"}, "slurm": {"partition": "gpu", "account": "speech", "warning": 120},
    }  # fmt: skip
    text = to_slurm.render(job(), site("slurm", **values))
    lines = text.splitlines()
    for option in (
        "--job-name=ser-tiny-01234567", "--partition=gpu", "--account=speech", "--nodes=2", "--ntasks-per-node=1",
        "--cpus-per-task=16", "--gpus-per-node=4", "--mem=64G", "--time=08:00:00", "--signal=B:USR1@120", "--requeue",
        "--open-mode=append", "--output=/shared/runs/tiny/submissions/0003/log.txt",
    ):  # fmt: skip
        assert f"#SBATCH {option}" in lines, option
    assert "export HF_HOME='/shared/my models'" in lines and "module load cuda" in lines
    assert lines.index("module load cuda") < next(
        i for i, line in enumerate(lines) if line.startswith("srun")
    )
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_names_with_blanks_and_percents_reach_slurm_whole():
    odd = job(run=Path("/shared/my runs/100%"))
    (output,) = [x for x in to_slurm.options(odd, site("slurm")) if "--output" in x]
    assert shlex.split(output) == ["--output=/shared/my runs/100%%/submissions/0003/log.txt"]


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_a_container_holds_the_tasks_and_sees_the_run(runtime):
    container = {"image": "ser.sqsh", "runtime": runtime, "mounts": ["/scratch:/scratch"]}
    text = to_slurm.render(job(), site("slurm", gpus=1, container=container))
    step = text[text.index("srun") : text.index("step=$!")]
    for mount in ("/scratch:/scratch", "/shared:/shared", "/shared/runs/tiny:/shared/runs/tiny"):
        assert mount in step
    assert ("--container-image=ser.sqsh" in step) == (runtime == "pyxis")
    assert ("apptainer exec --nv" in step) == (runtime == "apptainer")


def test_a_training_without_ray_has_a_task_a_gpu():
    text = to_slurm.render(job(training=("m", "f", "0")), site("slurm", nodes=2, cpus=16, gpus=4))
    assert "#SBATCH --ntasks-per-node=4" in text and "#SBATCH --cpus-per-task=4" in text
    assert "launch.slurm_task ranks" in text and text.count("recipe.yaml m f 0") == 1


def test_a_sky_task_is_what_the_golden_file_says():
    values = {
        "folder": "/shared",
        "nodes": 2,
        "gpus": 8,
        "memory": "64G",
        "sky": {"accelerator": "H100", "bucket": "s3://runs"},
    }
    golden = ROOT / "tests/data/sky.yaml"
    text = to_skypilot.render(job(), site("skypilot", **values))
    if os.environ.get("SER_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
    task = yaml.safe_load(text)
    assert task["resources"]["accelerators"] == "H100:8" and task["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False).returncode == 0
    with pytest.raises(UserError, match="end with its machine"):
        to_skypilot.render(job(), site("skypilot", folder="/shared"))
    with pytest.raises(UserError, match="GPUs of which name"):
        to_skypilot.render(job(), site("skypilot", folder="/shared", gpus=1))


STAY = (
    ".env", "sub/.env.local", "prod.env", "data/a.txt", "sub/data/b.txt", "runs/x/report.json", "key.pem", ".aws/credentials",
    "hf_token", "my-token.txt", ".ssh/id_ed25519", "gcp-service-account.json", "audio.wav", "shard.tar", ".git/config",
    ".netrc", "sub/client_secret.json",
)  # fmt: skip
TRAVEL = ("mine.yaml", "sub/reader.py", "tokens.py", "protocols/environment.yaml")


def test_data_runs_and_secrets_do_not_travel(tmp_path):
    for name in (*STAY, *TRAVEL):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "out").symlink_to("/etc/hostname")
    assert {name for name, _ in parcel.shipped(tmp_path, ["."])} == set(TRAVEL)
    assert {name for name, _ in parcel.shipped(tmp_path, ["."], ["sub", "*.yaml"])} == {"tokens.py"}
    assert all(parcel.stays(PurePosixPath(name)) for name in STAY)
    with pytest.raises(UserError, match="only what lies in the working folder"):
        list(parcel.shipped(tmp_path / "sub", ["../tokens.py"]))
    (tmp_path / "big.txt").write_bytes(b"x" * 2_000_000)
    with pytest.raises(UserError, match="would travel") as error:
        parcel.contents(tmp_path, ["."], [], False, 1)
    assert "big.txt" in error.value.where


def test_the_parcel_holds_all_of_the_code_and_is_the_same_each_time(tmp_path):
    files = dict(parcel.code())
    assert {"launch/cli.py", "ser/recipes/demo/recipe.yaml", "shards/errors.py", "cluster/session.py"} <= set(
        files
    )
    for name in ("a.zip", "b.zip"):
        parcel.write(tmp_path / name, files, {to_ray.RECIPE: "name: x\n"})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert to_ray.RECIPE in zipfile.ZipFile(tmp_path / "a.zip").namelist()


def test_a_ray_request_keeps_the_token_and_starts_in_the_shared_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "do-not-show")
    text = to_ray.render(job(), site("ray", ray={"code": False}))
    sent = json.loads(text[text.index("{") :])
    assert "do-not-show" not in text and sent["submission_id"] == "ser-tiny-01234567-0003"
    assert (
        "cd /shared && exec python -m launch.supervise /shared/runs/tiny/submissions/0003/outcome.json"
        in sent["entrypoint"]
    )
    assert '"$package/submitted/recipe.yaml"' in sent["entrypoint"]


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path, tmp_path, 1)


def test_the_recipe_that_is_submitted_is_the_recipe_that_is_given(recipe, tmp_path):
    given = load(str(recipe), ["models.student.train.steps=7", "seeds=[3, 4]"])
    pinned = tmp_path / "pinned.yaml"
    pinned.write_text(yaml.safe_dump(given.dump(), sort_keys=False))
    assert load(str(pinned)).dump() == given.dump()


def test_jobs_have_one_name_a_run_directory(recipe):
    one, two = (make_job(load(str(recipe)), site("local"), "report") for _ in range(2))
    other = make_job(load(str(recipe), [f"run_dir={recipe.parent}/other"]), site("local"), "report")
    assert one.name == two.name != other.name
    with pytest.raises(UserError, match="is for --to slurm"):
        make_job(load(str(recipe)), site("ray"), "report", folds=True)
    with pytest.raises(UserError, match="MODEL FOLD SEED"):
        make_job(load(str(recipe)), site("slurm", slurm={"start": "srun"}), "report", only="nobody f 0")
    with pytest.raises(UserError, match="started by srun"):
        make_job(load(str(recipe)), site("slurm"), "report", only="student f 0")


LISTENS = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1] + ".saved").touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "cancel"])
def test_a_supervised_command_is_told_to_save_and_its_end_is_written_down(how, tmp_path):
    mark, outcome = tmp_path / "ready", tmp_path / "outcome.json"
    command = [
        sys.executable,
        "-m",
        "launch.supervise",
        str(outcome),
        sys.executable,
        "-c",
        LISTENS,
        str(mark),
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        until(mark.exists, "the command listens", 60)
        begun = json.loads(outcome.read_text())
        assert (
            begun["code"] is None and begun["pid"] == process.pid and begun["started"] == started(process.pid)
        )
        if how == "cancel":
            (tmp_path / "cancel").touch()
        else:
            process.send_signal(getattr(signal, how))
        assert process.wait(60) == 75
    finally:
        process.kill()
    assert (tmp_path / "ready.saved").exists() and json.loads(outcome.read_text())["code"] == 75


def test_a_killed_supervisor_leaves_no_command_behind(tmp_path):
    mark, outcome = tmp_path / "ready", tmp_path / "outcome.json"
    command = [
        sys.executable,
        "-m",
        "launch.supervise",
        str(outcome),
        sys.executable,
        "-c",
        LISTENS,
        str(mark),
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    until(mark.exists, "the command listens", 60)
    child = json.loads(outcome.read_text())["child"]
    process.kill()
    process.wait()
    until(lambda: started(child) is None or _zombie(child), "the command is gone", 30)
    assert json.loads(outcome.read_text())["code"] is None


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
