"""Which steps a training keeps: those of the clock, and those before it diverged."""

from typing import Any

import pytest

from ser.job import Job, directory
from ser.recipe import Recipe
from ser.strict import validate
from shards.errors import UserError
from tests import tiny
from tests.ser.small_recipe import CE, FOLD, model, trained, values


def test_checkpoints_are_written_by_default():
    from ser.recipe import TrainConfig

    assert TrainConfig(steps=1).checkpoint_seconds == 600
    for text, seconds in (("90 s", 90), ("1.5h", 5400), ("2 min", 120)):
        assert TrainConfig(steps=1, checkpoint_every=text).checkpoint_seconds == seconds
    for quiet in (None, 7):
        assert TrainConfig(steps=1, checkpoint_every=quiet).checkpoint_seconds is None


@pytest.mark.slow
def test_a_killed_training_goes_on_from_a_checkpoint_of_the_clock(tmp_path, tiny_dataset):
    from tests.faults import Kill, heard_steps, killed, same_training
    from tests.faults import trained as trained_alone

    models = {"m": model(CE, train=tiny.training(6, checkpoint_every="0.000001 s"))}
    whole = trained_alone(values(tmp_path / "whole", models, tiny_dataset), (FOLD, "m", 0))
    recipe = values(tmp_path / "killed", models, tiny_dataset)
    killed(recipe, (FOLD, "m", 0), Kill("ser.train:train_step", 4))
    folder = trained_alone(recipe, (FOLD, "m", 0), record=str(tmp_path / "steps"))
    assert sorted(heard_steps(tmp_path / "steps")) == [3, 4, 5], "three steps were done and kept"
    same_training(whole, folder)


@pytest.mark.slow
def test_ten_bad_steps_keep_the_weights_before_them(tmp_path, tiny_dataset, monkeypatch):
    """Without any checkpoint before: what is kept are the weights that the last good step left."""
    from safetensors.torch import load_file

    import ser.train
    from ser.checkpoint import committed, read_state, verify
    from ser.loss import Objective

    original = Objective.slot_loss
    calls = []

    def slot_loss(self: Objective, *arguments: Any) -> tuple:
        calls.append(1)
        loss, shares = original(self, *arguments)
        return loss * (1.0 if len(calls) <= 3 else float("nan")), shares

    monkeypatch.setattr(Objective, "slot_loss", slot_loss)
    recipe = validate(
        Recipe, values(tmp_path, {"m": model(CE, train=tiny.training(40))}, tiny_dataset), where="test"
    )
    with pytest.raises(UserError, match=r"the weights before them stay in .*checkpoints/step-3") as error:
        ser.train.train(recipe, Job(FOLD, "m", 0))
    assert "models.NAME.train.optimizer.lr" in str(error.value)
    folder = directory(recipe, Job(FOLD, "m", 0))
    assert committed(folder) == [3] and verify(folder / "checkpoints/step-3") == []
    state, _ = read_state(folder, 3)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 0, 0)
    # it goes on from there: three good steps are not done again
    monkeypatch.undo()
    done = ser.train.train(recipe, Job(FOLD, "m", 0))
    straight = trained(tmp_path / "straight", tiny_dataset, {"m": model(CE, train=tiny.training(40))})
    a, b = (load_file(f / "model/model.safetensors") for f in (done, straight))
    assert all((a[name] == b[name]).all() for name in b)
