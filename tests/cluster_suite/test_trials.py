"""cluster.sweep: no trial is lost or told twice, whatever is killed; what dies leaves nothing; resources are kept to.

The trials are toys (`tests.cluster_suite.toy_trials`); Ray, the study, the reapers and the kills are real.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cluster import lease
from cluster.session import Session
from cluster.sweep import drive
from shards.errors import UserError
from tests.cluster_suite import toy_trials as toys
from tests.cluster_suite.hosts import HEALTH
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def session():
    with Session(cpus=2, env={"PYTHONPATH": str(ROOT)}) as session:
        yield session


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def loaded(folder: Path) -> optuna.Study:
    """The study as any Optuna tool opens it."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name="toys", storage=optuna.storages.JournalStorage(backend))


def test_more_trials_than_resources_each_run_once(session, tmp_path):
    x = toys.sweep_of(tmp_path, toys.config(trials=12), {"seconds": 0.2})
    drive(x, session)
    study = loaded(tmp_path)
    assert states(study) == [TrialState.COMPLETE] * 12
    found = toys.runs(tmp_path)
    assert {n: [line[0] for line in lines] for n, lines in found.items()} == {
        key: ["start", "end"] for key in range(12)
    }
    spans = [(float(lines[0][2]), float(lines[1][2])) for lines in found.values()]
    assert max(sum(a <= at < b for a, b in spans) for at, _ in spans) == 2, "two CPUs, two trials at once"
    for trial in study.trials:
        assert trial.value == toys.judge(trial.params)
        assert ("z" in trial.params) == (trial.params["y"] == "b"), (
            "a key is varied under its condition alone"
        )
    assert study.metric_names == ["m ua"] and study.best_value > 0.9


def test_a_trial_that_dies_is_started_again_within_its_budget(session, tmp_path):
    told: list[str] = []
    how = {"die": {"1": 2, "2": 99}, "refused": [3], "orphans": [1]}
    x = toys.sweep_of(tmp_path, toys.config(trials=5, retries=2), how, say=told.append)
    drive(x, session)
    complete, fail = TrialState.COMPLETE, TrialState.FAIL
    assert states(x.study) == [complete, complete, fail, fail, complete]
    attempts = {n: sum(line[0] == "start" for line in lines) for n, lines in toys.runs(tmp_path).items()}
    assert attempts == {0: 1, 1: 3, 2: 3, 3: 1, 4: 1}, "what is refused is not tried again"
    trials = x.study.trials
    assert trials[1].user_attrs["failures"] == 2 and "about to die" in trials[2].user_attrs["why"]
    assert trials[3].user_attrs["why"] == "nonsense"
    assert not toys.orphans(tmp_path), "what a dead trial had started is dead, in other sessions too"


def test_nothing_but_failures_ends_the_sweep(session, tmp_path):
    x = toys.sweep_of(tmp_path, toys.config(trials=50), {"refused": list(range(50))})
    with pytest.raises(UserError, match="5 trials failed one after the other; the last: nonsense"):
        drive(x, session)


def test_a_pruned_trial_is_killed_and_its_place_is_taken(session, tmp_path):
    sweep = toys.config(
        trials=8, pruner={"kind": "median", "by": "steps", "options": {"n_startup_trials": 2}},
        sampler={"kind": "random", "seed": 5},
    )  # fmt: skip
    x = toys.sweep_of(tmp_path, sweep, {"seconds": 0.6, "steps": 8, "orphans": list(range(8))})
    drive(x, session)
    ended = states(x.study)
    assert set(ended) == {TrialState.COMPLETE, TrialState.PRUNED} and len(ended) == 8
    found = toys.runs(tmp_path)
    for trial in x.study.trials:
        assert [line[0] for line in found[trial.number]] == (
            ["start"] if trial.state == TrialState.PRUNED else ["start", "end"]
        )
    assert not toys.orphans(tmp_path)


def test_a_trial_whose_owner_may_live_elsewhere_is_left_alone(session, tmp_path):
    sweep = toys.config(trials=2, parallel=1)
    x = toys.sweep_of(tmp_path, sweep, {})
    x.study.ask()
    theirs = x.folder_of(0)
    theirs.mkdir(parents=True)
    about = {"token": "t", "host": "another", "boot": "b", "numbering": "n", "pid": 1, "start": 1}
    (theirs / lease.NAME).write_text(json.dumps(about))
    assert lease.alive(theirs)
    told: list[str] = []
    x.say = told.append
    # one that has not been renewed for long is dead, whoever it belongs to
    x.show = lambda done, total: os.utime(theirs / lease.NAME, (0, 0)) if done == 1 else None
    drive(x, session)
    assert next(line for line in told if line.startswith("trial")).startswith("trial 1"), (
        "trial 0 had to wait"
    )
    assert states(x.study) == [TrialState.COMPLETE] * 2


@pytest.fixture
def spawn():
    """Starts drivers in processes of their own; none outlives its test."""
    started: list[subprocess.Popen] = []

    def start(folder: Path, told: dict, mark: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.cluster_suite.toy_trials", str(folder), json.dumps(told)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"SER_TEST_MARK": mark}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def outcomes(folder: Path) -> int:
    return len(list((folder / "trials").glob("*/outcome.json")))


def kill_when(process: subprocess.Popen, reached) -> None:
    """SIGKILL a driver at a moment of its sweep."""
    end = time.monotonic() + 400
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.01)
    process.kill()
    process.communicate()


def test_a_driver_killed_again_and_again_loses_nothing_and_repeats_nothing(spawn, tmp_path):
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    told = {"sweep": {"trials": 16, "parallel": 2}, "how": {"seconds": 0.5, "orphans": [2, 7]}, "cpus": 2}
    ended_before: dict[int, list] = {}
    for count in (0, 3, 9):
        kill_when(spawn(tmp_path, told, mark), lambda count=count: outcomes(tmp_path) > count)
        nothing_left(mark, 300, but="Agent")
        found = toys.runs(tmp_path)
        for number, lines in ended_before.items():
            assert found[number] == lines, "what has ended is not run again"
        ended_before = {n: lines for n, lines in found.items() if lines[-1][0] == "end"}
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id": "to')  # as a kill inside a write leaves it
    last = spawn(tmp_path, told, mark)
    out = last.communicate(timeout=500)[0]
    assert last.returncode == 0, out
    assert "were running when the last driver ended" in out
    study = loaded(tmp_path)
    assert states(study) == [TrialState.COMPLETE] * 16
    for number, lines in toys.runs(tmp_path).items():
        assert sum(line[0] == "end" for line in lines) == 1, f"trial {number} ended twice"
        assert study.trials[number].value == toys.judge(study.trials[number].params)
    nothing_left(mark, 300)


def test_a_killed_sweep_proposes_what_an_undisturbed_one_does(session, spawn, tmp_path):
    whole = toys.sweep_of(tmp_path / "whole", toys.config(trials=9, parallel=1), {})
    drive(whole, session)
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    told = {"sweep": {"trials": 9, "parallel": 1}, "how": {"seconds": 0.1}, "cpus": 1}
    kill_when(spawn(tmp_path / "cut", told, mark), lambda: outcomes(tmp_path / "cut") > 4)
    nothing_left(mark, 300, but="Agent")
    rest = toys.sweep_of(tmp_path / "cut", toys.config(trials=9, parallel=1), {})
    drive(rest, session)
    assert [t.params for t in rest.study.trials] == [t.params for t in whole.study.trials]


def test_ctrl_c_ends_the_trials_and_the_next_call_goes_on(session, spawn, tmp_path):
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    told = {"sweep": {"trials": 3, "parallel": 2}, "how": {"seconds": 60}, "cpus": 2}
    process = spawn(tmp_path, told, mark)
    end = time.monotonic() + 400
    while len(toys.runs(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=300)
    nothing_left(mark, 300)
    assert not any(lease.alive(path) for path in (tmp_path / "trials").iterdir())
    x = toys.sweep_of(tmp_path, toys.config(trials=3, parallel=2), {})
    drive(x, session)
    assert states(x.study) == [TrialState.COMPLETE] * 3


def test_a_trial_that_no_machine_can_hold_is_refused(session, tmp_path):
    x = toys.sweep_of(tmp_path, toys.config(resources={"memory_gb": 1e6}), {})
    with pytest.raises(UserError, match=r"and 1e\+06 GB of memory; this cluster has 2 CPUs") as error:
        drive(x, session)
    assert error.value.where == "sweep.resources" and not x.study.get_trials()


def running(folder: Path) -> int:
    """Trials that have begun and not ended."""
    return sum(lines[-1][0] == "start" for lines in toys.runs(folder).values())


def test_a_node_that_dies_takes_no_trial_with_it(spawn, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    given = {"SER_TEST_MARK": mark, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    for name, value in (given | HEALTH).items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    if cluster.address.startswith("127."):
        # where this process has a session of its own, which is on loopback, Ray takes its address for all that is started
        # here; who joins them would look for a machine at another
        monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        other = cluster.add_node(num_cpus=1)
        told = {
            "address": cluster.address,
            "sweep": {"trials": 8},
            "how": {"seconds": 6.0, "orphans": list(range(8))},
        }
        driver = spawn(tmp_path, told, mark)
        end = time.monotonic() + 400
        # two at once on machines of one CPU: one of them is on the machine that dies
        while outcomes(tmp_path) < 2 or running(tmp_path) < 2:
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < end, "the moment did not come"
            time.sleep(0.01)
        other.kill_raylet()
        out = driver.communicate(timeout=500)[0]
        assert driver.returncode == 0, out
    finally:
        cluster.shutdown()
    study = loaded(tmp_path)
    assert states(study) == [TrialState.COMPLETE] * 8
    assert sum(trial.user_attrs.get("interruptions", 0) for trial in study.trials) >= 1, (
        "its trial was started again"
    )
    assert not any(trial.user_attrs.get("failures") for trial in study.trials), (
        "and it was not held against it"
    )
    for lines in toys.runs(tmp_path).values():
        assert sum(line[0] == "end" for line in lines) == 1
    nothing_left(mark, 300)
