"""Checkpoints in the background hold the state of their moment, are committed late or not at all, and say what went wrong."""

import threading
from pathlib import Path

import pytest
import torch

from ser.checkpoint import committed, verify
from ser.writing import snapshot
from tests import tiny
from tests.faults import Kill, patch, refused, same_training, train_one, trained
from tests.processes import run_killed, run_ranks

JOB = ("session-ses0", "acoustic", 0)
FOLDER = "run/folds/session-ses0/acoustic/seed-0"
STEPS = 7


def values(folder: Path, dataset: str, stage: int, **train) -> dict:
    settings = tiny.training(
        STEPS, slots=2, slot_seconds=3.0, checkpoint_every=2, evaluate_every=2, zero_stage=stage, **train
    )
    model = {
        "role": "baseline",
        "model": tiny.HUBERT,
        "objective": [{"loss": "cross_entropy"}],
        "train": settings,
    }
    return tiny.recipe_values(folder, dataset, {"acoustic": model})


def train_while_writing(recipe: dict, kill: Kill | None) -> str:
    """On a rank: train; the files of step N are written only when two more steps have been made."""
    steps: dict[int, threading.Event] = {n: threading.Event() for n in range(STEPS)}

    def hold(original):
        def write(self, state_dict, path):
            step = int(self.folder.name.removeprefix("step-"))
            assert threading.current_thread().name == "checkpoint"
            assert steps[min(step + 1, STEPS - 1)].wait(250)
            return original(self, state_dict, path)

        return write

    def release(original):
        def train_step(x, engine, step, slots, factor):
            result = original(x, engine, step, slots, factor)
            steps[step].set()
            return result

        return train_step

    patch("ser.writing:Writing._write", hold)
    patch("ser.train:train_step", release)
    return train_one(recipe, JOB, kill)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_what_is_written_later_is_the_state_of_the_moment(stage, tmp_path, tiny_dataset):
    """Two ranks; the checkpoint of step 2 is written after step 3 was made; what resumes from it ends bit for bit."""
    whole = trained(values(tmp_path / "whole", tiny_dataset, stage), JOB, 2)
    recipe = values(tmp_path / "late", tiny_dataset, stage, checkpoint_background=True)
    folder = tmp_path / "late" / FOLDER
    run_killed(train_while_writing, 2, recipe, Kill("ser.train:train_step", 6))
    assert committed(folder) == [2], "that of step 4 was not yet whole"
    assert (folder / "checkpoints/step-4").is_dir() and verify(folder / "checkpoints/step-2") == []
    run_ranks(train_while_writing, 2, recipe, None)
    same_training(whole, folder)
    assert committed(folder) == [4, 6]


def full_disk(recipe: dict, error: type[Exception]) -> str:
    """On a rank: the error when the second rank cannot write its second file."""
    import os

    if os.environ["RANK"] == "1":
        count = 0

        def make(original):
            def save(state, path, **options):
                nonlocal count
                count += 1
                if count > 1:
                    raise error("No space left on device")
                return original(state, path, **options)

            return save

        patch("torch:save", make)
    return refused(recipe, JOB)


@pytest.mark.slow
@pytest.mark.parametrize("background,error", [(False, RuntimeError), (True, OSError)])
def test_a_rank_that_cannot_write_is_told_by_all(background, error, tmp_path, tiny_dataset):
    recipe = values(tmp_path, tiny_dataset, 2, checkpoint_background=background)
    for message in run_ranks(full_disk, 2, recipe, error):
        assert f"could not be written (rank 1): {error.__name__}: No space left on device" in message
        assert "make room" in message and "step-4" in message
    assert committed(tmp_path / FOLDER) == [2]


def test_a_snapshot_shares_nothing_but_keeps_shapes_types_and_shared_weights():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
    net[1].weight = net[0].weight
    state = {
        "module": net.state_dict(keep_vars=True),
        "more": [(net[0].bias, {"n": 3}), torch.ones(4)[1:3]],
        "size": torch.Size([2, 1]),
    }
    taken = snapshot(state, {})
    expected = [t.detach().clone() for t in state["module"].values()]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    state["more"][0][1]["n"] = 4
    assert all(torch.equal(a, b) for a, b in zip(taken["module"].values(), expected))
    assert taken["module"]["0.weight"] is taken["module"]["1.weight"]
    assert taken["module"]["0.bias"] is taken["more"][0][0] and taken["more"][0][1] == {"n": 3}
    assert type(taken["module"]) is type(state["module"]) and taken["module"]._metadata
    assert taken["more"][1].untyped_storage().nbytes() == 8, "not the whole of what it is a view of"
    assert isinstance(taken["size"], torch.Size)
