"""`memory` of a ccc term: what is remembered enters the gradient, survives a checkpoint to the bit, and skipped steps do not."""

import json

import numpy as np
import pytest
import torch

from ser import objectives
from ser.job import directory
from ser.recipe import Term
from tests import tiny
from tests.faults import Kill, killed, same_training, trained
from tests.ser.test_ccc_mix import LABELS, parts

JOB = ("session-ses0", "sound", 0)
KEEP = 0.8


def test_the_gradient_is_that_of_the_step_in_the_larger_set():
    objective, output, batch = parts(LABELS, memory=KEEP)
    own = {"ccc": objective.moments(output, batch)}
    older = {"ccc": objectives.moments(torch.randn(60, 3).double() + 1, torch.randn(60, 3), torch.ones(60))}
    assert objective.with_memory(own)["ccc"].equal(own["ccc"]), "nothing is remembered before the first step"
    objective.remember(older)
    both = objective.with_memory(own)
    assert torch.allclose(both["ccc"], own["ccc"] + KEEP * older["ccc"])
    loss, _ = objective.slot_loss(output, batch, {}, 1.0, both)
    loss.backward()
    said = output.dimensions.detach().clone().requires_grad_()
    target, weight = torch.tensor(LABELS), torch.ones(len(LABELS))
    whole = objectives.moments(said, target, weight) + KEEP * older["ccc"]
    objectives.ccc_loss_from_moments(whole).backward()
    torch.testing.assert_close(output.dimensions.grad, said.grad)


def test_numbers_in_a_state_file_lose_nothing():
    objective, output, batch = parts(LABELS, memory=KEEP)
    objective.remember({"ccc": objective.moments(output, batch)})
    kept = json.loads(json.dumps(objective.memory))
    again, *_ = parts(LABELS, memory=KEEP)
    again.memory = kept
    assert again.remembered["ccc"].equal(objective.remembered["ccc"])
    plain, output, batch = parts(LABELS)
    plain.remember({"ccc": plain.moments(output, batch)})
    assert plain.memory == {}, "a term without the key keeps none"


def test_it_belongs_to_a_ccc_over_the_step_and_is_written_only_where_it_says_something():
    with pytest.raises(ValueError, match="`memory` says nothing with loss kl"):
        Term(loss="kl", teacher="t", memory=0.5)
    with pytest.raises(ValueError, match="says nothing with scope slot"):
        Term(loss="ccc", scope="slot", memory=0.5)
    with pytest.raises(ValueError, match="less than 1"):
        Term(loss="ccc", memory=1.0)
    assert (
        "memory" not in Term(loss="ccc").model_dump()
        and Term(loss="ccc", memory=0.5).model_dump()["memory"] == 0.5
    )


def values(folder, dataset, keep=KEEP):
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "ccc", "memory": keep}],
        "train": tiny.training(6, checkpoint_every=2, slots=2, slot_seconds=3.0, optimizer={"lr": 0.01}),
    }  # fmt: skip
    given = tiny.recipe_values(folder, dataset, {"sound": model})
    given["protocol"]["select_metric"] = "ccc"
    return given


@pytest.mark.slow
def test_a_killed_training_remembers_to_the_bit(tmp_path, tiny_dataset):
    whole = trained(values(tmp_path / "whole", tiny_dataset), JOB)
    recipe = values(tmp_path / "killed", tiny_dataset)
    killed(recipe, JOB, Kill("ser.train:train_step", 4))
    (checkpoint,) = (tmp_path / "killed/run/folds").glob("*/sound/seed-0/checkpoints/step-2")
    state = json.loads((checkpoint / "state.json").read_text())["state"]
    assert np.array(state["memory"]["ccc"]).shape == (6, 3)
    same_training(whole, trained(recipe, JOB))
    forgetful = trained(values(tmp_path / "forgetful", tiny_dataset, 0.0), JOB)
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (whole, forgetful)]
    assert weights[0] != weights[1], "what is remembered moves weights"


def test_a_step_that_is_skipped_is_not_remembered(tmp_path, tiny_dataset, monkeypatch):
    from ser import step
    from ser.job import Job
    from ser.recipe import Recipe
    from ser.strict import validate
    from ser.train import train

    real, moved = step.train_step, []

    def recorded(x, engine, number, slots, factor):
        if number == 1:
            engine.finite = torch.tensor(False)
        before = dict(x.objective.memory)
        result = real(x, engine, number, slots, factor)
        moved.append((result.moved, x.objective.memory != before))
        return result

    monkeypatch.setattr("ser.train.train_step", recorded)
    recipe = validate(Recipe, values(tmp_path, tiny_dataset), where="test")
    train(recipe, Job(*JOB))
    assert moved[1] == (False, False) and moved[0] == moved[2] == (True, True)
    assert (directory(recipe, Job(*JOB)) / "DONE").is_file()
