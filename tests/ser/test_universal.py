"""ZeRO 1-3 goes on with another number of workers: the same weights and moments, samples, and (closely) losses."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ser.checkpoint import committed, verify
from tests import tiny
from tests.faults import Kill, events, heard_steps, killed, patch, refused, same_training, train_one, trained
from tests.processes import run_killed, run_ranks

JOB = ("session-ses0", "acoustic", 0)
STEPS = 6
FOLDER = "run/folds/session-ses0/acoustic/seed-0"


def values(folder: Path, dataset: str, stage: int, **train) -> dict:
    settings = tiny.training(
        STEPS, slots=2, slot_seconds=3.0, checkpoint_every=2, evaluate_every=2, zero_stage=stage, **train,
        optimizer={"lr": 3e-3, "encoder_lr": 1e-3, "weight_decay": 0.1},
    )  # fmt: skip
    model = {
        "role": "baseline", "model": tiny.HUBERT, "objective": [{"loss": "cross_entropy"}, {"loss": "ccc"}],
        "train": settings,
    }  # fmt: skip
    return tiny.recipe_values(folder, dataset, {"acoustic": model})


# -- what an engine holds --------------------------------------------------------------------------------------------


def gathered(engine) -> dict[str, np.ndarray]:
    """Full fp32 weights, both moments and the step count (every rank calls)."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    zero = engine.engine.optimizer
    if hasattr(zero, "_hp_optimizer_states_linked"):  # ZeRO 1 and 2 link all groups but the first too early
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    found = {}
    for name, parameter in engine.module.named_parameters():
        found[name] = safe_get_full_fp32_param(parameter)
        for moment in ("exp_avg", "exp_avg_sq"):
            found[f"{name} {moment}"] = safe_get_full_optimizer_state(parameter, moment)
    counters = [state["step"] for state in engine.optimizer.state.values()]
    assert len({id(counter) for counter in counters}) == len(counters), "each advances on its own"
    if engine.world.main:  # a rank that holds nothing of a group counts for nobody
        assert len(set(map(float, counters))) == 1
    return {n: v.detach().float().cpu().numpy().copy() for n, v in found.items()} | {
        "step": np.array(max(map(float, counters))),
        "decay": np.array([group["weight_decay"] for group in engine.optimizer.param_groups]),
    }


def record_states(path: str) -> None:
    """Write what the engine holds at every save and restore to `path-save-N.npz` and `path-restore-N.npz`."""

    def write(engine, kind: str, step: int) -> None:
        state = gathered(engine)
        if engine.world.main:
            np.savez(f"{path}-{kind}-{step}.npz", **state)

    def on_save(original):
        def save(self, directory, tag, background):
            writing = original(self, directory, tag, background)
            write(self, "save", int(tag.removeprefix("step-")))
            return writing

        return save

    def on_restore(original):
        def restore(directory, engine, identity):
            state = original(directory, engine, identity)
            if state.step:
                write(engine, "restore", state.step)
            return state

        return restore

    patch("ser.engine:Engine.save", on_save)
    patch("ser.checkpoint:restore", on_restore)


def train_recorded(recipe: dict, kill: Kill | None, path: str) -> str:
    """On a rank: train, with states and steps recorded."""
    record_states(path)
    return train_one(recipe, JOB, kill, f"{path}-steps")


def same_state(a: Path, b: Path) -> None:
    with np.load(a) as one, np.load(b) as other:
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage,precision", [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_two_workers_then_one_then_two(stage, precision, tmp_path, tiny_dataset):
    """Bit-equal state over each conversion; losses of the uninterrupted run within 1e-4 (bf16: 3 %), relative."""
    path = {name: str(tmp_path / name) for name in ("whole", "two", "one", "again")}
    straight = values(tmp_path / "straight", tiny_dataset, stage, precision=precision)
    run_ranks(train_recorded, 2, straight, None, path["whole"])
    recipe = values(tmp_path / "moved", tiny_dataset, stage, precision=precision)
    folder = tmp_path / "moved" / FOLDER
    run_killed(train_recorded, 2, recipe, Kill("ser.train:train_step", 4), path["two"])
    assert committed(folder) == [2]
    run_killed(train_recorded, 1, recipe, Kill("ser.train:train_step", 4), path["one"])
    assert committed(folder) == [2, 4]
    assert not list((folder / "checkpoints").glob("universal-*")), "it stays until the next checkpoint only"
    run_ranks(train_recorded, 2, recipe, None, path["again"])
    same_state(tmp_path / "two-save-2.npz", tmp_path / "one-restore-2.npz")
    same_state(tmp_path / "one-save-4.npz", tmp_path / "again-restore-4.npz")
    expected = heard_steps(path["whole"] + "-steps")
    for name, first in (("two", 0), ("one", 2), ("again", 4)):
        heard = heard_steps(f"{path[name]}-steps")
        assert min(heard) == first and heard == {step: expected[step] for step in heard}
    curve = [
        [e["loss"] for e in events(f) if e["kind"] == "train"]
        for f in (folder, tmp_path / "straight" / FOLDER)
    ]
    assert len(curve[0]) == STEPS
    np.testing.assert_allclose(*curve, rtol=1e-4 if precision == "fp32" else 0.03)


# -- a small engine --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A running statistic, an odd number of parameters, and one of them alone in its group."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5))
        self.head = nn.Linear(5, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("heard", torch.zeros(2))

    def forward(self, x):
        self.heard += x.detach().abs().mean()
        return self.head(self.encoder(x)) * self.scale


def small_training(folder: Path, identity: dict, steps: range, offload: str = "none") -> list[dict]:
    """On a rank: restore what lies in `folder`, train `steps`, save; states after restoring and at the end."""
    from ser import checkpoint
    from ser.distributed import join
    from ser.engine import Engine
    from ser.recipe import OptimizerConfig, TrainConfig

    world, net = join(), Net()
    config = TrainConfig(
        steps=9, slots=2, zero_stage=identity["zero_stage"], precision=identity["precision"], offload=offload,
        optimizer=OptimizerConfig(lr=1e-2, encoder_lr=3e-3, weight_decay=0.1),
    )  # fmt: skip
    engine = Engine(net, config, world, list(net.encoder.parameters()))
    now = identity | {"world": world.size, "slots": 2}
    state = checkpoint.restore(folder, engine, now)
    assert state.step == steps.start

    def look() -> dict:
        buffers = {name: value.float().numpy() for name, value in engine.buffers().items()}
        return gathered(engine) | buffers

    found = [look()] if steps.start else []
    for step in steps:
        for slot in range(world.rank, 2, world.size):
            torch.manual_seed(2 * step + slot)
            engine.backward(engine.engine(torch.randn(4, 7).to(engine.dtype)).float().square().mean())
            engine.micro_step(1.0, last=slot + world.size >= 2)
    state.step = steps.stop
    checkpoint.save(folder, engine, state, 2, now)
    return [*found, look()]


def same(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before,after,precision,offload",
    [
        ((1, 1), (1, 2), "fp32", "none"),  # (stage, world); the second rank gets nothing of the small groups
        ((2, 2), (1, 2), "fp32", "none"),
        ((1, 2), (2, 1), "fp32", "none"),
        ((2, 1), (2, 2), "bf16", "none"),
        ((3, 2), (3, 1), "bf16", "none"),
        ((2, 2), (2, 1), "fp32", "optimizer"),
    ],
)
def test_weights_moments_counts_rates_and_buffers_move(before, after, precision, offload, tmp_path):
    def identity(stage: int) -> dict:
        return {"zero_stage": stage, "precision": precision}

    saved = run_ranks(small_training, before[1], tmp_path, identity(before[0]), range(3), offload)
    moved = run_ranks(small_training, after[1], tmp_path, identity(after[0]), range(3, 5), offload)
    for rank in moved:
        same(rank[0], saved[0][0])
    straight = run_ranks(
        small_training, after[1], tmp_path / "straight", identity(after[0]), range(5), offload
    )
    buffers = dict(Net().named_buffers())
    for name, value in straight[0][0].items():
        if name not in buffers:  # each rank hears its own slots
            np.testing.assert_allclose(moved[0][1][name], value, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimizer_needs_no_accelerator_and_computes_the_same(stage, tmp_path):
    identity = {"zero_stage": stage, "precision": "fp32"}
    plain = run_ranks(small_training, 2, tmp_path / "none", identity, range(3))[0][0]
    for offload in ("optimizer", "parameters")[: stage - 1]:
        folder = tmp_path / offload
        run_ranks(small_training, 2, folder, identity, range(2), offload)
        resumed = run_ranks(small_training, 2, folder, identity, range(2, 3), offload)[0][1]
        for name, value in plain.items():
            np.testing.assert_allclose(resumed[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


# -- killed, damaged, refused ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny_dataset) -> Path:
    """A training of two workers, ZeRO 2, killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("sharded")
    killed(values(folder, tiny_dataset, 2), JOB, Kill("ser.train:train_step", 4), 2)
    return folder


@pytest.fixture(scope="module")
def moved(sharded, tmp_path_factory, tiny_dataset) -> Path:
    """It goes on with one worker."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(sharded, folder, dirs_exist_ok=True)
    return trained(values(folder, tiny_dataset, 2), JOB)


def killed_inside(recipe: dict) -> None:
    """On a rank: SIGKILL while the converter writes."""

    def make(original):
        def convert(source, target):
            def watch():
                while not list(target.glob("zero/*/fp32.pt")):
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)

            threading.Thread(target=watch, daemon=True).start()
            original(source, target)

        return convert

    patch("ser.checkpoint:convert", make)
    train_one(recipe, JOB)


def converters(folder: Path) -> list[str]:
    """Command lines of live processes whose working directory is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def spoil(path: Path, trace: Path) -> None:
    """Replace a file by a pickle that leaves a trace."""
    assert path.is_file()
    torch.save(Evil(trace), path)


@pytest.mark.slow
def test_a_conversion_killed_anywhere_is_made_again(sharded, moved, tmp_path, tiny_dataset):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    recipe = values(tmp_path, tiny_dataset, 2)
    folder = tmp_path / FOLDER / "checkpoints"
    run_killed(killed_inside, 1, recipe)
    (half,) = folder.glob(".converting-*")
    assert list(half.rglob("fp32.pt")) and not list(half.rglob("*model_states.pt"))
    end = time.monotonic() + 30
    while converters(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert not converters(folder), "the converter ends with the training"
    killed(recipe, JOB, Kill("ser.checkpoint:convert", when="after"))
    killed(recipe, JOB, Kill("ser.checkpoint:write_json", 2))
    assert not list(folder.glob("universal-*/COMMIT"))
    killed(recipe, JOB, Kill("ser.checkpoint:write_json", 2, "after"))
    (made,) = folder.glob("universal-*")
    assert made.name == "universal-2" and verify(made) == []
    stamp = (made / "COMMIT").stat().st_mtime_ns
    killed(recipe, JOB, Kill("ser.train:train_step"))
    assert (made / "COMMIT").stat().st_mtime_ns == stamp, "committed work is not done again"
    spoil(next(made.glob("zero/*/fp32.pt")), tmp_path / "trace")
    same_training(moved, trained(recipe, JOB))
    assert not (tmp_path / "trace").exists(), "a damaged conversion is made again, not read"
    assert (
        not list(folder.glob(".conv*"))
        and not list(folder.glob("universal*"))
        and not list(folder.glob("latest*"))
    )


@pytest.mark.slow
def test_a_damaged_shard_is_refused_before_it_is_unpickled(sharded, tmp_path, tiny_dataset):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    last = tmp_path / FOLDER / "checkpoints/step-2"
    shard = next(last.glob("*pp_rank_1*optim_states.pt"))
    spoil(shard, tmp_path / "trace")
    (message,) = run_ranks(refused, 1, values(tmp_path, tiny_dataset, 2), JOB)
    assert "does not match its COMMIT" in message and shard.name in message and f"rm -r {last}" in message
    assert not (tmp_path / "trace").exists()
    torch.load(shard, weights_only=False)
    assert (tmp_path / "trace").exists(), "it would have run"


@pytest.mark.slow
def test_what_cannot_be_converted_says_how_to_go_on(sharded, tmp_path, tiny_dataset):
    shutil.copytree(sharded, tmp_path, dirs_exist_ok=True)
    for stage in (0, 3):
        for world in (1, 2):
            messages = run_ranks(refused, world, values(tmp_path, tiny_dataset, stage), JOB)
            assert all("zero_stage=2" in m and "train.zero_stage=2" in m for m in messages)
    (message,) = run_ranks(refused_conversion, 1, values(tmp_path, tiny_dataset, 2))
    assert "checkpoint of 2 workers cannot be re-sharded" in message and "No space left" in message
    assert "models.NAME.train.workers=2" in message
    folder = tmp_path / FOLDER / "checkpoints"
    assert sorted(path.name for path in folder.glob("[.su]*")) == ["step-2"], (
        "what was refused is left as it was"
    )


def refused_conversion(recipe: dict) -> str:
    """On a rank: the error when DeepSpeed's converter fails."""
    from ser import universal

    script = Path(recipe["run_dir"]).parent / "failing.py"
    script.write_text("raise OSError(28, 'No space left on device')\n")
    universal.__file__ = str(script)
    return refused(recipe, JOB)
