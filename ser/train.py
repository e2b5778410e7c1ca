"""The training loop, for teachers and students, on one process or many.

restore -> for every step: forward and backward over this rank's slots -> agreed step -> log -> evaluate -> save.
Before each slot every random generator is seeded from (seed, step, slot), so a resumed run, or one on another number
of workers, draws the same dropout without any stored generator state.
"""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ser import checkpoint
from ser.build import Ingredients, gather_ingredients
from ser.distributed import World, any_rank, barrier, gather_objects, join, sum_ranks
from ser.engine import Engine, rate
from ser.events import Events
from ser.exposure import some
from ser.finish import export, finish, save_best
from ser.infer import answer
from ser.inputs import complete
from ser.job import Job, digest, directory, finished, identity, read_identity, train_config, write_identity
from ser.recipe import Recipe, TrainConfig
from ser.score import score
from ser.setting import open_setting
from ser.stopping import StopFlag, Stopped
from ser.watchdog import Watchdog
from shards.errors import UserError
from shards.law import mix64
from shards.loader import Batch, Loader

Report = Callable[[int, int], None]
MOST_SKIPPED_IN_A_ROW = 10


def train(recipe: Recipe, job: Job, report: Report | None = None) -> Path:
    """Train one model on one fold with one seed, or go on where a killed run stopped.

    Args:
        recipe: The resolved recipe.
        job: Which model, fold and seed.
        report: Called with (steps done, steps in all) on the main rank.

    Returns:
        The training's directory: events.jsonl, model/, predictions.parquet, DONE.

    Raises:
        UserError: Whatever the user can mend: leaking folds, targets that do not fit, a checkpoint of another layout.
        Stopped: A signal asked to stop; a checkpoint was written.
    """
    world = join()
    setting = open_setting(recipe)
    folder = directory(recipe, job)
    if finished(setting, job):
        return folder
    _claim(folder, identity(setting, job), world)
    torch.set_num_threads(train_config(recipe, job).threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    seed_everything(job.seed, -1, 0)
    ingredients = gather_ingredients(setting, job, world)
    if recipe.models[job.model].classical:
        from ser import classical

        classical.fit(ingredients, folder, world)
    elif recipe.models[job.model].train is None:
        finish(ingredients, ingredients.trainable.state_dict(), folder, world, {"chosen": "assembled"})
    else:
        with StopFlag() as stop:
            fit(ingredients, folder, world, stop, report)
    barrier(world)
    return folder


def fit(x: Ingredients, folder: Path, world: World, stop: StopFlag, report: Report | None) -> None:
    """The loop itself; writes checkpoints, events and, at the end, the exported model and its predictions."""
    config = x.config
    checkpoint.drop_uncommitted(folder, world)
    engine = Engine(x.trainable, config, world, x.encoder_parameters)
    layout = {
        "world": world.size,
        "zero_stage": config.zero_stage,
        "precision": config.precision,
        "slots": config.slots,
    }
    state = checkpoint.restore(folder, engine, layout)
    events = Events(folder, state.step - 1, config.tensorboard) if world.main else None
    total = x.total_steps
    loader = Loader(
        x.dataset, x.plan, x.needs, x.policy, rank=world.rank, world=world.size,
        start_step=state.step, stop_step=total, workers=config.loader_workers,
    )  # fmt: skip
    watchdog = Watchdog(folder / f"stacks-{world.rank}.txt")
    clock, waited, heard = time.perf_counter(), 0.0, 0
    try:
        batches = iter(loader)
        while state.step < total and not _stale(state, config):
            before = time.perf_counter()
            step, slots = next(batches)
            waited += time.perf_counter() - before
            assert step == state.step, "the loader and the loop agree on the step"

            # one optimizer step over all slots of the plan
            with watchdog:
                factor = rate(config.schedule, config.warmup, step, total)
                result = train_step(x, engine, step, slots, factor)
            heard += sum(len(batch) for batch in slots)
            state.step += 1
            _count_faults(state, slots, result, x, world, events)

            if state.step % config.log_every == 0 or state.step == total:
                values = result.values(world)
                seconds = time.perf_counter() - clock
                if events:
                    events.write(
                        "train", step, loss=sum(x.weights[name] * value for name, value in values.items()), **values,
                        lr=config.optimizer.lr * factor, gradient_norm=engine.gradient_norm(), skipped=state.skipped,
                        utterances_per_second=heard * world.size / seconds, wait_share=waited / seconds,
                    )  # fmt: skip
                clock, waited, heard = time.perf_counter(), 0.0, 0
            if report and world.main:
                report(state.step, total)

            if _due(state.step, config.evaluate_every, total):
                watchdog.rest()
                evaluate(x, engine, state, folder, world, events)
            stopping = any_rank(stop.requested, world)
            if stopping or (
                config.checkpoint_every and state.step % config.checkpoint_every == 0 and state.step < total
            ):
                watchdog.rest()
                checkpoint.save(folder, engine, state, config.keep_checkpoints, layout)
            if stopping:
                raise Stopped(f"stopped at step {state.step} of {total}; run the same command to go on")
        watchdog.rest()
        export(x, engine, state, folder, world)
    finally:
        watchdog.close()
        if events:
            events.close()


@dataclass
class StepResult:
    """What one global step gave on this rank.

    Attributes:
        moved: False when the step was skipped.
        bad: Keys of this rank's slots whose loss or gradient was not finite.
        shares: This rank's share of each row-wise term; the sum over ranks is the term's value.
        whole: Terms over the whole step (CCC), equal on every rank.
    """

    moved: bool
    bad: list[str]
    shares: dict[str, torch.Tensor]
    whole: dict[str, torch.Tensor]

    def values(self, world: World) -> dict[str, float]:
        """Value of every term over the global step (every rank calls)."""
        total: dict[str, float] = {}
        for rank in gather_objects({name: float(value) for name, value in self.shares.items()}, world):
            for name, value in rank.items():
                total[name] = total.get(name, 0.0) + value
        return total | {name: float(value) for name, value in self.whole.items()}


def train_step(x: Ingredients, engine: Engine, step: int, slots: list[Batch], factor: float) -> StepResult:
    """Forward and backward over this rank's slots of one global step, then the agreed update.

    CCC needs the moments of the whole step before any slot can be back-propagated: with one slot a rank the moments
    of the kept forward are reduced; with more, a pass without gradients under the same seeds goes first.
    """
    objective, world = x.objective, engine.world
    totals = objective.totals(x.plan.step(step))
    scale = world.size * engine.accumulation
    numbers = range(world.rank, x.config.slots, world.size)
    ready = [complete(batch.to(world.device), x.model) for batch in slots]
    moments: dict[str, torch.Tensor] = {}
    if objective.step_ccc and len(ready) > 1:
        with torch.no_grad():
            for slot, batch in zip(numbers, ready):
                seed_everything(x.seed, step, slot)
                _add_moments(moments, objective, engine.engine(batch), batch)
        moments = {name: sum_ranks(value, world) for name, value in moments.items()}

    shares: dict[str, torch.Tensor] = {}
    moved = True
    for i, (slot, batch) in enumerate(zip(numbers, ready)):
        seed_everything(x.seed, step, slot)
        output = engine.engine(batch)
        if objective.step_ccc and len(ready) == 1:
            _add_moments(moments, objective, output, batch)
            moments = {name: sum_ranks(value, world) for name, value in moments.items()}
        loss, parts = objective.slot_loss(output, batch, totals, scale, moments)
        for name, value in parts.items():
            shares[name] = shares[name] + value if name in shares else value
        engine.backward(loss)
        moved = engine.micro_step(factor, last=i == len(ready) - 1)
    bad = [] if moved else [key for i in engine.bad_slots for key in slots[i].keys]
    return StepResult(moved, bad, shares, objective.ccc_value(moments))


def _add_moments(moments: dict, objective, output, batch: Batch) -> None:
    value = objective.moments(output, batch)
    for name in objective.step_ccc:
        moments[name] = moments.get(name, 0.0) + value


def evaluate(
    x: Ingredients, engine: Engine, state: checkpoint.State, folder: Path, world: World, events: Events | None
) -> None:
    """Score the dev set; keep the weights when they are the best so far."""
    answers = answer(
        x.model, x.dataset, x.fold.dev, policy=x.policy, features=x.features,
        slot_seconds=x.config.slot_seconds, world=world,
    )  # fmt: skip
    values = score(answers, x.dev_labels)
    # a loss is better when lower; every other metric when higher
    value = -values["nll"] if x.select_metric == "loss" else values[x.select_metric]
    if state.best is None or value > state.best:
        state.best, state.best_step, state.stale = float(value), state.step, 0
        save_best(engine, folder, state.step, world)
    else:
        state.stale += 1
    if events:
        events.write("dev", state.step - 1, **values, best=state.best)


def seed_everything(seed: int, step: int, slot: int) -> None:
    """Seed python, numpy and torch from (seed, step, slot), so that no generator state is ever stored."""
    words = np.array([seed, step + 1, slot], dtype=np.uint64)
    value = int(mix64(mix64(mix64(words[:1]) + words[1:2]) + words[2:])[0])
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.manual_seed(value & 0x7FFFFFFFFFFFFFFF)


def _due(step: int, every: int | None, total: int) -> bool:
    return step == total or (every is not None and step % every == 0)


def _stale(state: checkpoint.State, config: TrainConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience


def _count_faults(
    state: checkpoint.State,
    slots: list[Batch],
    result: StepResult,
    x: Ingredients,
    world: World,
    events: Events | None,
) -> None:
    """Count skipped steps and unreadable utterances; too many of either end the run with the keys."""
    keys: list[str] = []
    if not result.moved:
        state.skipped += 1
        state.skipped_in_a_row += 1
        keys = [key for rank in gather_objects(result.bad, world) for key in rank]
        if events:
            events.write("skipped", state.step - 1, keys=keys, in_a_row=state.skipped_in_a_row)
    else:
        state.skipped_in_a_row = 0
    fresh = {key: reason for batch in slots for key, reason in batch.quarantined}
    if any_rank(bool(fresh), world):
        for rank in gather_objects(fresh, world):
            state.quarantined.update(rank)
        if len(state.quarantined) > max(3, x.config.max_quarantined * len(x.rows)):
            raise UserError(
                f"{len(state.quarantined)} of {len(x.rows)} training utterances could not be read, for example "
                + "; ".join(f"{key}: {reason}" for key, reason in list(state.quarantined.items())[:3]),
                where=x.dataset.url,
                hint=f"ser verify {x.dataset.url}",
            )
    if state.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
        raise UserError(
            f"{state.skipped_in_a_row} steps in a row had a non-finite loss or gradient; the last good checkpoint stays",
            where=f"step {state.step - 1}, utterances {some(keys, 20)}",
            hint="lower train.optimizer.lr, raise train.warmup, or look at these utterances",
        )


def _claim(folder: Path, wanted: dict, world: World) -> None:
    """Make the directory this training's; what another recipe left there goes."""
    if world.main:
        if read_identity(folder) != wanted:
            # First what says whose it is, so that a half-deleted training is never taken for a whole one.
            (folder / "job.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        write_identity(folder, wanted)
    barrier(world)
    assert read_identity(folder) is None or digest(read_identity(folder)) == digest(wanted)
