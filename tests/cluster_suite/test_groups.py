"""Trainings of several workers each: side by side where there is room for all workers of both, else one after the other."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from cluster.groups import train_groups
from cluster.session import Session
from ser.events import read
from ser.job import Job, directory
from ser.recipe import Recipe
from ser.stopping import Stopped, stopped_by_signals
from shards.errors import UserError
from tests import tiny
from tests.faults import same_training, train_one
from tests.processes import run_ranks
from tests.submitting import gates, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FOLD, HELD = "session-ses0", 3
SEEDS = (0, 1)


def student(steps: int = 6, **train) -> dict:
    settings = tiny.training(steps, slots=2, workers=2, slot_seconds=3.0, checkpoint_every=100_000, **train)
    objective = [{"loss": "cross_entropy"}, {"loss": "ccc"}]
    return {"role": "baseline", "model": tiny.CONV, "objective": objective, "train": settings}


def values(folder: Path, dataset: str) -> dict:
    return tiny.recipe_values(folder, dataset, {"student": student(evaluate_every=6)}, seeds=list(SEEDS))


def jobs() -> list[Job]:
    return [Job(FOLD, "student", seed) for seed in SEEDS]


@contextmanager
def a_cluster(folder: Path, cpus: int) -> Iterator[Session]:
    """One whose trainings wait before a step until `folder/go-HELD` is there, or they are told to stop."""
    with Session(cpus=cpus, env=gates(folder, HELD)) as session:
        yield session


@contextmanager
def meanwhile(ready: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """`act` once `ready`; the main thread, which gets the signals, trains."""
    ended = Event()

    def wait() -> None:
        until(lambda: ended.is_set() or ready(), "it is ready", 600)
        if not ended.is_set():
            act()

    thread = Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def train_both(recipe: dict) -> None:
    for seed in SEEDS:
        train_one(recipe, (FOLD, "student", seed))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_dataset) -> Recipe:
    """Both trainings, on two processes of a plain process group."""
    made = values(tmp_path_factory.mktemp("plain"), tiny_dataset)
    run_ranks(train_both, 2, made)
    return Recipe.model_validate(made)


def begun(recipe: Recipe, job: Job) -> bool:
    """Whether it stands before the step at which it is held."""
    log = directory(recipe, job) / "events.jsonl"
    return log.is_file() and max((event["step"] for event in read(log)), default=0) >= HELD - 1


def test_two_run_at_once_save_when_asked_and_go_on_to_the_weights_of_plain_processes(
    plain, tmp_path, tiny_dataset
):
    recipe = Recipe.model_validate(values(tmp_path, tiny_dataset))

    def both() -> bool:
        return all(begun(recipe, job) for job in jobs())

    with a_cluster(tmp_path, 4) as session:
        stop = meanwhile(both, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped), stopped_by_signals(), stop:
            list(train_groups(session, recipe, jobs()))
        for job in jobs():
            assert list(directory(recipe, job).glob("checkpoints/step-*/COMMIT")), f"{job} has not saved"
        seen: set[tuple] = set()
        (tmp_path / f"go-{HELD}").touch()
        done = list(train_groups(session, recipe, jobs(), lambda job, n, total: seen.add((job, total))))
    assert sorted(done) == jobs() and seen <= {(job, 6) for job in jobs()}
    for job in jobs():
        same_training(directory(plain, job), directory(recipe, job))
        assert not [p.name for p in directory(recipe, job).parent.iterdir() if p.name.startswith(".")]


def test_where_one_fits_they_run_one_after_the_other(plain, tmp_path, tiny_dataset):
    recipe = Recipe.model_validate(values(tmp_path, tiny_dataset))
    (tmp_path / f"go-{HELD}").touch()
    parent, beside = directory(recipe, jobs()[0]).parent, []

    def look(*_) -> None:
        beside.append(len(list(parent.glob(".*-ray"))))

    with a_cluster(tmp_path, 2) as session:
        assert list(train_groups(session, recipe, jobs(), look)) == jobs()
    assert set(beside) == {1}, "the second was begun beside the first"
    times = [[event["time"] for event in read(directory(recipe, job) / "events.jsonl")] for job in jobs()]
    assert max(times[0]) <= min(times[1])
    for job in jobs():
        same_training(directory(plain, job), directory(recipe, job))


def test_one_that_fails_ends_the_other_which_saves(tmp_path, tiny_dataset):
    models = {"student": student(100_000), "wild": student(100, optimizer={"lr": 1e30})}
    recipe = Recipe.model_validate(tiny.recipe_values(tmp_path, tiny_dataset, models, seeds=list(SEEDS)))
    good, wild, third = Job(FOLD, "student", 0), Job(FOLD, "wild", 0), Job(FOLD, "student", 1)
    go = meanwhile(
        lambda: begun(recipe, good) and begun(recipe, wild), lambda: (tmp_path / f"go-{HELD}").touch()
    )
    with a_cluster(tmp_path, 4) as session, pytest.raises(UserError, match="non-finite"), go:
        list(train_groups(session, recipe, [good, wild, third]))
    assert list(directory(recipe, good).glob("checkpoints/step-*/COMMIT"))
    assert not directory(recipe, third).exists(), "nothing more begins"
