"""`ser sweep` on three hosts: one dies and another joins, then the driver dies; sixteen trials, each one told once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from cluster import lease
from cluster.study import sampler
from ser.recipe import load
from ser.space import propose
from tests.cluster_suite.hosts import Hosts
from tests.cluster_suite.test_sweep import ended, study_of
from tests.conftest import ROOT
from tests.submitting import GATE, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TRIALS = 16
SWEEP = {
    "space": {
        "models.student.train.optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
        "models.student.model.width": {"choice": [4, 8]},
    },
    "objectives": [{"model": "student", "metric": "ua"}],
    "sampler": {"kind": "random", "seed": 6},
    "trials": TRIALS,
}


def undisturbed(recipe: Path) -> list[dict]:
    """What the sampler proposes when nothing happens."""
    config = load(str(recipe)).sweep
    assert config is not None
    study, found = optuna.create_study(), []
    for number in range(TRIALS):
        study.sampler = sampler(config, number)
        found.append(propose(study.ask(), config.space))
    return found


def tellings(journal: Path) -> list[int]:
    """Of each time that the study was told of a trial's end: which trial."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    told = (one for one in lines if one["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES)
    return [one["trial_id"] for one in told if TrialState(one["state"]).is_finished()]


def working(hosts: Hosts) -> list[str]:
    """Processes of trials and their reapers on the hosts that live."""
    found = []
    for pid in (pid for name in hosts.live for pid in hosts.pids(name)):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        found += [line] if "cluster.reaper" in line else []
    return found


def test_a_sweep_survives_a_host_and_its_driver(need_hosts, corpus, tmp_path):
    """All trials are held before their second step until the host has died and the one that joins works."""
    recipe, go = write_recipe(tmp_path / "here", corpus, 2, sweep=SWEEP, cluster={}), tmp_path / "go"
    folder, out = recipe.parent / "run/sweep", tmp_path / "out"
    with Hosts({"SER_TEST_GATE": f"1:{go}", "PYTHONPATH": f"{GATE}:{ROOT}"}) as hosts:
        hosts.start("h1", "h2", "h3")
        command = [sys.executable, "-m", "launch.cli", "sweep", str(recipe), f"cluster.address={hosts.head}"]
        command += [f"cluster.token_file={hosts.token}"]

        def drive() -> subprocess.Popen:
            with out.open("a") as log:
                return hosts.run("h1", command, {"SER_TEST_GATE": ""}, stdout=log, stderr=log)

        driver = drive()

        def alive(so: bool) -> bool:
            assert driver.poll() is None, out.read_text()
            return so

        def at(*names: str) -> bool:
            return alive(all(Path(f"{go}.at-{name}").exists() for name in names))

        until(lambda: at("h1", "h2", "h3"), "each host has a trial", 400)
        hosts.kill("h2")
        hosts.start("h4")
        until(lambda: at("h4"), "the host that joined has one", 400)
        go.touch()
        until(lambda: alive(len(ended(folder)) >= 5), "some trials have ended", 400)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        before = ended(folder)
        assert len(before) < TRIALS
        lost = [one.user_attrs.get("interruptions", 0) for one in study_of(folder).trials]
        assert sum(lost) == 1, "the trial of the host that died was started again"
        driver = drive()
        assert driver.wait(600) == 0, out.read_text()
        assert "were running when the last driver ended: they go on" in out.read_text()
        until(lambda: not working(hosts), "nothing works any more", 60)
    now = ended(folder)
    assert {name: now[name] for name in before} == before, "what has ended is not run again"
    study = study_of(folder)
    assert [one.state for one in study.trials] == [TrialState.COMPLETE] * TRIALS
    assert [one.params for one in study.trials] == undisturbed(recipe)
    assert sorted(tellings(folder / "study.journal")) == list(range(TRIALS))
    for one in study.trials:
        at_end = json.loads((folder / f"trials/{one.number:05d}/outcome.json").read_text())
        assert one.values == at_end["values"] and not lease.read(folder / f"trials/{one.number:05d}")
    assert not any(one.user_attrs.get("failures") for one in study.trials), "nothing was held against a trial"
    left = {p.name for p in recipe.parent.rglob(".*")} - {".recipe"}
    left |= {p.name for p in folder.rglob("*.lock")}
    assert not left, left
