"""Early stopping: a training whose dev score only falls ends, gives its best weights, and does so after a kill as well."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests import tiny
from tests.faults import Kill, events, heard_steps, killed, same_training, trained

pytestmark = pytest.mark.slow
JOB = ("session-ses0", "sound", 0)
STEPS, EVERY = 20, 2
PLACE = "run/folds/session-ses0/sound/seed-0"


def values(folder: Path, dataset: str, steps: int = STEPS, **train) -> dict:
    """A rate that destroys what the first steps have learned, chosen by the loss on dev.

    The schedule does not know of the end, so that a shorter training is the beginning of a longer one.
    """
    settings = tiny.training(
        steps, slots=2, slot_seconds=3.0, evaluate_every=EVERY, checkpoint_every=1, schedule="constant", warmup=0.0,
        optimizer={"lr": 0.3},
    )  # fmt: skip
    model = {
        "role": "baseline",
        "model": tiny.CONV,
        "objective": [{"loss": "cross_entropy"}],
        "train": settings | train,
    }
    recipe = tiny.recipe_values(folder, dataset, {"sound": model})
    recipe["protocol"]["select_metric"] = "loss"
    return recipe


def ended(folder: Path) -> dict:
    """What model.json tells of a training."""
    return json.loads((folder / "model/model.json").read_text())["meta"]["training"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, tiny_dataset) -> Path:
    """An unkilled training that loses patience."""
    return trained(values(tmp_path_factory.mktemp("stopped"), tiny_dataset, patience=1), JOB)


def test_it_ends_at_the_first_score_that_is_no_better_and_keeps_the_best(stopped, tmp_path, tiny_dataset):
    losses = [e["nll"] for e in events(stopped) if e["kind"] == "dev"]
    best = len(losses) - 1  # evaluations, the last of them in vain
    assert best >= 1 and losses[:best] == sorted(losses[:best], reverse=True) and losses[-1] > losses[-2]
    told = ended(stopped)
    assert told["steps"] == EVERY * len(losses) < STEPS
    assert told["chosen"] == f"step {EVERY * best}" and told["dev"] == -losses[best - 1]
    assert max(e["step"] for e in events(stopped)) == told["steps"] - 1, "no step was made after that"
    # the weights are those of that step, and not of the last
    short = trained(values(tmp_path, tiny_dataset, EVERY * best), JOB)
    a, b = load_file(stopped / "model/model.safetensors"), load_file(short / "model/model.safetensors")
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_without_patience_it_goes_on(stopped, tmp_path, tiny_dataset):
    """So it is patience that ended the other one; until then they are one training."""
    whole = trained(values(tmp_path, tiny_dataset), JOB)
    assert ended(whole)["steps"] == STEPS
    shared = events(stopped)
    assert events(whole)[: len(shared)] == shared


@pytest.mark.parametrize(
    "kill,left",
    [
        (Kill("ser.train:train_step", 2), True),
        (Kill("ser.train:save_best", 1, "after"), True),
        (Kill("ser.train:export", 1), False),
    ],
    ids=str,
)
def test_patience_lost_before_a_kill_stays_lost(kill, left, stopped, tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset, patience=1)
    killed(recipe, JOB, kill)
    assert trained(recipe, JOB, record=str(tmp_path / "steps")) == tmp_path / PLACE
    same_training(stopped, tmp_path / PLACE)
    assert bool(heard_steps(tmp_path / "steps")) is left, "who has lost patience makes no further step"
