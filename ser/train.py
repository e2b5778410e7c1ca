"""The training loop, for teachers and students, on one process or many.

restore -> for every step: forward and backward over this rank's slots -> agreed step -> log -> evaluate -> save.
Before each slot every random generator is seeded from (seed, step, slot), so a resumed run, or one on another number
of workers, draws the same dropout without any stored generator state.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from ser import checkpoint, hubs
from ser.agreement import check_job
from ser.build import Ingredients, gather_ingredients, keep_begins
from ser.claim import alone, claim
from ser.distributed import World, any_rank, barrier, join, on_main
from ser.engine import Engine, rate
from ser.events import Events
from ser.faults import MOST_SKIPPED_IN_A_ROW, count_faults, given_up
from ser.finish import drop_best, export, finish, save_best
from ser.infer import answer
from ser.job import (
    Job,
    directory,
    finished,
    identity,
    train_config,
)
from ser.recipe import Recipe, TrainConfig
from ser.score import score
from ser.setting import Setting, open_setting
from ser.step import seed_everything, train_step
from ser.stopping import StopFlag, Stopped
from ser.trackers import started
from ser.watchdog import Watchdog
from shards.atomic import raise_where_full
from shards.errors import UserError
from shards.loader import Loader

Report = Callable[[int, int], None]


def train(
    recipe: Recipe,
    job: Job,
    report: Report | None = None,
    patience: float = 0.0,
    stop: StopFlag | None = None,
) -> Path:
    """Train one model on one fold with one seed, or go on where a killed run stopped.

    Args:
        recipe: The resolved recipe.
        job: Which model, fold and seed.
        report: Called with (steps done, steps in all) on the main rank.
        patience: Seconds to wait for another process of this training that may be about to end; else it is refused.
        stop: Asks to save and stop, beside the signals of a main thread.

    Returns:
        The training's directory: events.jsonl, model/, predictions.parquet, DONE.

    Raises:
        UserError: Whatever the user can mend: leaking folds, targets that do not fit, a checkpoint of another layout,
            another process that does this training.
        Stopped: A signal or `stop` asked to stop; a checkpoint was written.
    """
    world = join()
    on_main(lambda: hubs.check(recipe), world)
    setting = open_setting(recipe)
    check_job(setting, job)
    folder = directory(recipe, job)
    if finished(setting, job) and not any(folder.glob("best-*")):
        return folder
    with ExitStack() as held:
        on_main(lambda: held.enter_context(alone(folder, patience)), world)
        try:
            return _train(setting, job, world, report, stop or StopFlag())
        except (UserError, Stopped):
            raise
        except Exception as error:
            raise_where_full(error, folder.parent)
            raise


def _train(setting: Setting, job: Job, world: World, report: Report | None, stop: StopFlag) -> Path:
    recipe = setting.recipe
    folder = directory(recipe, job)
    claim(recipe, job, identity(setting, job), world)
    if finished(setting, job):  # it lay among the superseded, or was killed behind its end
        if world.main:
            drop_best(folder)
        return folder
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
        with stop:
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
    x.objective.memory = state.memory
    if world.main:
        keep_begins(folder, x.plan)
    events = _events(x, folder, state.step - 1) if world.main else None
    if events and (before := checkpoint.last_world(folder)) not in (None, world.size):
        events.write("world", state.step, workers=world.size, before=before)
    total = x.total_steps
    loader = Loader(
        x.dataset, x.plan, x.needs, x.policy, rank=world.rank, world=world.size,
        start_step=state.step, stop_step=total, workers=config.loader_workers,
    )  # fmt: skip
    watchdog = Watchdog(folder / f"stacks-{world.rank}.txt")
    clock, waited, heard, saved = time.perf_counter(), 0.0, 0, time.monotonic()
    checkpoints = checkpoint.Saver(
        folder, engine, config.keep_checkpoints, layout, config.checkpoint_background
    )
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
            state.memory = x.objective.memory
            keys = count_faults(state, slots, result, x, world, events)
            if state.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                watchdog.rest()
                checkpoints.settle()
                raise given_up(engine, state, folder, config, layout, keys)

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
            checkpoints.poll()
            if stopping or (state.step < total and _checkpoint_due(config, state.step, saved, world)):
                saved = time.monotonic()
                watchdog.rest()
                if world.main:
                    keep_begins(folder, x.plan)
                checkpoints.save(state, wait=stopping)
            if stopping:
                raise Stopped(f"stopped at step {state.step} of {total}; run the same command to go on")
        watchdog.rest()
        checkpoints.settle()
        export(x, engine, state, folder, world)
    finally:
        watchdog.close()
        checkpoints.close()
        if events:
            events.close(whole=(folder / "DONE").is_file())


def _events(x: Ingredients, folder: Path, resume_step: int) -> Events:
    return Events(folder, resume_step, x.config.tensorboard, started(x.setting.recipe, x.job, folder))


def evaluate(
    x: Ingredients, engine: Engine, state: checkpoint.State, folder: Path, world: World, events: Events | None
) -> None:
    """Score the dev set, where there is one; keep the weights when they are the best so far."""
    if not len(x.choosing) or x.setting.recipe.models[x.job.model].role == "encoder":
        return
    answers = answer(
        x.model, x.dataset, x.choosing, policy=x.policy, features=x.features,
        slot_seconds=x.config.slot_seconds, world=world,
    )  # fmt: skip
    values = score(answers, x.dev_labels)
    # a loss is better when lower; every other metric when higher
    # (none at all where nothing is chosen by it, or `ser.agreement` would have refused)
    found = values.get("nll" if x.select_metric == "loss" else x.select_metric, math.nan)
    value = -found if x.select_metric == "loss" else found
    if not math.isnan(value) and (state.best is None or value > state.best):
        state.best, state.best_step, state.stale = float(value), state.step, 0
        save_best(engine, folder, state.step, world)
    else:
        state.stale += 1
    if events:
        events.write("dev", state.step - 1, **values, best=state.best)


def _due(step: int, every: int | None, total: int) -> bool:
    return step == total or (every is not None and step % every == 0)


def _checkpoint_due(config: TrainConfig, step: int, saved: float, world: World) -> bool:
    """Whether a checkpoint is due after `step` steps; of the clocks only the main rank's counts."""
    if isinstance(config.checkpoint_every, int):
        return step % config.checkpoint_every == 0
    if config.checkpoint_seconds is None:
        return False
    return any_rank(world.main and time.monotonic() - saved >= config.checkpoint_seconds, world)


def _stale(state: checkpoint.State, config: TrainConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience
