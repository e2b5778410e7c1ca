"""The command of the README for a training without Ray: torchrun itself, as its users start it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.conftest import ROOT
from tests.faults import same_training, trained
from tests.processes import free_port

JOB = ("session-ses0", "sound", 0)


def values(folder: Path, dataset: str) -> dict:
    """Two slots a step, one for each of two ranks; the loss is over both."""
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}, {"loss": "ccc"}],
        "train": tiny.training(4, slots=2, slot_seconds=3.0, evaluate_every=2, checkpoint_every=2),
    }  # fmt: skip
    return tiny.recipe_values(folder, dataset, {"sound": model})


@pytest.mark.slow
def test_torchrun_trains_to_the_same_bits_as_two_ranks_by_hand(tmp_path, tiny_dataset):
    path = tiny.write_recipe(tmp_path, values(tmp_path / "by-hand", tiny_dataset))
    # the port that torchrun takes by itself is one for all of a machine
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
        "-m", "ser", str(path), JOB[1], JOB[0], str(JOB[2]), f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "run/folds/session-ses0/sound/seed-0"
    assert done.stdout.split() == [str(folder)], "one rank says where"
    state = (folder / "checkpoints/step-2/state.json").read_text()
    assert '"world": 2' in state, "two ranks made one training"
    # as the file says it: written down, classes stand in another order
    same_training(trained(yaml.safe_load(path.read_text()), JOB, 2), folder)
