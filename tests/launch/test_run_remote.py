"""Dataset, targets and run on an S3 server whose answers fail: machines are killed, others with empty disks go on, the result is the same."""

import os
import random
from pathlib import Path

import pytest

from shards import mirror
from shards.cache import scratch
from shards.errors import UserError
from shards.store import Store
from tests import tiny
from tests.faults import Kill, arm, patch, record_steps, same_training
from tests.object_store import KEYS, cloud
from tests.processes import run_killed, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LABELS = [{"loss": "cross_entropy"}]
PLACE = "folds/session-ses0"
STEPS = 6


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with cloud(tmp_path_factory.mktemp("cloud")) as found:
        yield found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    tiny.write_corpus(folder, count=64)
    return folder


def values(there, corpus: Path, name: str) -> dict:
    """A teacher whose targets are stored, and a student that reads them and stored features: all of it in the bucket."""
    few = tiny.training(STEPS, slot_seconds=10.0, checkpoint_every=2, evaluate_every=4)
    kl = {"loss": "kl", "teacher": "text"}
    models = {
        "text": {"role": "teacher", "model": tiny.BERT, "objective": LABELS, "train": few},
        "student": {"role": "student", "model": tiny.CONV | {"features": "stored"}, "objective": [*LABELS, kl], "train": few},
    }  # fmt: skip
    made = tiny.recipe_values(
        corpus,
        f"{there.bucket}/{name}/set",
        models,
        features={"mel": {"kind": "mel", "options": {"bands": 20}}},
    )
    made["data"] |= {
        "corpora": [{"reader": "manifest", "root": str(corpus), "options": {"corpus": "tiny"}}],
        "shard_seconds": 15.0,
    }
    return made | {"run_dir": f"{there.bucket}/{name}/run"}


def machine(disk: Path) -> dict[str, str]:
    """Environment of a machine whose disk is `disk`: its own scratch, the bucket's keys."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | {
        "SER_CACHE": f"{disk}/cache"
    }


def work(
    recipe: dict,
    env: dict[str, str],
    until: str = "report",
    kill: Kill | None = None,
    record: str | None = None,
) -> list[tuple[str, int]]:
    """In a process: the recipe; each checkpoint is copied before the next step. Returns (stage, made)."""
    os.environ |= env
    from launch.display import Display
    from launch.run import run
    from ser.recipe import Recipe
    from ser.strict import validate

    mirrors = []

    def settled(original):
        def settle(self, say):
            mirrors.append(self)
            original(self, say)

        return settle

    def saved(original):
        def save(*args, **kwargs):
            made = original(*args, **kwargs)
            for one in mirrors:
                one.push()
            return made

        return save

    patch("shards.mirror:Mirror.settle", settled)
    patch("ser.checkpoint:finish", saved)
    if record is not None:
        record_steps(record)
    if kill is not None:
        arm(kill)
    return [
        (line.stage, line.made)
        for line in run(validate(Recipe, recipe, where="test"), Display(quiet=True), until, alone=True)
    ]


def test_killed_machines_are_followed_by_others_with_empty_disks(there, corpus, tmp_path, monkeypatch):
    """Bit-equal to an undisturbed run, dataset and targets too; what is in the bucket is not done again."""
    plain = values(there, corpus, "plain")
    run_ranks(work, 1, plain, machine(tmp_path / "plain"), "distill", timeout=900)
    troubled = values(there, corpus, "troubled")
    there.proxy.disturb(seed=5, share=0.1)
    dice = random.Random(7)
    kills = [
        Kill("shards.store:Store.upload", dice.randrange(12, 20), "before"),
        Kill("shards.mirror:Mirror._write_record", dice.randrange(8, 14), "before"),
        Kill("shards.store:Store.delete", 2, "after"),
    ]
    for number, kill in enumerate(kills):
        disk = machine(tmp_path / f"disk-{number}")
        run_killed(work, 1, troubled, disk, "report", kill, str(tmp_path / "heard"), timeout=900)
    there.outage(0.2)
    there.proxy.disturb(seed=6, share=0.1)
    last = tmp_path / "last"
    run_ranks(work, 1, troubled, machine(last), "report", None, str(tmp_path / "heard"), timeout=900)
    there.proxy.plan = iter(())
    assert sum(count for fault, count in there.proxy.seen.items() if fault != "none") > 20

    held = Store(troubled["run_dir"])
    monkeypatch.setenv("SER_CACHE", str(last / "cache"))
    folder = scratch(troubled["run_dir"])
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "plain/cache"))
    for model in ("text", "student"):
        same_training(scratch(plain["run_dir"]) / PLACE / model / "seed-0", folder / PLACE / model / "seed-0")
    names = [name for name in held.list() if not name.startswith(".owner/")]
    assert {"report.html", "report.json", "recipe.yaml", f"{PLACE}/student/seed-0/DONE"} <= set(names)
    assert set(names) == set(mirror.scan(folder))
    assert all(held.read(name) == (folder / name).read_bytes() for name in names)
    secret = KEYS["AWS_SECRET_ACCESS_KEY"].encode()
    assert not any(secret in held.read(name) for name in held.list())

    sets = [Store(one["data"]["path"]) for one in (plain, troubled)]
    shown = [{n: s.read(n) for n in s.list() if not n.startswith("runs/")} for s in sets]
    assert shown[0] == shown[1], "dataset, features and targets"
    # two trainings; on each machine at most the steps since the last checkpoint that was copied are repeated
    done = sum(len(part.read_text().splitlines()) for part in tmp_path.glob("heard.*"))
    assert 2 * STEPS <= done <= 2 * STEPS + 2 * len(kills)

    again = run_ranks(work, 1, troubled, machine(tmp_path / "again"), timeout=900)[0]
    assert sum(made for _, made in again) == 0, "another machine finds all of it made"


def refused(recipe: dict, env: dict[str, str]) -> str:
    try:
        work(recipe, env)
    except UserError as error:
        return str(error)
    return ""


def test_two_machines_do_not_work_in_one_run(there, corpus, tmp_path):
    recipe = values(there, corpus, "shared")
    with mirror.mirrored(recipe["run_dir"], tmp_path / "mine", print, print, lambda: None):
        text = run_ranks(refused, 1, recipe, machine(tmp_path / "other"), timeout=900)[0]
    assert "another process works in this run directory" in text and f"process {os.getpid()} on " in text


def test_what_needs_a_folder_says_so(tmp_path):
    from launch.fold import run_fold
    from launch.sweep import sweep
    from ser.recipe import Recipe

    few = tiny.training(2)
    models = {"student": {"role": "student", "model": tiny.CONV, "objective": LABELS, "train": few}}
    space = {"models.student.train.optimizer.lr": {"low": 1e-4, "high": 1e-2}}
    made = tiny.recipe_values(tmp_path, str(tmp_path / "set"), models, run_dir="s3://speech/run") | {
        "sweep": {"space": space, "objectives": [{"model": "student", "metric": "ua"}], "trials": 2}
    }
    recipe = Recipe.model_validate(made)
    for call in (lambda: run_fold(recipe, "session-ses0", None), lambda: sweep(recipe, None)):
        with pytest.raises(UserError, match="run directory on a file system"):
            call()
