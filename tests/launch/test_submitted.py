"""What is known of a submitted run: its record, its end, who is asked before it is sent again, and how it is found."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from launch import record as records
from launch import submit as submitting
from launch import to_local
from launch.profile import Profile
from launch.record import Live
from launch.submit import make_job
from launch.supervise import started
from ser.recipe import load
from shards.errors import UserError
from tests.launch.test_submit import job
from tests.submitting import write_recipe


@pytest.mark.parametrize(
    "codes,live,cancelled,state",
    [
        ([0], Live("ended"), False, "done"),
        ([0], Live("unknown", "no cluster"), False, "done"),
        ([0, 75], Live("ended"), False, "stopped"),
        ([75], Live("ended"), True, "cancelled"),
        ([2], Live("ended"), False, "failed"),
        ([None], Live("ended"), False, "lost"),
        ([], Live("ended"), False, "lost"),
        ([], Live("ended", "", 0), False, "done"),
        ([], Live("ended", "", 1), False, "failed"),
        ([75], Live("queued"), False, "queued"),
        ([], Live("unknown", "no cluster"), False, "unknown"),
    ],
)
def test_what_became_of_a_run(codes, live, cancelled, state, tmp_path):
    made = job(run=tmp_path)
    made.home.mkdir(parents=True)
    for number, code in enumerate(codes):
        (made.home / f"outcome-{number}.json").write_text(json.dumps({"code": code, "ended": "now"}))
    record = replace(records.new(made, "slurm", ["7"], {}), cancelled=cancelled)
    assert records.summary(record, live)[0] == state


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = records.new(job(run=tmp_path), "slurm", ["7", "8"], {"gpus": 2})
    assert records.read(tmp_path) is None
    records.write(record)
    assert records.read(tmp_path) == record and records.next_number(tmp_path) == 1
    (tmp_path / records.NAME).write_text("{}")
    with pytest.raises(UserError, match="not a submission's record"):
        records.read(tmp_path)


def test_another_process_of_the_same_number_is_not_taken_for_the_job(tmp_path):
    made = job(run=tmp_path)
    record = records.new(made, "local", [f"{os.getpid()}@1"], {})
    assert to_local.status(record).phase == "ended"
    alive = records.new(made, "local", [f"{os.getpid()}@{started(os.getpid())}"], {})
    assert to_local.status(alive).phase == "running"
    assert to_local.status(replace(alive, host="elsewhere")).phase == "unknown"
    made.home.mkdir(parents=True)
    (made.home / "outcome.json").write_text(json.dumps({"code": 0, "ended": "now"}))
    assert to_local.status(replace(alive, host="elsewhere")).phase == "ended", "it wrote down its end"


@pytest.fixture
def recipe(tmp_path):
    return load(str(write_recipe(tmp_path, tmp_path, 1)))


LOCAL = Profile(to="local")


def elsewhere(recipe, target: str = "local", **about) -> records.Record:
    """The record of a run that cannot be asked from here."""
    made = make_job(recipe, LOCAL, "report")
    made.home.mkdir(parents=True, exist_ok=True)
    record = replace(records.new(made, target, ["1@1"], {}), host="elsewhere", **about)
    records.write(record)
    return record


@pytest.mark.parametrize("target", ["local", "slurm"])
def test_a_run_that_cannot_be_asked_is_not_sent_again(recipe, target, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no squeue
    elsewhere(recipe, target)
    with pytest.raises(UserError, match="cannot be asked now") as error:
        submitting.submit(recipe, LOCAL, make_job(recipe, LOCAL, "report"))
    assert "submission.json" in error.value.hint
    assert not list(recipe.records.glob("submissions/0002"))


def test_a_cancel_that_fails_is_none(recipe):
    record = elsewhere(recipe)
    with pytest.raises(UserError, match="another machine"):
        submitting.cancel(record)
    assert records.read(Path(record.run)) == record


def test_a_job_whose_submitter_was_killed_is_refused_and_found(recipe, monkeypatch):
    made = make_job(recipe, LOCAL, "report")
    made.home.mkdir(parents=True)
    alive = {"host": os.uname().nodename, "pid": os.getpid(), "started": started(os.getpid()), "code": None}
    (made.home / "outcome.json").write_text(json.dumps(alive))
    with pytest.raises(UserError, match="submitted already: local"):
        submitting.submit(recipe, LOCAL, make_job(recipe, LOCAL, "report"))
    found = submitting.find(str(made.run))
    assert found.number == 1 and submitting.look(found) == Live(
        "running", f"process {os.getpid()} on {alive['host']}"
    )


def test_a_recipe_is_found_below_the_folder_of_the_profile(tmp_path, monkeypatch):
    path = write_recipe(tmp_path / "here", tmp_path, 1, run_dir="runs/tiny")
    (tmp_path / "shared").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    profile = Profile(to="local", folder=str(tmp_path / "shared"))
    made = make_job(load(str(path)), profile, "report")
    assert made.run == tmp_path / "shared/runs/tiny"
    records.write(record := records.new(made, "local", ["1@1"], {}))
    with pytest.raises(UserError, match="never submitted") as error:
        submitting.find(str(path))
    assert "--profile" in error.value.hint
    assert submitting.find(str(path), None, profile) == record == submitting.find(record.run)


def test_a_job_with_a_cluster_of_its_own_has_its_token(recipe, tmp_path):
    words = make_job(recipe, Profile(to="slurm"), "report").arguments
    given = ["cluster.token_file=team", *(word for word in words if "=" in word)]
    assert load(str(tmp_path / "recipe.yaml"), given).cluster.token_file is None
