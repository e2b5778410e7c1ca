"""Training on Ray: the same weights as plain processes, to the bit, also when a worker is killed on the way."""

import os
import shutil
import signal
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest

from cluster.groups import train_groups
from cluster.pool import MOST_DEATHS, TrainWorker, train_all
from cluster.session import Session
from ser.job import Job, directory
from ser.recipe import Recipe
from shards.errors import UserError
from tests import tiny
from tests.faults import Kill, killed, same_training, train_one, trained
from tests.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FOLD, STEPS = "session-ses0", 40
LABELS = [{"loss": "cross_entropy"}, {"loss": "ccc"}]


def values(folder: Path, dataset: str, **train) -> dict:
    settings = tiny.training(
        STEPS, slots=2, workers=2, slot_seconds=3.0, checkpoint_every=5, evaluate_every=20, **train
    )
    model = {"role": "baseline", "model": tiny.HUBERT, "objective": LABELS, "train": settings}
    return tiny.recipe_values(folder, dataset, {"acoustic": model}, seeds=[0, 1, 2, 3])


@pytest.fixture(scope="module")
def session():
    root = str(Path(__file__).resolve().parents[2])
    with Session(cpus=4, env={"PYTHONPATH": root}) as session:
        yield session


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_dataset) -> Path:
    """Two processes of a plain process group."""
    return trained(values(tmp_path_factory.mktemp("plain"), tiny_dataset), (FOLD, "acoustic", 0), 2)


def kill_one(name: str, log: Path, killed: list[int]) -> None:
    """SIGKILL one Ray worker process whose title holds `name` once the training has logged a few steps."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if log.is_file() and log.read_text().count("\n") > 8:
            found = [p for p in psutil.Process().children(recursive=True) if name in " ".join(_title(p))]
            if found:
                killed.append(found[0].pid)
                os.kill(found[0].pid, signal.SIGKILL)
                return
        time.sleep(0.05)


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_ray_train_gives_the_weights_of_plain_processes_though_a_worker_is_killed(
    session, plain, tmp_path, tiny_dataset
):
    recipe, killed = Recipe.model_validate(values(tmp_path, tiny_dataset)), []
    job = Job(FOLD, "acoustic", 0)
    folder = directory(recipe, job)
    killer = Thread(target=kill_one, args=("RayTrainWorker", folder / "events.jsonl", killed), daemon=True)
    killer.start()
    assert list(train_groups(session, recipe, [job])) == [job]
    killer.join(timeout=5)
    assert killed, "no worker was killed"
    same_training(plain, folder)
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")], "Ray's own files are gone"


def test_ray_train_goes_on_from_a_checkpoint_of_another_number_of_workers(session, tmp_path, tiny_dataset):
    made = values(tmp_path / "made", tiny_dataset, zero_stage=2)
    job = (FOLD, "acoustic", 0)
    killed(made, job, Kill("ser.train:train_step", 7))
    recipe = Recipe.model_validate(values(tmp_path / "ray", tiny_dataset, zero_stage=2))
    shutil.copytree(tmp_path / "made", tmp_path / "ray")
    assert [p.name for p in (tmp_path / "ray").rglob("step-*")] == ["step-5"]
    assert list(train_groups(session, recipe, [Job(*job)])) == [Job(*job)]
    same_training(trained(made, job, 2), directory(recipe, Job(*job)))


def test_a_mistake_comes_in_words_and_is_not_tried_again(session, tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset, init_from=str(tmp_path / "nothing"))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no model\.json") as error:
        list(train_groups(session, Recipe.model_validate(recipe), [Job(FOLD, "acoustic", 0)]))
    assert error.value.where == str(tmp_path / "nothing")
    assert time.monotonic() - began < 300


def test_a_pool_trains_many_and_replaces_a_killed_worker(session, tmp_path, tiny_dataset):
    recipe_values = values(tmp_path / "pool", tiny_dataset)
    recipe_values["models"]["acoustic"]["train"] |= {"workers": 1}
    recipe = Recipe.model_validate(recipe_values)
    jobs = [Job(FOLD, "acoustic", seed) for seed in range(4)]
    seen: set[tuple] = set()
    killed: list[int] = []
    log = directory(recipe, jobs[0]) / "events.jsonl"
    killer = Thread(target=kill_one, args=("TrainWorker", log, killed), daemon=True)
    killer.start()
    done = [t.job for t in train_all(recipe, jobs, 2, lambda job, n, total: seen.add((job, total)))]
    killer.join(timeout=5)
    assert killed and sorted(done) == jobs
    assert seen <= {(job, STEPS) for job in jobs} and seen, "progress is seen while they run"
    straight = tmp_path / "straight"
    recipe_values["run_dir"] = str(straight / "run")
    run_ranks(train_both, 1, recipe_values)
    for job in jobs[:2]:
        same_training(straight / "run/folds" / FOLD / "acoustic" / f"seed-{job.seed}", directory(recipe, job))


def train_both(recipe: dict) -> None:
    for seed in (0, 1):
        train_one(recipe, (FOLD, "acoustic", seed))


def test_a_pool_raises_a_training_s_mistake(session, tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset, init_from=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"no model\.json"):
        list(train_all(Recipe.model_validate(recipe), [Job(FOLD, "acoustic", 0)], 1))


class Dies(TrainWorker):
    """Stands for a worker whose machine is lost: it dies in every training, until there are as many checkpoints as asked."""

    def run(self, recipe: Recipe, job: Job) -> float:
        folder = directory(recipe, job) / "checkpoints"
        count = len(list(folder.glob("step-*")))
        if job.seed == 0:  # the others come no further
            (folder / f"step-{count}").mkdir(parents=True)
            (folder / f"step-{count}" / "COMMIT").touch()
        if count <= MOST_DEATHS + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0


def test_a_pool_gives_up_who_dies_again_and_again_without_a_checkpoint_between(
    session, tmp_path, tiny_dataset, monkeypatch
):
    monkeypatch.setattr("cluster.pool.TrainWorker", Dies)
    recipe = Recipe.model_validate(values(tmp_path, tiny_dataset))
    lucky, other = (Job(FOLD, "acoustic", seed) for seed in (0, 1))
    assert [trained.job for trained in train_all(recipe, [lucky], 1)] == [lucky]
    assert len(list(directory(recipe, lucky).rglob("COMMIT"))) > MOST_DEATHS + 1
    with pytest.raises(UserError, match=f"seed 1 died {MOST_DEATHS} times with no checkpoint between"):
        list(train_all(recipe, [other], 1))
