"""DeepSpeed computes what plain PyTorch computes, at every ZeRO stage; a step that is not finite moves nothing.

The reference is a loop of its own: two processes under torch's DistributedDataParallel, torch.optim.AdamW, the loss written
out over the whole global step. Only the order of data, the model's start and the seeds of its dropout are shared.
"""

import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests import tiny
from tests.faults import events, patch, train_one
from tests.processes import run_ranks

JOB = ("session-ses0", "acoustic", 0)
STEPS = 8
RATES = {"lr": 3e-3, "encoder_lr": 1e-3, "weight_decay": 0.1}


def values(
    folder: Path, dataset: str, stage: int = 0, precision: str = "fp32", checkpointing: bool = False, **train
) -> dict:
    settings = tiny.training(
        STEPS, slots=2, slot_seconds=3.0, zero_stage=stage, precision=precision, optimizer=RATES,
        class_weights="balanced", clip=0.5, warmup=0.25, **train,
    )  # fmt: skip
    model = {
        "role": "baseline", "model": tiny.HUBERT | {"gradient_checkpointing": checkpointing}, "train": settings,
        "objective": [{"loss": "cross_entropy"}, {"loss": "ccc", "weight": 0.5}],
    }  # fmt: skip
    made = tiny.recipe_values(folder, dataset, {"acoustic": model})
    made["protocol"]["checkpoint"] = "last"
    return made


def plain_training(recipe_values: dict) -> tuple[list[float], dict[str, np.ndarray]]:
    """The reference loop on a rank: losses of all steps, and the weights after them."""
    from torch.nn.parallel import DistributedDataParallel

    from ser.build import gather_ingredients
    from ser.distributed import gather_objects, join
    from ser.inputs import complete
    from ser.job import Job
    from ser.recipe import Recipe
    from ser.setting import open_setting
    from ser.step import seed_everything
    from shards.loader import load_slot

    world = join()
    setting, job = open_setting(Recipe.model_validate(recipe_values)), Job(*JOB)
    torch.use_deterministic_algorithms(True, warn_only=True)
    seed_everything(0, -1, 0)
    x = gather_ingredients(setting, job, world)
    model, labels = x.model, x.objective.supervision
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    inside = {id(p) for p in model.encoder.parameters()}
    groups = [
        {"params": [p], "lr": 1e-3 if id(p) in inside else 3e-3, "weight_decay": 0.1 if p.ndim > 1 else 0.0}
        for p in model.parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)
    base, losses = [group["lr"] for group in optimizer.param_groups], []
    class_weight = torch.from_numpy(labels.class_weights).double()
    for step in range(STEPS):
        slot = list(x.plan.step(step))[world.rank]
        seed_everything(0, step, world.rank)
        output = parallel(complete(load_slot(x.dataset, slot, x.needs, x.policy), model))
        # the other rank's answers count for the loss, and get their gradient there
        told = gather_objects(
            (slot.rows, output.logits.detach().numpy(), output.dimensions.detach().numpy()), world
        )
        where = np.concatenate([rows for rows, *_ in told])
        mine = [[torch.from_numpy(part) for part in answers] for _, *answers in told]
        mine[world.rank] = [output.logits, output.dimensions]
        logits, answers = (torch.cat(parts).double() for parts in zip(*mine))
        truth = torch.from_numpy(labels.classes[where])
        loss = nn.functional.cross_entropy(logits, truth, weight=class_weight)
        ratings = torch.from_numpy(labels.dimensions[where]).double()
        for d in range(3):
            y, t = answers[:, d], ratings[:, d]
            covariance = ((y - y.mean()) * (t - t.mean())).mean()
            ccc = 2 * covariance / (y.var(correction=0) + t.var(correction=0) + (y.mean() - t.mean()) ** 2)
            loss = loss + 0.5 * (1 - ccc) / 3
        optimizer.zero_grad()
        (loss * world.size).backward()  # DDP takes the mean over ranks, each of which has its part of the sum
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        # linear over the first quarter, then half a cosine
        factor = (step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))
        for group, rate in zip(optimizer.param_groups, base):
            group["lr"] = rate * factor
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.numpy() for name, value in model.state_dict().items()}


def train_and_compare(recipe_values: dict) -> list[str]:
    """On a rank: train; names of weights whose exported file has not the value that DeepSpeed holds at the end."""
    from safetensors.torch import load_file

    held: dict[str, torch.Tensor] = {}

    def watch(original):
        def export(x, engine, state, folder, world):
            import deepspeed

            for name, parameter in engine.module.named_parameters():
                with deepspeed.zero.GatheredParameters([parameter], enabled=engine.config.zero_stage == 3):
                    held[name.removeprefix("model.")] = parameter.detach().clone()
            return original(x, engine, state, folder, world)

        return export

    patch("ser.train:export", watch)
    exported = load_file(Path(train_one(recipe_values, JOB)) / "model/model.safetensors")
    assert set(held) <= set(exported)
    return [name for name, value in held.items() if not torch.equal(exported[name].to(value.dtype), value)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_dataset):
    recipe = values(tmp_path_factory.mktemp("plain"), tiny_dataset)
    one, two = run_ranks(plain_training, 2, recipe)
    assert one[0] == two[0] and all(np.array_equal(one[1][name], two[1][name]) for name in one[1])
    return one


CASES = [(stage, precision, {}) for stage in range(4) for precision in ("fp32", "bf16")]
CASES += [(stage, "fp32", {"offload": "optimizer"}) for stage in (1, 2, 3)]
CASES += [(3, "fp32", {"offload": "parameters"})]
CASES += [(stage, "fp32", {"checkpointing": True}) for stage in (0, 2, 3)]
CASES += [(3, "bf16", {"checkpointing": True, "offload": "parameters"})]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage,precision,more", CASES, ids=[f"{s}-{p}-{'-'.join(m) or 'plain'}" for s, p, m in CASES]
)
def test_two_workers_at_every_stage_equal_plain_ddp(
    stage, precision, more, reference, tmp_path, tiny_dataset
):
    """fp32: losses within 1e-4 (relative), weights within 0.2 % of AdamW's reach. bf16: losses within 3 %."""
    from safetensors.numpy import load_file

    losses, weights = reference
    recipe = values(tmp_path, tiny_dataset, stage, precision, **more)
    assert run_ranks(train_and_compare, 2, recipe) == [[], []]
    folder = tmp_path / "run/folds/session-ses0/acoustic/seed-0"
    curve = [e["loss"] for e in events(folder) if e["kind"] == "train"]
    norms = [e["gradient_norm"] for e in events(folder) if e["kind"] == "train"]
    assert all(norm and norm > 0 for norm in norms), "the gradient's norm is logged at every stage"
    exported = load_file(folder / "model/model.safetensors")
    assert set(exported) == set(weights)
    normed = [name for name in exported if "pos_conv_embed" in name and "parametrizations.weight" in name]
    assert len(normed) == 2, "the positional convolution keeps its direction and its length"
    reach = 3e-3 * STEPS  # AdamW moves a weight by about its rate a step
    if precision == "fp32":
        np.testing.assert_allclose(curve, losses, rtol=1e-4)
        for name, value in weights.items():
            np.testing.assert_allclose(exported[name], value, atol=2e-3 * reach, err_msg=name)
    else:
        np.testing.assert_allclose(curve, losses, rtol=0.03)
        for name, value in weights.items():
            assert exported[name].dtype == np.float32
            np.testing.assert_allclose(exported[name], value, atol=reach, err_msg=name)


# -- a step that is not finite ---------------------------------------------------------------------------------------


class Poison(torch.autograd.Function):
    """Passes values on, and sends back infinite gradients."""

    @staticmethod
    def forward(_, value):
        return value.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * float("inf")


def poison(keys: set[str], what: str) -> None:
    """The model's logits for a batch with one of `keys` become NaN, or only their gradients infinite."""

    def make(original):
        def forward(self, batch):
            out = original(self, batch)
            if self.training and keys & set(batch.keys):
                bad = out.logits * float("nan") if what == "loss" else Poison.apply(out.logits)
                out = out._replace(logits=bad)
            return out

        return forward

    patch("ser.build:Trainable.forward", make)


def poisoned_training(recipe_values: dict, what: str, keys: list[str] | None) -> list[tuple]:
    """On a rank: train with poison; per step (moved, weights stayed, moments and their step counts stayed, keys)."""
    if keys is not None:
        poison(set(keys), what)
    found = []

    def state(engine):
        held = [dict(values) for values in engine.optimizer.state.values()]  # this rank's share of them
        moments = [value.clone() for values in held for value in values.values() if torch.is_tensor(value)]
        return engine.weights(), moments

    def watch(original):
        def train_step(x, engine, step, slots, factor):
            weights, moments = state(engine)
            result = original(x, engine, step, slots, factor)
            weights_after, moments_after = state(engine)
            found.append(
                (
                    result.moved,
                    all(torch.equal(weights[n], weights_after[n]) for n in weights),
                    len(moments) == len(moments_after) and all(map(torch.equal, moments, moments_after)),
                    [key for batch in slots for key in batch.keys],
                )
            )
            return result

        return train_step

    patch("ser.train:train_step", watch)
    train_one(recipe_values, JOB)
    return found


@pytest.fixture(scope="module")
def heard(tmp_path_factory, tiny_dataset) -> list[tuple[list[str], list[str]]]:
    """Keys of each step that ranks 0 and 1 hear in a healthy training."""
    recipe = values(tmp_path_factory.mktemp("heard"), tiny_dataset)
    ranks = run_ranks(poisoned_training, 2, recipe, "loss", None)
    assert all(moved and not stayed for rank in ranks for moved, stayed, _, _ in rank)
    return [(a[-1], b[-1]) for a, b in zip(*ranks)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage,what,precision",
    [
        (0, "loss", "fp32"),
        (0, "gradient", "bf16"),
        (2, "gradient", "fp32"),
        (3, "gradient", "bf16"),
        (3, "loss", "fp32"),
    ],
)
def test_a_bad_slot_on_one_rank_moves_nothing_anywhere(stage, what, precision, heard, tmp_path, tiny_dataset):
    bad = heard[1][1][0]
    assert bad not in heard[1][0], "the other rank is healthy in that step"
    expected = [bad not in a + b for a, b in heard]
    recipe = values(tmp_path, tiny_dataset, stage, precision)
    ranks = run_ranks(poisoned_training, 2, recipe, what, [bad])
    for rank in ranks:
        assert [moved for moved, *_ in rank] == expected
        for moved, weights_stayed, moments_stayed, _ in rank:
            assert weights_stayed == moments_stayed == (not moved)
    log = events(tmp_path / "run/folds/session-ses0/acoustic/seed-0")
    skipped = [e for e in log if e["kind"] == "skipped"]
    assert [e["step"] for e in skipped] == [i for i, moved in enumerate(expected) if not moved]
    assert all(bad in e["keys"] for e in skipped)
    assert [e for e in log if e["kind"] == "train"][-1]["skipped"] == len(skipped) >= 1


def stopped_training(recipe_values: dict, keys: list[str], from_step: int) -> str:
    """On a rank: train with every slot bad from a step on; the error."""
    from shards.errors import UserError

    def watch(original):
        def train_step(x, engine, step, slots, factor):
            if step == from_step:
                poison(set(keys), "loss")
            return original(x, engine, step, slots, factor)

        return train_step

    patch("ser.train:train_step", watch)
    try:
        train_one(recipe_values, JOB)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_ten_bad_steps_in_a_row_stop_with_the_keys_and_leave_the_checkpoint(heard, tmp_path, tiny_dataset):
    from ser.checkpoint import committed, read_state, verify

    recipe = values(tmp_path, tiny_dataset, checkpoint_every=3)
    recipe["models"]["acoustic"]["train"] |= {"steps": 30, "checkpoint_every": 3, "keep_checkpoints": 9}
    keys = sorted({key for a, b in heard for key in a + b})
    (message,) = run_ranks(stopped_training, 1, recipe, keys, 4)
    assert "10 steps in a row" in message and "step 13" in message
    assert any(key in message for key in keys) and "optimizer.lr" in message
    folder = tmp_path / "run/folds/session-ses0/acoustic/seed-0"
    assert committed(folder) == [3, 6, 9, 12]
    assert read_state(folder, 12)[0].skipped_in_a_row == 8
    assert all(verify(folder / f"checkpoints/step-{step}") == [] for step in committed(folder))
    assert len([e for e in events(folder) if e["kind"] == "skipped"]) == 10
    assert not (folder / "DONE").exists()


def test_the_schedule_warms_up_and_ends_low():
    from ser.engine import rate

    for schedule in ("cosine", "linear", "constant"):
        factors = [rate(schedule, 0.1, step, 100) for step in range(100)]
        assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
        falls = np.diff(factors[10:])
        assert (falls <= 0).all() and (schedule == "constant" or factors[-1] < 0.02)
    assert rate("cosine", 0.0, 0, 1) == 1.0


def terminal_of(stage: int) -> str:
    """What a training of one step prints, from file descriptors 1 and 2."""
    import sys
    import tempfile

    from ser.distributed import join
    from ser.engine import Engine
    from ser.recipe import TrainConfig

    with tempfile.TemporaryFile() as file:
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        world = join()
        engine = Engine(nn.Linear(3, 2), TrainConfig(steps=1, slots=world.size, zero_stage=stage), world)
        engine.backward(engine.engine(torch.ones(1, 3)).sum())
        engine.micro_step(1.0, last=True)
        engine.weights()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        file.seek(0)
        return file.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_deepspeed_prints_nothing(stage):
    assert run_ranks(partial(terminal_of, stage), 2) == ["", ""]
