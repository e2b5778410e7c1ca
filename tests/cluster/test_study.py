"""cluster.study: samplers and pruners do what the recipe names, a study belongs to one sweep, and its storage is safe."""

import os
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cluster import lease
from cluster.study import NETWORK, file_system, mend, open_storage, open_study, pruner, sampler
from cluster.told import tell
from ser.report.sweep import short, write_page
from ser.space import propose
from ser.sweep import PRUNERS, SAMPLERS, SweepConfig
from shards.errors import UserError
from tests.cluster_suite import toy_trials as toys

FLAT = {
    "x": {"low": -1.0, "high": 1.0},
    "n": {"low": 1, "high": 64, "int": True, "log": True},
    "y": {"choice": ["a", "b"]},
}


def sweep(kind: str, **changes) -> SweepConfig:
    if kind == "cmaes":
        pytest.importorskip("cmaes")
    space = toys.SPACE if kind in ("tpe", "nsga2", "random") else FLAT
    if kind == "grid":
        space = {"x": {"low": 0, "high": 1, "step": 0.25}, "y": {"choice": ["a", "b"]}}
    options = (
        {"n_startup_trials": 4}
        if kind in ("tpe", "gp")
        else {"population_size": 4}
        if kind == "nsga2"
        else {}
    )
    chosen = {"kind": kind, "seed": changes.pop("seed", 7), "options": options}
    return toys.config(**({"space": space, "sampler": chosen} | changes))


def ask_and_tell(config: SweepConfig, folder: Path, count: int, fresh: bool) -> list[dict]:
    """Proposals of `count` trials; `fresh` opens the study anew for each one, as a driver does that is killed each time."""
    study, asked = None, []
    for number in range(count):
        if fresh or study is None:
            study = open_study(config, "s", folder, {}, 1)
        study.sampler = sampler(config, number)
        trial = study.ask()
        given = propose(trial, config.space)
        study.tell(trial, (given["x"] - 0.3) ** 2 + (given["y"] == "a"))
        asked.append(given)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_proposal_depends_on_the_seed_and_what_was_told_not_on_who_was_killed(kind, tmp_path):
    config = sweep(kind, objectives=[{"model": "m", "metric": "nll"}])
    count = 10 if kind == "grid" else 24
    whole = ask_and_tell(config, tmp_path / "whole", count, fresh=False)
    assert ask_and_tell(config, tmp_path / "killed", count, fresh=True) == whole
    other = sweep(kind, seed=8, objectives=[{"model": "m", "metric": "nll"}])
    assert ask_and_tell(other, tmp_path / "other", count, fresh=False) != whole
    if kind == "grid":
        assert len({(g["x"], g["y"]) for g in whole}) == 10, "every combination once"
    elif kind in ("tpe", "gp", "cmaes"):
        late = [abs(g["x"] - 0.3) for g in whole[-8:]]
        assert sum(late) / 8 < 0.45, "it learns; at random this is 0.55"


def test_every_sampler_and_pruner_takes_the_options_that_are_pinned():
    for kind in SAMPLERS:
        assert sampler(sweep(kind), 0) is not None
    for kind in PRUNERS:
        made = pruner(toys.config(pruner={"kind": kind, "options": PRUNERS[kind]}), 9)
        assert kind[:4] in type(made).__name__.lower() or kind in ("none", "asha")


def test_a_pruner_ends_what_is_behind(tmp_path):
    for kind, options in (
        ("median", {"n_startup_trials": 2}),
        ("asha", {}),
        ("hyperband", {}),
        ("wilcoxon", {}),
    ):
        config = toys.config(pruner={"kind": kind, "options": options})
        study = open_study(config, kind, tmp_path, {}, 9)
        for number in range(12):
            trial, ended = study.ask(), False
            propose(trial, config.space)
            for step in range(1, 10):
                trial.report(0.5 + 0.01 * step if number % 3 == 0 else 0.1 + 0.001 * step, step)
                if trial.should_prune():
                    study.tell(trial, state=TrialState.PRUNED)
                    ended = True
                    break
            if not ended:
                study.tell(trial, 0.6 if number % 3 == 0 else 0.1)
        pruned = {t.number for t in study.trials if t.state == TrialState.PRUNED}
        assert pruned and all(number % 3 for number in pruned), kind


@pytest.mark.slow
def test_a_torn_line_is_cut_and_a_dead_writers_lock_removed(tmp_path):
    study = open_study(toys.config(), "s", tmp_path, {}, 1)
    study.tell(study.ask(), 1.0)
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "work')
    os.symlink(path, f"{path}.lock")  # as optuna's lock is
    began = time.monotonic()
    again = open_study(toys.config(), "s", tmp_path, {}, 1)
    assert time.monotonic() - began < 20, "optuna itself waits 30 s for such a lock"
    again.tell(again.ask(), 2.0)
    assert [t.value for t in open_study(toys.config(), "s", tmp_path, {}, 1).trials] == [1.0, 2.0]
    mend(tmp_path / "none")


def test_a_study_of_another_sweep_is_refused_by_field(tmp_path):
    made_for = {
        "sweep": {"space": {"x": {"low": 0.0, "high": 1.0}}},
        "models": {"m": {"train": {"steps": 2}}},
    }
    open_study(toys.config(), "s", tmp_path, made_for, 1)
    open_study(toys.config(trials=99), "s", tmp_path, made_for, 1)
    other = {"sweep": {"space": {"x": {"low": 0.0, "high": 2.0}}}, "models": {"m": {"train": {"steps": 3}}}}
    with pytest.raises(UserError) as refusal:
        open_study(toys.config(), "s", tmp_path, other, 1)
    assert "sweep.space.x.high: 1.0 -> 2.0" in str(refusal.value)
    assert "models.m.train.steps: 2 -> 3" in str(refusal.value) and "low" not in refusal.value.what
    strange = optuna.create_study(study_name="theirs", storage=open_storage(None, tmp_path))
    strange.tell(strange.ask(), 1.0)
    with pytest.raises(UserError, match="has not made"):
        open_study(toys.config(objectives=[{"model": "m", "metric": "nll"}]), "theirs", tmp_path, {}, 1)


MOUNTS = """/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/data /data nfs4 rw,vers=4.2 0 0
/dev/sdb /data/local xfs rw 0 0
sshfs /mnt/with\\040space fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize("path,kind", [
    ("/var/x", "ext4"), ("/data/me/runs/study.db", "nfs4"), ("/data/local/x", "xfs"), ("/datawork/x", "ext4"),
    ("/mnt/with space/x", "fuse.sshfs"),
])  # fmt: skip
def test_a_path_lies_on_the_innermost_mount(path, kind):
    assert file_system(Path(path), MOUNTS) == kind


def test_sqlite_is_refused_on_a_network_file_system(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    study = open_study(toys.config(storage=url), "s", tmp_path, {"a": 1}, 1)
    study.tell(study.ask(), 1.0)
    assert [t.value for t in optuna.load_study(study_name="s", storage=url).trials] == [1.0]
    for kind in ("nfs4", "lustre", "fuse.sshfs"):
        monkeypatch.setattr("cluster.study._mounts", lambda kind=kind: f"server:/x / {kind} rw 0 0\n")
        with pytest.raises(UserError, match=f"network file system .{kind}"):
            open_storage(url, tmp_path)
    assert "ext4" not in NETWORK


def test_a_database_that_cannot_be_had_is_said_without_its_password(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="NOWHERE is not set"):
        open_storage("env:NOWHERE", tmp_path)
    monkeypatch.setenv("STUDY", "postgresql://me:secret@127.0.0.1:9/none")
    with pytest.raises(UserError) as refusal:
        open_storage("env:STUDY", tmp_path)
    assert "secret" not in str(refusal.value)


def test_a_lease_lives_with_its_process_here_and_by_the_clock_elsewhere(tmp_path):
    held = lease.Lease(tmp_path)
    assert lease.alive(tmp_path) and held.renew()
    dead = held.about | {"start": held.about["start"] - 1}
    (tmp_path / lease.NAME).write_text(lease.json.dumps(dead))
    assert not lease.alive(tmp_path), "the number was given to another process"
    away = held.about | {"host": "another"}
    (tmp_path / lease.NAME).write_text(lease.json.dumps(away))
    assert lease.alive(tmp_path)
    old = time.time() - lease.LASTS - 5
    os.utime(tmp_path / lease.NAME, (old, old))
    assert not lease.alive(tmp_path)
    (tmp_path / lease.NAME).write_text(lease.json.dumps(held.about | {"token": "another's"}))
    held.renewed -= lease.RENEW
    assert not held.renew(), "a lease that someone else holds is lost"


def test_the_page_of_a_study_draws_what_is_there(tmp_path):
    config = toys.config(objectives=[{"model": "m", "metric": "ua"}, {"model": "m", "metric": "parameters"}])
    study = open_study(config, "s", tmp_path, {}, 1)
    for number in range(14):
        study.sampler = sampler(config, number)
        trial = study.ask()
        given = propose(trial, config.space)
        if number == 3:
            trial.set_user_attr("why", "<b>died</b>")
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, [toys.judge(given), 100 + 50 * given["x"]])
    study.ask()
    told = tell(study, config) | {"tuning": {"selection": "non-nested", "data": "a sweep"}}
    assert told["counts"] == {"running": 1, "complete": 13, "pruned": 0, "fail": 1, "waiting": 0}
    for shares in told["importances"].values():
        assert set(shares) <= set(config.space) and sum(shares.values()) == pytest.approx(1)
    assert told["importances"]["m parameters"]["x"] == max(told["importances"]["m parameters"].values())
    page = write_page(told, tmp_path).read_text()
    for words in ("The front", "Importances", "&lt;b&gt;died", "Values side by side", "non-nested"):
        assert words in page
    empty = open_study(config, "empty", tmp_path, {}, 1)
    write_page(tell(empty, config) | {"tuning": {"selection": "outside", "data": "x"}}, tmp_path)


def test_keys_are_shown_by_as_many_parts_as_tell_them_apart():
    assert short(["models.a.train.lr", "models.b.train.lr", "models.a.model.width"]) == {
        "models.a.train.lr": "a.train.lr", "models.b.train.lr": "b.train.lr", "models.a.model.width": "width",
    }  # fmt: skip
