"""Submission of a sweep: the same jobs as a run's, with another verb; what is a run's alone is refused."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from launch import to_slurm
from launch.profile import Profile
from launch.submit import make_job, submit, target
from ser.recipe import load
from shards.errors import UserError
from shards.lock import hold
from tests.conftest import ROOT
from tests.launch.test_rayjob import K8S
from tests.launch.test_submit import job, site
from tests.submitting import write_recipe

SPACE = {"models.student.train.optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}}
SWEEP = {"space": SPACE, "objectives": [{"model": "student", "metric": "ua"}]}
SITES = {
    "local": {},
    "slurm": {"nodes": 2},
    "ray": {"ray": {"code": False}},
    "kuberay": K8S,
    "skypilot": {"folder": "/shared", "sky": {"bucket": "s3://runs"}},
}


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, tmp_path, 1, sweep=SWEEP, run_dir="runs/tiny")


@pytest.mark.parametrize("to", SITES)
def test_every_target_sweeps(to, recipe):
    profile = site(to, **SITES[to])
    made = make_job(load(str(recipe)), profile, "report", sweep=True)
    text = target(to).render(made, profile)
    (words,) = re.findall(r"-m launch\.cli (\w+) \S*recipe\.yaml(.*)", text)
    assert words[0] == "sweep" and "--until" not in words[1]
    assert ("cluster.address=auto" in text) == (to != "local"), "elsewhere the job has a cluster of its own"
    assert made.name == make_job(load(str(recipe)), profile, "report").name, "a run directory has one job"


def test_a_batch_script_of_a_sweep_is_what_the_golden_file_says():
    golden = ROOT / "tests/data/slurm-sweep.sh"
    words = ("sweep", "{recipe}", "cluster.address=auto", "cluster.token_file=null")
    text = to_slurm.render(job(arguments=words), site("slurm", nodes=2, cpus=8, time="08:00:00"))
    if os.environ.get("SER_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "options",
    [{"folds": True}, {"only": "student f 0"}, {"until": "train"}],
    ids=["folds", "training", "until"],
)
def test_what_is_a_runs_does_not_go_with_a_sweep(options, recipe):
    given = {"until": "report", "sweep": True} | options
    with pytest.raises(UserError, match=r"--sweep and --(folds|training|until) do not go together"):
        make_job(load(str(recipe)), site("slurm", slurm={"start": "srun"}), **given)


def test_a_sweep_that_cannot_be_is_not_sent(recipe, tmp_path):
    local = Profile(to="local")
    with pytest.raises(UserError, match="has no `sweep`"):
        make_job(load(str(write_recipe(tmp_path / "plain", tmp_path, 1))), local, "report", sweep=True)
    values = yaml.safe_load(recipe.read_text())
    values["sweep"]["space"] = {"models.student.train.optimizer.rate": {"low": 1.0, "high": 2.0}}
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"sweep\.space"):
        make_job(load(str(recipe)), local, "report", sweep=True)


def test_a_sweep_that_somebody_drives_is_not_sent(recipe):
    local = Profile(to="local")
    given = load(str(recipe))
    made = make_job(given, local, "report", sweep=True)
    with (
        hold(made.run / "sweep/.lock", "driven", ""),
        pytest.raises(UserError, match="process works in this run"),
    ):
        submit(given, local, made)
    assert not (made.run / "submissions").exists()
