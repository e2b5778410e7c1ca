"""Submission to a real Slurm of two machines: to the end, through a warning, a requeue and a cancel, to the same bytes."""

import json
import time
from pathlib import Path

import pytest
import yaml

from launch import record as records
from launch.submit import look
from tests import tiny
from tests.cluster_suite import chain
from tests.cluster_suite.chain import same_run
from tests.launch.test_run import below
from tests.submitting import gates, results, saved, ser, training, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 60


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("site") / "site.yaml"
    path.write_text(yaml.safe_dump(site()))
    return path


def site(**changes) -> dict:
    return {
        "to": "slurm", "nodes": 2, "cpus": 1, "memory": "2G", "time": "00:20:00", "slurm": {"partition": "debug"},
        "environment": {"SER_TEST_MARK": "here"},
    } | changes  # fmt: skip


def submit(recipe: Path, profile: Path, *more: str) -> str:
    """Submit and return the job's id."""
    done = ser("submit", str(recipe), "--profile", str(profile), *more)
    assert done.returncode == 0, done.stderr
    return json.loads((recipe.parent / "run/submission.json").read_text())["ids"][-1]


def state(recipe: Path) -> str:
    """What `ser status` would say, without starting Python for it."""
    record = records.read(recipe.parent / "run")
    assert record is not None
    return records.summary(record, look(record))[0]


def ends(recipe: Path, seconds: float = 600) -> None:
    """Wait for the end of a run's jobs."""
    end = time.monotonic() + seconds
    while state(recipe) in ("queued", "running", "unknown"):
        assert time.monotonic() < end, log(recipe)
        time.sleep(0.3)


def log(recipe: Path) -> str:
    """What the newest submission has printed."""
    (*_, last) = sorted((recipe.parent / "run/submissions").iterdir())
    return "\n".join(path.read_text() for path in sorted(last.glob("log*.txt")))


@pytest.fixture(scope="module")
def whole(slurm, corpus, profile, tmp_path_factory) -> Path:
    """An undisturbed run, submitted and run to its end."""
    recipe = write_recipe(tmp_path_factory.mktemp("whole"), corpus, STEPS)
    submit(recipe, profile)
    ends(recipe)
    assert state(recipe) == "done", log(recipe)
    return recipe


def test_a_job_runs_to_its_end_on_two_machines(whole):
    said, told = ser("logs", str(whole.parent / "run")).stdout, ser("status", str(whole))
    assert told.returncode == 0 and "done" in told.stdout and "slurm" in told.stdout
    assert "Ray on 2 machines" in said and "report.html" in said
    assert (whole.parent / "run/report.html").is_file()
    outcome = json.loads((whole.parent / "run/submissions/0001/outcome.json").read_text())
    assert outcome["code"] == 0 and outcome["restart"] == 0
    left = {p.name for p in (whole.parent / "run/submissions/0001").iterdir()}
    assert left == {"job.sh", "log.txt", "outcome.json", "recipe.yaml"}, "no token, no meeting point stays"


def gated(folder: Path, *phases: int | str, **changes) -> Path:
    """A profile under which work waits before some steps, or at other phases."""
    path = folder / "gated.yaml"
    path.write_text(yaml.safe_dump(site(environment=gates(folder, *phases), **changes)))
    return path


def test_warned_then_taken_off_its_machines_the_whole_chain_ends_the_same(
    slurm, corpus, undisturbed, tmp_path
):
    """Two machines pack, train a teacher on two workers under ZeRO 2, store its targets, distil, evaluate and report."""
    recipe = chain.write_recipe(tmp_path / "here", corpus)
    run = recipe.parent / "run"
    job = submit(recipe, gated(tmp_path, 7, "targets"))
    until((tmp_path / "go-7.at-").exists, "the teacher is before step 7")
    # as Slurm does before the time limit: --signal=B:USR1@...
    slurm.ask("scancel", "--signal=USR1", "--batch", job)
    until(lambda: "back into the queue" in log(recipe), "it saves and queues again")
    until(lambda: state(recipe) == "queued", "it waits")
    assert saved(run, 8, model="teacher"), "at the step boundary after the warning"
    (tmp_path / "go-7").touch()
    until((tmp_path / "go-targets.at-").exists, "it goes on, to the teacher's targets")
    slurm.ask("scontrol", "requeue", job)
    until(lambda: state(recipe) == "queued", "it waits again")
    (tmp_path / "go-targets").touch()
    ends(recipe)
    assert state(recipe) == "done", log(recipe)
    outcome = json.loads((run / "submissions/0001/outcome.json").read_text())
    assert outcome["restart"] == 2, outcome
    assert "Ray on 2 machines" in log(recipe)
    same_run(recipe.parent, undisturbed)


def test_a_machine_that_dies_under_a_job_costs_what_was_not_saved(whole, slurm, corpus, tmp_path):
    """No signal, no warning: Slurm's own --requeue starts it again, and it goes on from its last checkpoint."""
    recipe, run = write_recipe(tmp_path, corpus, STEPS), tmp_path / "run"
    submit(recipe, gated(tmp_path, 25))
    until(lambda: saved(run, 20), "the training begins")
    slurm.kill_machine("n2")
    until(lambda: state(recipe) == "queued", "it waits for two machines")
    (tmp_path / "go-25").touch()
    slurm.start_machine("n2")
    slurm.ask("scontrol", "update", "NodeName=n2", "State=RESUME")
    ends(recipe)
    assert state(recipe) == "done", log(recipe)
    assert json.loads((run / "submissions/0001/outcome.json").read_text())["restart"] == 1
    assert results(run) == results(whole.parent / "run")


def test_a_live_run_is_refused_a_cancelled_one_stays_away_and_goes_on_when_submitted(
    whole, slurm, corpus, tmp_path
):
    recipe, run = write_recipe(tmp_path, corpus, STEPS), tmp_path / "run"
    profile = gated(tmp_path, 25)
    job = submit(recipe, profile)
    until(lambda: saved(run, 20), "the training begins")
    again = ser("submit", str(recipe), "--profile", str(profile))
    assert again.returncode == 2 and f"submitted already: slurm {job}" in again.stderr
    local = ser("submit", str(recipe), "--to", "local")
    assert local.returncode == 2 and f"slurm {job}" in local.stderr, "on another target, too"
    done = ser("cancel", str(recipe))
    assert done.returncode == 0, done.stderr
    assert state(recipe) == "cancelled"
    until(lambda: not slurm.ask("squeue", "--noheader"), "the queue is empty", 60)
    until(lambda: not below(str(tmp_path)), "no process is left", 90)
    assert not (training(run) / "DONE").exists()
    (tmp_path / "go-25").touch()
    second = submit(recipe, profile)
    assert second != job
    ends(recipe)
    assert state(recipe) == "done", log(recipe)
    assert results(run) == results(whole.parent / "run")


def test_what_slurm_could_never_start_is_refused_and_leaves_nothing(slurm, corpus, tmp_path):
    recipe = write_recipe(tmp_path / "run-here", corpus)
    for changes, words, hint in (
        ({"slurm": {"partition": "gpuu"}}, "Invalid partition name", "slurm.partition"),
        ({"nodes": 3}, "node configuration is not available", "lower nodes"),
        ({"gpus": 1}, "Invalid generic resource", "gres"),
    ):
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump(site(**changes)))
        done = ser("submit", str(recipe), "--profile", str(path))
        assert done.returncode == 2 and words in done.stderr and hint in done.stderr, done.stderr
        assert not (recipe.parent / "run").exists() and not slurm.ask("squeue", "--noheader")


def test_an_array_does_a_fold_a_job_and_the_end_reports_them_all(whole, slurm, corpus, tmp_path):
    names = ["session-ses0", "session-ses1"]
    recipe, run = write_recipe(tmp_path, corpus, STEPS, folds=names), tmp_path / "run"
    submit(recipe, gated(tmp_path, 25, nodes=1), "--folds")
    home = run / "submissions/0001"
    until(lambda: all(saved(run, 20, fold=name) for name in names), "both folds train")
    array = json.loads((run / "submission.json").read_text())["ids"][1]
    assert state(recipe) == "running"
    slurm.ask(
        "scancel", "--signal=USR1", "--batch", array
    )  # to every element; the last one's own id is the array's
    for number in range(2):
        there = home / f"log-1-fold-{number}.txt"
        until(lambda there=there: "back into the queue" in there.read_text(), f"fold {number} queues again")
    (tmp_path / "go-25").touch()
    ends(recipe)
    said = {p.name: p.read_text() for p in home.glob("log*.txt")}
    assert state(recipe) == "done", said
    assert set(said) == {"log-0.txt", "log-1-fold-0.txt", "log-1-fold-1.txt", "log-2.txt"}
    assert {p.name for p in home.glob("outcome*")} == {
        f"outcome-{n}.json" for n in ("prepare", *names, "end")
    }
    assert "train student" in said["log-1-fold-1.txt"]
    (kept,) = [
        line.split("\u2502") for line in said["log-2.txt"].splitlines() if "\u2502 train student" in line
    ]
    assert [cell.strip() for cell in kept[2:4]] == ["0", "2"], "the end finds both folds trained"
    assert json.loads((run / "report.json").read_text())
    assert results(run) == results(whole.parent / "run"), "the fold's training is that of a whole run"


def test_a_training_without_ray_saves_when_warned_and_ends_the_same(slurm, tmp_path):
    """Two ranks on two machines, started by srun."""
    dataset, found = tiny.make_dataset(tmp_path), {}
    profile = gated(tmp_path, 25, slurm={"partition": "debug", "start": "srun"})
    for name in ("warned", "whole"):
        source = {"path": dataset, "corpora": [{"reader": "manifest", "root": "."}]}
        recipe, run = write_recipe(tmp_path / name, tmp_path, STEPS, data=source), tmp_path / name / "run"
        values = yaml.safe_load(recipe.read_text())
        values["models"]["student"]["train"] |= {"slots": 2, "slot_seconds": 3.0}
        recipe.write_text(yaml.safe_dump(values))
        job = submit(recipe, profile, "--training", "student session-ses0 0")
        if name == "warned":
            until((tmp_path / "go-25.at-").exists, "the training is before step 25")
            slurm.ask("scancel", "--signal=USR1", "--batch", job)
            until(lambda recipe=recipe: "back into the queue" in log(recipe), "it saves and queues again")
            assert saved(run, 26), (
                "at the step boundary after the warning, not at the last regular checkpoint"
            )
            (tmp_path / "go-25").touch()
        ends(recipe)
        assert state(recipe) == "done", log(recipe)
        found[name] = results(run)
    assert found["warned"] == found["whole"]
