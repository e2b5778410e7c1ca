"""Checkpoints: how long a training waits for one, written at once, in the background, and by DeepSpeed's decoupled engine."""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ser import checkpoint
from ser.distributed import join
from ser.engine import Engine
from ser.recipe import TrainConfig

LAYERS, WIDTH = 24, 1024


def net() -> nn.Module:
    """25 M parameters; weights and two moments take 0.3 GB."""
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])


def step(engine: Any, rows: int) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    engine.backward(engine.engine(torch.randn(rows, WIDTH)).square().mean())
    engine.micro_step(1.0, last=True)
    return time.perf_counter() - began


def ours(folder: Path, stage: int, rows: int, repeats: int) -> dict[str, float]:
    """Best seconds of a step, of a checkpoint at once, of the wait for one in the background, and of the step beside it."""
    world = join()
    engine = Engine(net(), TrainConfig(steps=1, slots=1, zero_stage=stage), world)
    state = checkpoint.State()
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    for _ in range(repeats):
        for background in (False, True):
            note("a step", step(engine, rows))
            saver = checkpoint.Saver(folder, engine, 1, {}, background)
            state.step += 1
            began = time.perf_counter()
            saver.save(state)
            note(
                "waiting for a copy (background)" if background else "waiting for the disk",
                time.perf_counter() - began,
            )
            if background:
                note("the step beside the writer", step(engine, rows))
                saver.settle()
    return {name: min(seconds) for name, seconds in found.items()}


def decoupled(folder: Path, stage: int, rows: int, repeats: int) -> dict[str, float]:
    """The same of DeepSpeed's own engine, which waits inside the next step; what reads it again is printed."""
    import deepspeed

    os.environ |= {"CROSS_SIZE": "1", "CROSS_RANK": "0"}  # else KeyError: only its own launcher sets them
    model = net()
    writer = {"type": "python", "decoupled": True, "data_parallel": "replica"}
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters()),
        config={
            "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}, "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True, "checkpoint": {"writer": writer},
        },
    )  # fmt: skip
    saves, steps = [], []
    for number in range(repeats):
        for where in (None, saves):
            began = time.perf_counter()
            if where is not None:
                engine.save_checkpoint(str(folder), tag=f"d{number}", save_latest=False)
                where.append(time.perf_counter() - began)
            began = time.perf_counter()
            engine.backward(engine(torch.randn(rows, WIDTH)).square().mean())
            engine.step()
            if where is not None:
                steps.append(time.perf_counter() - began)
    try:
        engine.load_checkpoint(str(folder), tag=f"d{repeats - 1}")
        print("decoupled: read again")
    except Exception as error:
        print(f"decoupled: cannot be read again: {str(error).splitlines()[0][:200]}")
    return {"decoupled: saving": min(saves), "decoupled: the next step": min(steps)}


def main() -> None:
    """Print seconds and shares of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        times = ours(Path(name), given.stage, given.rows, given.repeats)
        try:
            times |= decoupled(Path(name), given.stage, given.rows, given.repeats)
        except Exception as error:
            print(f"decoupled: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        for writer in multiprocessing.active_children():  # DeepSpeed's, which nobody ends after a failure
            writer.kill()
    print(
        f"checkpoints of {LAYERS * WIDTH * (WIDTH + 1) / 1e6:.0f} M parameters, ZeRO {given.stage}, one process"
    )
    for title, seconds in times.items():
        print(f"  {title:40} {seconds:8.2f} s {seconds / times['a step']:8.0%} of a step")


if __name__ == "__main__":
    main()
