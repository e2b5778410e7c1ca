"""`ser sweep`: whole runs as trials. They survive the kill of their driver; what they share is made once; the best recipe
runs as it is written, and says what it was chosen on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from launch.study import race
from ser.events import read
from ser.job import Job, directory, read_identity
from ser.models.config_frames import ConvConfig
from ser.recipe import load
from ser.setting import open_setting
from ser.sweep import SweepConfig
from ser.tuned import declared
from tests import tiny
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left, ser
from tests.submitting import training, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LABELS = [{"loss": "cross_entropy"}]
DISTIL = [{"loss": "kl", "teacher": "text"}, *LABELS]
SPACE = {
    "models.student.train.optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
    "models.student.model.width": {"choice": [4, 8]},
}
UA = {"model": "student", "metric": "ua"}
TRIALS = 6


def write(folder: Path, corpus: Path, sweep: dict, **changes) -> Path:
    """A teacher, its student and a baseline over the tiny corpus, and a sweep of the student."""
    folder.mkdir(parents=True, exist_ok=True)
    few = tiny.training(2, slot_seconds=10.0, evaluate_every=1)
    values = tiny.recipe_values(
        folder, str(folder / "dataset"),
        {
            "text": {"role": "teacher", "model": tiny.BERT, "objective": LABELS, "train": few},
            "student": {"role": "student", "model": tiny.CONV, "objective": DISTIL, "train": few},
            "alone": {"role": "baseline", "model": tiny.CONV, "objective": LABELS, "train": few},
        },
        cluster={"cpus": 2},
    )  # fmt: skip
    values["data"] = {
        "path": str(folder / "dataset"), "corpora": [{"reader": "manifest", "root": str(corpus), "options": {"corpus": "tiny"}}],
        "shard_seconds": 40.0,
    }  # fmt: skip
    values["folds"] = ["session-ses0", "session-ses1"]  # each one's dev speakers are tested in the other
    values["sweep"] = {"space": SPACE, "objectives": [UA], "sampler": {"kind": "random", "seed": 2}, **sweep}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def study_of(folder: Path, name: str = "tiny") -> optuna.Study:
    """The study as any Optuna tool opens it."""
    backend = JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


def ended(folder: Path) -> dict[str, list[int]]:
    """Trial -> inode and time of its outcome: what is written again has another."""
    found = sorted((folder / "trials").glob("*/outcome.json"))
    return {path.parent.name: [path.stat().st_ino, path.stat().st_mtime_ns] for path in found}


@pytest.fixture(scope="module")
def killed(tmp_path_factory, corpus) -> Path:
    """A sweep whose driver was killed and then was left alone; more trials and kills are those of `test_sweep_hosts`."""
    path = write(tmp_path_factory.mktemp("killed"), corpus, {"trials": TRIALS})
    folder, mark = path.parent / "run/sweep", f"mark-{path.parent.name}-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "sweep", str(path)], cwd=ROOT, env=os.environ | {"SER_TEST_MARK": mark},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 900
    while len(ended(folder)) < 2:
        assert process.poll() is None
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    nothing_left(mark, 300, but="Agent")
    before = ended(folder)
    done = ser("sweep", str(path), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials were running when the last driver ended: they go on" in done.stdout
    now = ended(folder)
    assert {name: now[name] for name in before} == before, "what has ended is not run again"
    return path


def test_trials_survive_the_kill_of_their_driver(killed):
    folder = killed.parent / "run/sweep"
    study = study_of(folder)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * TRIALS
    for trial in study.trials:
        at = folder / "trials" / f"{trial.number:05d}"
        made = json.loads((at / "trial.json").read_text())["recipe"]["models"]["student"]
        assert made["model"]["width"] == trial.params["models.student.model.width"]
        assert made["train"]["optimizer"]["lr"] == trial.params["models.student.train.optimizer.lr"]
        assert trial.values == json.loads((at / "outcome.json").read_text())["values"]


def test_what_trials_share_is_made_once(killed):
    folder = killed.parent / "run/sweep"
    for at in sorted((folder / "trials").iterdir()):
        for model in ("text", "alone"):
            for fold in (at / "folds").iterdir():
                link = fold / model / "seed-0"
                assert (
                    link.is_symlink()
                    and (link / "DONE").is_file()
                    and folder / "shared" in link.resolve().parents
                )
    assert len(list((killed.parent / "dataset/targets/text").iterdir())) == 2, "one set of targets a fold"


def test_a_trial_is_judged_on_dev_rows_and_its_test_answers_are_not_scored(killed):
    folder = killed.parent / "run/sweep"
    assert not list((folder / "trials").rglob("report.json"))
    assert {
        re.sub(r" .*", "", line) for line in (folder / "trials/00000/log.txt").read_text().splitlines()
    } <= {"train"}


def test_a_second_call_does_nothing_and_more_trials_may_be_asked_for(killed):
    folder = killed.parent / "run/sweep"
    before = ended(folder)
    again = ser("sweep", str(killed))
    assert again.returncode == 0 and "starting Ray" not in again.stdout and ended(folder) == before
    more = ser("sweep", str(killed), f"sweep.trials={TRIALS + 1}")
    assert more.returncode == 0, more.stdout + more.stderr
    assert len(study_of(folder).trials) == TRIALS + 1


def test_the_page_shows_every_trial_and_the_best(killed):
    folder = killed.parent / "run/sweep"
    told = json.loads((folder / "sweep.json").read_text())
    page = (folder / "sweep.html").read_text()
    study = study_of(folder)
    assert told["best"] == [study.best_trial.number] and len(told["trials"]) == len(study.trials)
    shares = told["importances"]["student ua"]
    assert shares is None or sum(shares.values()) == pytest.approx(1)
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    for words in ("History", "Importances", "Values side by side", "non-nested", "no estimate of anything"):
        assert words in page


def test_the_best_recipe_runs_as_it_is_and_says_non_nested(killed):
    best = killed.parent / "run/sweep/best.yaml"
    found = load(str(best))
    study = study_of(best.parent)
    number = study.best_trial.number
    made = found.models["student"].model
    assert isinstance(made, ConvConfig) and made.width == study.best_params["models.student.model.width"]
    assert found.tuned_on is not None and found.tuned_on.selection == "non-nested" and found.sweep is None
    done = ser("run", str(best))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((found.directory / "report.json").read_text())
    for model in report["models"].values():
        assert model["exposure"]["declared"]["selection"] == "non-nested"
    link = found.directory / "folds/session-ses0/student/seed-0"
    assert (
        link.resolve() == (best.parent / f"trials/{number:05d}/folds/session-ses0/student/seed-0").resolve()
    )
    assert read_identity(link) == read_identity(link.resolve())


def test_a_study_of_another_recipe_or_space_is_refused_with_what_differs(killed):
    other = ser("sweep", str(killed), "models.student.train.steps=3", "sweep.space.models_x=1")
    assert other.returncode == 2
    for override, field in (
        ("models.student.train.steps=3", "models.student.train.steps: 2 -> 3"),
        ("sweep.sampler.seed=9", "sweep.sampler.seed: 2 -> 9"),
        ("sweep.pruner={kind: median}", "sweep.pruner.kind"),
    ):
        done = ser("sweep", str(killed), override)
        assert done.returncode == 2 and field in done.stderr, done.stdout + done.stderr
        assert "another sweep" in done.stderr and "Traceback" not in done.stderr
    assert len(study_of(killed.parent / "run/sweep").trials) == TRIALS + 1


def test_each_fold_chooses_for_itself(tmp_path, corpus):
    space = {"models.student.train.optimizer.lr": {"choice": [0.001, 0.1]}}
    sweep = {"space": space, "trials": 9, "sampler": {"kind": "grid"}, "per": "fold"}
    path = write(tmp_path, corpus, sweep, folds=["session-ses0", "session-ses1"])
    done = ser("sweep", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "run/sweep"
    for fold in ("session-ses0", "session-ses1"):
        study = study_of(folder, f"tiny {fold}")
        assert sorted(t.params["models.student.train.optimizer.lr"] for t in study.trials) == [0.001, 0.1]
        chosen = yaml.safe_load((folder / "chosen" / f"{fold}.yaml").read_text())
        assert chosen == {"student": {"optimizer.lr": study.best_params["models.student.train.optimizer.lr"]}}
    best = folder / "best.yaml"
    done = ser("run", str(best))
    assert done.returncode == 0, done.stdout + done.stderr
    found = load(str(best))
    for fold in ("session-ses0", "session-ses1"):
        assert directory(found, Job(fold, "student", 0)).is_symlink(), "the trial's own training is taken"
    report = json.loads((found.directory / "report.json").read_text())
    assert report["models"]["student"]["exposure"]["tuning"] == "nested"


def test_a_race_over_folds_ends_early_and_leaves_the_rest(tmp_path, corpus):
    pruner = {"kind": "median", "by": "folds", "options": {"n_startup_trials": 1}}
    space = {"models.student.train.optimizer.lr": {"choice": [1e-2, 1e-9]}}
    path = write(
        tmp_path, corpus, {"space": space, "trials": 6, "pruner": pruner, "parallel": 1}, folds="all"
    )
    done = ser("sweep", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    study = study_of(tmp_path / "run/sweep")
    for trial in study.trials:
        steps = len(trial.intermediate_values)
        assert steps == 4 if trial.state == TrialState.COMPLETE else 1 <= steps < 4
        students = (tmp_path / f"run/sweep/trials/{trial.number:05d}/folds").glob("*/student/seed-0/DONE")
        assert len(list(students)) >= steps


NLL = {"model": "student", "metric": "nll"}
WORSE = {"models.student.train.optimizer.lr": {"choice": [1e-3, 10.0]}}  # seed 6 draws them in this order


def pruned(folder: Path, corpus: Path, steps: int, pruner: dict, **changes) -> list[optuna.trial.FrozenTrial]:
    """Two trials, one after the other, the second much worse."""
    sweep = {
        "space": WORSE, "objectives": [NLL], "trials": 2, "parallel": 1, "pruner": pruner,
        "sampler": {"kind": "random", "seed": 6},
    }  # fmt: skip
    path = write_recipe(folder, corpus, steps, sweep=sweep, **changes)
    done = ser("sweep", str(path), "models.student.train.evaluate_every=1", "models.student.train.warmup=0.0")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = study_of(folder / "run/sweep").trials
    assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.PRUNED), done.stdout
    assert [one.params.popitem()[1] for one in (first, second)] == [1e-3, 10.0]
    return [first, second]


def test_a_training_is_pruned_at_one_of_its_steps(tmp_path, corpus):
    pruner = {"kind": "median", "by": "steps", "options": {"n_startup_trials": 1}}
    first, second = pruned(tmp_path, corpus, 60, pruner)
    assert sorted(first.intermediate_values) == list(range(1, 61))
    assert 1 <= max(second.intermediate_values) < 60
    dev = (
        e for e in read(training(tmp_path / "run/sweep/trials/00000") / "events.jsonl") if e["kind"] == "dev"
    )
    assert first.intermediate_values == {e["step"] + 1: e["nll"] for e in dev}


def test_a_race_is_pruned_by_pairs_of_folds(tmp_path, corpus):
    """Two pairs of folds that are both worse have p = 1/4."""
    first, second = pruned(
        tmp_path, corpus, 2, {"kind": "wilcoxon", "options": {"p_threshold": 0.3}}, folds="all"
    )
    assert sorted(first.intermediate_values) == [0, 1, 2, 3]
    assert 2 <= len(second.intermediate_values) < 4


def test_several_objectives_give_a_front(tmp_path, corpus):
    objectives = [UA, {"model": "student", "metric": "parameters"}]
    path = write(tmp_path, corpus, {"trials": 4, "objectives": objectives}, folds=["session-ses0"])
    done = ser("sweep", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "run/sweep"
    told = json.loads((folder / "sweep.json").read_text())
    points = [tuple(t["values"]) for t in told["trials"]]
    front = [
        n
        for n, (u, p) in enumerate(points)
        if not any((a >= u and b <= p and (a, b) != (u, p)) for a, b in points)
    ]
    assert told["best"] == front
    assert {path.name for path in folder.glob("best*.yaml")} == {f"best-{n:05d}.yaml" for n in front}
    assert "Front of student ua against student parameters" in (folder / "sweep.html").read_text()


def test_an_order_of_the_folds_is_the_trials_own_where_folds_are_paired():
    folds = [f"f{i}" for i in range(6)]
    values = {"space": SPACE, "objectives": [UA]}
    paired = SweepConfig.model_validate(values | {"pruner": {"kind": "wilcoxon"}})
    orders = [race(paired, folds, number) for number in range(5)]
    assert all(sorted(order) == folds for order in orders) and len(set(map(tuple, orders))) == 5
    assert orders == [race(paired, folds, number) for number in range(5)]
    assert race(SweepConfig.model_validate(values | {"pruner": {"kind": "median"}}), folds, 3) == folds
    assert race(SweepConfig.model_validate(values), folds, 3) == []


def test_speakers_of_no_test_make_settings_chosen_outside(killed):
    made = load(str(killed))
    assert made.sweep is not None
    base = made.model_copy(update={"sweep": None, "run_dir": str(made.directory / "sweep/shared")})
    one = open_setting(base.model_copy(update={"folds": ["session-ses0"]}))
    assert declared(one, made.sweep, ["session-ses0"]).selection == "outside"
    every = open_setting(base)
    found = declared(every, made.sweep, ["session-ses0"])
    assert found.selection == "non-nested" and found.speakers, (
        "that fold's dev speakers are tested in another"
    )
