"""Checkpoints exist whole or not at all, are read only when every hash fits, and say what they cannot be restored to."""

import json
import shutil
from pathlib import Path

import pytest

from ser.checkpoint import (
    State,
    committed,
    drop_uncommitted,
    files_of,
    read_state,
    restore,
    verify,
    write_json,
)
from tests import tiny
from tests.faults import Kill, killed, refused, same_training, trained
from tests.processes import run_ranks
from tests.ser.worlds import ALONE

JOB = ("session-ses0", "acoustic", 0)


def values(folder: Path, dataset: str, stage: int, precision: str = "fp32") -> dict:
    model = {
        "role": "baseline", "model": tiny.HUBERT, "objective": [{"loss": "cross_entropy"}, {"loss": "ccc"}],
        "train": tiny.training(
            5, slots=2, slot_seconds=3.0, checkpoint_every=2, evaluate_every=2, zero_stage=stage, precision=precision
        ),
    }  # fmt: skip
    return tiny.recipe_values(folder, dataset, {"acoustic": model})


@pytest.mark.slow
@pytest.mark.parametrize("stage,precision", [(1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_sharded_state_resumes_bit_for_bit_and_refuses_a_stage_it_does_not_fit(
    stage, precision, tmp_path, tiny_dataset
):
    whole = trained(values(tmp_path / "whole", tiny_dataset, stage, precision), JOB, 2)
    recipe = values(tmp_path / "cut", tiny_dataset, stage, precision)
    killed(recipe, JOB, Kill("ser.train:train_step", 4, rank=1), 2)
    folder = tmp_path / "cut/run/folds/session-ses0/acoustic/seed-0"
    assert committed(folder) == [2]
    other = values(tmp_path / "cut", tiny_dataset, 0, precision)
    (message,) = run_ranks(refused, 1, other, JOB)
    assert f"written with zero_stage={stage}" in message and f"train.zero_stage={stage}" in message
    assert committed(folder) == [2], "what was refused is left as it was"
    same_training(whole, trained(recipe, JOB, 2))


@pytest.fixture(scope="module")
def half(tmp_path_factory, tiny_dataset) -> Path:
    """A training killed after its second checkpoint."""
    folder = tmp_path_factory.mktemp("half")
    killed(values(folder, tiny_dataset, 0), JOB, Kill("ser.train:train_step", 5))
    return folder


@pytest.mark.slow
def test_a_file_that_differs_from_commit_is_never_loaded(half, tmp_path, tiny_dataset):
    """Its bytes would be unpickled: every file is checked before DeepSpeed sees any."""
    shutil.copytree(half, tmp_path / "copy")
    recipe = values(tmp_path / "copy", tiny_dataset, 0)
    folder = tmp_path / "copy/run/folds/session-ses0/acoustic/seed-0"
    assert committed(folder) == [2, 4]
    last = folder / "checkpoints/step-4"
    assert verify(last) == [] and set(json.loads((last / "COMMIT").read_text())) == {
        str(p.relative_to(last)) for p in files_of(last)
    }
    for name in ("mp_rank_00_model_states.pt", "state.json"):
        spoiled = last / name
        kept = spoiled.read_bytes()
        spoiled.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert verify(last) == [name]
        (message,) = run_ranks(refused, 1, recipe, JOB)
        assert "does not match its COMMIT" in message and name in message and f"rm -r {last}" in message
        spoiled.unlink()
        assert verify(last) == [name]
        spoiled.write_bytes(kept)
    (last / "COMMIT").write_text('{"torn')
    assert verify(last) == ["COMMIT"]
    (message,) = run_ranks(refused, 1, recipe, JOB)
    assert "COMMIT" in message
    shutil.rmtree(last)  # as the message says
    assert trained(recipe, JOB) == folder


@pytest.mark.slow
def test_old_checkpoints_go_and_best_weights_that_any_names_stay(half):
    folder = half / "run/folds/session-ses0/acoustic/seed-0"
    named = {read_state(folder, step)[0].best_step for step in committed(folder)}
    assert {int(p.stem.split("-")[1]) for p in folder.glob("best-*.safetensors")} == named - {None}
    state, identity = read_state(folder, 4)
    assert state.step == 4 and identity == {"world": 1, "zero_stage": 0, "precision": "fp32", "slots": 2}


def test_what_is_not_committed_is_not_seen(tmp_path):
    for name in ("step-2", "step-4", "step-x", "step-6.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    write_json(tmp_path / "checkpoints/step-2/COMMIT", {})
    assert committed(tmp_path) == [2]
    drop_uncommitted(tmp_path, ALONE)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    assert restore(tmp_path / "nothing", None, {}) == State()  # type: ignore[arg-type]
