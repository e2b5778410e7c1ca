"""What jobs elsewhere are given and what is refused before they are sent: hub models, and runs in an object store."""

import re
from pathlib import Path

import pytest
import yaml

from launch import to_kuberay, to_local, to_ray, to_skypilot, to_slurm
from launch.profile import TARGETS
from launch.runner import session_of
from launch.submit import make_job
from ser.recipe import load
from shards.errors import UserError
from tests.launch.test_rayjob import K8S
from tests.launch.test_submit import job, site
from tests.submitting import write_recipe


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path, tmp_path, 1)


RENDERED = {
    "slurm": (to_slurm, {}),
    "ray": (to_ray, {"ray": {"code": False}}),
    "kuberay": (to_kuberay, K8S),
    "skypilot": (to_skypilot, {"folder": "/shared", "sky": {"bucket": "s3://runs"}}),
}


@pytest.mark.parametrize("to", RENDERED)
def test_jobs_elsewhere_ask_no_hub_unless_the_profile_says_so(to):
    where, values = RENDERED[to]
    offline = re.compile(r"""HF_HUB_OFFLINE(?:=|"?: )['"]?1\b|name: HF_HUB_OFFLINE\s+value: '1'""")
    assert offline.search(where.render(job(), site(to, **values)))
    online = site(to, **values, environment={"HF_HUB_OFFLINE": "0", "HF_HOME": "/shared/hf"})
    text = where.render(job(), online)
    assert not offline.search(text) and "/shared/hf" in text and text.count("HF_HUB_OFFLINE") >= 1


def test_a_job_on_this_machine_has_this_machine_s_word():
    assert "HF_HUB_OFFLINE" not in to_local.render(job(), site("local"))


@pytest.mark.parametrize("to", TARGETS)
def test_a_hub_model_without_a_commit_is_refused_before_anything_is_sent(to, recipe, monkeypatch):
    values = yaml.safe_load(recipe.read_text())
    values["models"]["student"]["model"] = {"kind": "linguistic", "name": "somebody/bert"}
    recipe.write_text(yaml.safe_dump(values))
    elsewhere = site(to, **({"environment": {"HF_HUB_OFFLINE": "1"}} if to == "local" else {}))
    with pytest.raises(UserError, match="somebody/bert has no commit") as error:
        make_job(load(str(recipe)), elsewhere, "report")
    assert "ser fetch tiny" in error.value.hint and "models.student" in error.value.where
    assert not list(recipe.parent.rglob("submi*")), "something was written"
    assert make_job(load(str(recipe)), site(to, environment={"HF_HUB_OFFLINE": "0"}), "report")
    values["models"]["student"]["model"]["revision"] = "0123456789" * 4
    recipe.write_text(yaml.safe_dump(values))
    assert make_job(load(str(recipe)), elsewhere, "report")


@pytest.mark.parametrize("to", TARGETS)
def test_a_run_in_a_bucket_on_several_machines_needs_a_folder_that_they_share(to, recipe):
    away = load(str(recipe), ["run_dir=s3://bucket/run"])
    with pytest.raises(UserError, match="2 machines work on this run in one folder") as error:
        make_job(away, site(to, nodes=2), "report")
    assert "SER_SCRATCH" in error.value.hint and "s3://bucket/run" in error.value.where
    assert make_job(away, site(to, nodes=2, environment={"SER_SCRATCH": "/shared/scratch"}), "report")
    assert make_job(away, site(to), "report") and make_job(load(str(recipe)), site(to, nodes=2), "report")


def test_folds_of_a_run_in_a_bucket_are_refused(recipe):
    with pytest.raises(UserError, match="single folds share a run directory"):
        make_job(load(str(recipe), ["run_dir=s3://bucket/run"]), site("slurm"), "report", folds=True)


def test_workers_of_a_joined_cluster_hear_what_this_process_says_of_the_hub(recipe, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    monkeypatch.setenv("HF_TOKEN", "do-not-pass")
    joined = session_of(load(str(recipe), ["cluster.address=10.0.0.1:6379"]), print)
    assert {"HF_HUB_OFFLINE": "1", "HF_HOME": "/shared/hf"}.items() <= joined.env.items()
    assert "do-not-pass" not in joined.env.values()
