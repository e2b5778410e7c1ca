"""cluster.session and cluster.pool: GPUs go to the tasks that asked for them, and relative paths mean the driver's."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster import pool
from cluster.pack import Parallel
from cluster.place import go_home, require_ray
from cluster.session import Session
from ser.job import Job, directory
from ser.produce import Done, Work
from ser.recipe import Recipe
from shards.errors import UserError
from tests import tiny
from tests.cluster.units import busy, dies, meets, whose
from tests.submitting import until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def session():
    """An embedded cluster that believes in two GPUs: Ray counts and assigns them without looking."""
    before = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    with Session(cpus=6, gpus=2, env={"PYTHONPATH": str(ROOT)}) as session:
        yield session
    if before is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


def most_at_once(spans):
    return max(sum(a <= at < b for a, b in spans) for at, _ in spans)


def test_a_task_sees_the_gpus_it_was_given_alone(session):
    found = [result for _, result in session.map(busy, range(6), num_gpus=1)]
    assert {seen for seen, _, _ in found} <= {"0", "1"}
    assert most_at_once([(a, b) for _, a, b in found]) <= 2
    for gpu in "01":
        assert most_at_once([(a, b) for seen, a, b in found if seen == gpu] or [(0, 1)]) == 1, (
            "one task a GPU"
        )
    assert {seen for _, (seen, _, _) in session.map(busy, range(3))} == {""}, "none given, none seen"
    halves = [result for _, result in session.map(busy, range(4), num_gpus=0.5)]
    assert {seen for seen, _, _ in halves} <= {"0", "1"}


def test_an_embedded_cluster_listens_on_loopback_alone(session):
    """All that it has started, and this process."""
    assert len(list(session.map(busy, range(6)))) == 6  # its workers are there
    listening = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            ports = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
            listening |= {(" ".join(process.cmdline())[-60:], *one.laddr) for one in ports}
    assert len(listening) > 3, "those of Ray are seen"
    assert not {one for one in listening if one[1].removeprefix("::ffff:") != "127.0.0.1"}


def test_what_no_machine_can_hold_is_refused_instead_of_waited_for(session):
    with pytest.raises(UserError, match=r"1 CPUs and 3 GPUs; this cluster has 6 CPUs and 2 GPUs"):
        next(session.map(busy, [0], num_gpus=3))
    with pytest.raises(UserError, match=r"99 CPUs"):
        next(session.map(busy, [0], num_cpus=99))


def end(folder):
    """Whether all processes of a map do."""
    pids = os.listdir(folder)
    return bool(until(lambda: not any(Path("/proc", pid).exists() for pid in pids), "workers end", 60))


def test_units_with_gpus_are_pulled_by_workers_that_are_asked_for_at_once_and_stay(session, tmp_path):
    """Two units a GPU: four processes, which wait for each other at first, do all; each loads what it needs once."""
    results = session.map(meets, [(str(tmp_path), 4, number) for number in range(12)], num_gpus=0.5)
    assert sorted(results) == [(number, number) for number in range(12)]
    assert len(os.listdir(tmp_path)) == 4 and end(tmp_path)


def test_workers_with_gpus_end_when_the_caller_stops_or_a_unit_is_refused(session, tmp_path):
    left, refused = tmp_path / "left", tmp_path / "refused"
    left.mkdir(), refused.mkdir()
    results = session.map(meets, [(str(left), 2, "done"), *[(str(left), 2, "stays")] * 4], num_gpus=1)
    assert next(results) == (0, "done")
    results.close()
    assert end(left)
    with pytest.raises(UserError) as error:
        list(session.map(meets, [(str(refused), 2, "stays"), (str(refused), 2, "refused")], num_gpus=1))
    assert (error.value.what, error.value.where, error.value.hint) == ("seven", "here", "use eight")
    assert end(refused)


def test_a_unit_whose_worker_is_lost_is_done_by_another_and_given_up_at_last(session, tmp_path):
    items = [(str(tmp_path), number, 2 if number == 3 else 0) for number in range(8)]
    assert sorted(session.map(dies, items, num_gpus=1)) == [(number, number) for number in range(8)]
    calls = {path.name: os.listdir(path) for path in tmp_path.iterdir()}
    assert {name: len(pids) for name, pids in calls.items()} == {str(n): 3 if n == 3 else 1 for n in range(8)}
    assert len({pid for pids in calls.values() for pid in pids}) <= 4, "two workers, and two for those lost"
    with pytest.raises(UserError, match="the worker of a unit died 2 times"):
        list(session.map(dies, [(str(tmp_path), 9, 9)], num_gpus=1, max_retries=1))
    assert len(os.listdir(tmp_path / "9")) == 2


@pytest.mark.parametrize("gpus", [0, 1])
def test_units_and_trainings_take_the_gpus_of_the_recipe(session, tmp_path, monkeypatch, gpus):
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}], "train": tiny.training(1),
    }  # fmt: skip
    values = tiny.recipe_values(tmp_path, "none", {"m": model})
    recipe = Recipe.model_validate(values | {"cluster": {"gpus_per_task": gpus}})

    def seen(recipe, work):
        return Done(os.environ.get("CUDA_VISIBLE_DEVICES"), 0.0, [])  # type: ignore[arg-type]

    monkeypatch.setattr(pool, "compute", seen)
    for teacher in (None, Job("f", "t", 0)):
        work = [Work(teacher, 0, view, {}) for view in range(3)]
        told = [done.answers for _, done in pool.compute_all(session, recipe, work)]
        assert len(told) == 3
        assert set(told) <= {"0", "1"} if gpus and teacher else set(told) == {""}, "features take none"

    class Seen(pool.TrainWorker):
        def run(self, recipe, job):
            return os.environ.get("CUDA_VISIBLE_DEVICES")

    monkeypatch.setattr(pool, "TrainWorker", Seen)
    jobs = [Job("f", "m", seed) for seed in range(2)]
    seen = {trained.seconds for trained in pool.train_all(recipe, jobs, 2)}
    assert seen <= {"0", "1"} if gpus else seen == {""}


def test_parallel_starts_ray_for_several_items_that_take_long(session, monkeypatch):
    with Parallel() as run:
        assert list(run(len, ["abc", "de", "f"])) == [3, 2, 1] and run.session is None, (
            "done before Ray is there"
        )
    with Parallel(here=0) as run:
        assert list(run(len, ["abc"])) == [3] and run.session is None
        with pytest.raises(UserError, match="open in this process already"):
            list(run(len, ["a", "b"]))  # this process has its session: so Ray would have been used
    monkeypatch.setattr("cluster.pack.Session", lambda cpus: contextlib.nullcontext(session))
    with Parallel(here=0.5) as run:
        found = list(run(whose, range(8)))
        here = found.count(os.getpid())
        assert len(found) == 8 and 0 < here < 7, "begun here, ended there"
        assert found[:here] == [os.getpid()] * here


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Ray") as error, Session(cpus=1):
        pass
    assert "ser-distill[cluster]" in error.value.hint
    with pytest.raises(UserError):
        require_ray()
    with Parallel() as run:
        assert list(run(len, ["a", "bc"])) == [1, 2]


def test_a_folder_that_a_worker_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not on this worker") as error:
        go_home(str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in error.value.where
    (tmp_path / "here").mkdir()
    go_home(str(tmp_path / "here"))
    assert Path.cwd() == tmp_path / "here"


DRIVER = """
import json, sys
from pathlib import Path
from cluster.pool import compute_all, train_all
from cluster.session import Session
from ser import produce
from ser.job import Job
from ser.recipe import Recipe
from ser.setting import open_setting

recipe = Recipe.model_validate(json.load(open("recipe.json")))
setting = open_setting(recipe)
(fold,) = setting.folds
with Session(recipe.cluster.address, env={"PYTHONPATH": sys.argv[1]}) as session:
    work = produce.feature_work(setting)
    assert work and len(list(compute_all(session, recipe, work))) == len(work)
    (trained,) = train_all(recipe, [Job(fold, "m", 0)], 1)
assert produce.feature_work(setting) == []
print(fold)
"""


def test_relative_paths_mean_the_drivers_folder_on_a_joined_cluster(tmp_path):
    """A Ray cluster that was started elsewhere; the recipe's paths are relative to the folder of `ser`."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir(), theirs.mkdir()
    tiny.make_dataset(mine)
    model = {
        "role": "baseline", "model": {**tiny.CONV, "features": "stored"}, "objective": [{"loss": "cross_entropy"}],
        "train": tiny.training(2),
    }  # fmt: skip
    values = tiny.recipe_values(Path(), "dataset", {"m": model}, cluster={"address": "auto"})
    values |= {"features": {"mel": {"kind": "mel", "options": {"bands": 20}}}}
    assert values["run_dir"] == "run"
    (mine / "recipe.json").write_text(json.dumps(values))
    script = """
import os, subprocess, sys
from cluster.session import Session
os.chdir(sys.argv[1])
with Session(cpus=2):
    import ray
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray takes 127.0.0.1 for the machine's own address
    done = subprocess.run([sys.executable, "-c", sys.argv[3], sys.argv[4]], cwd=sys.argv[2])
sys.exit(done.returncode)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(theirs), str(mine), DRIVER, str(ROOT)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    fold = done.stdout.split()[-1]
    recipe = Recipe.model_validate(values)
    assert (mine / directory(recipe, Job(fold, "m", 0)) / "DONE").is_file()
    assert (mine / "dataset" / "targets" / "mel").is_dir()
    assert list(theirs.iterdir()) == [], "nothing was written where the cluster was started"
