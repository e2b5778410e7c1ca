"""What goes wrong while training and is borne up to a limit: skipped steps, unreadable utterances."""

from dataclasses import replace
from pathlib import Path

from ser import checkpoint
from ser.build import Ingredients
from ser.distributed import World, any_rank, gather_objects, on_main
from ser.engine import Engine
from ser.events import Events
from ser.exposure import some
from ser.recipe import TrainConfig
from ser.step import StepResult
from shards.errors import UserError
from shards.loader import Batch

MOST_SKIPPED_IN_A_ROW = 10


def count_faults(
    state: checkpoint.State,
    slots: list[Batch],
    result: StepResult,
    x: Ingredients,
    world: World,
    events: Events | None,
) -> list[str]:
    """Count skipped steps and unreadable utterances; returns the keys of a skipped step. Too many unreadable end the run."""
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
    return keys


def given_up(
    engine: Engine, state: checkpoint.State, folder: Path, config: TrainConfig, layout: dict, keys: list[str]
) -> UserError:
    """The error after too many skipped steps in a row, with the weights before them kept (every rank calls).

    A skipped step moves neither weights nor moments, so what the engine holds now is what it held before the first.
    """
    lost = state.skipped_in_a_row
    good = replace(state, step=state.step - lost, skipped=state.skipped - lost, skipped_in_a_row=0)
    steps = on_main(lambda: checkpoint.committed(folder), engine.world)
    if steps and steps[-1] >= good.step:
        kept = folder / "checkpoints" / f"step-{steps[-1]}"
    else:
        kept = checkpoint.save(folder, engine, good, config.keep_checkpoints, layout)
    return UserError(
        f"{lost} steps in a row had a non-finite loss or gradient; the weights before them stay in {kept}",
        where=f"step {state.step - 1}, utterances {some(keys, 20)}",
        hint="lower models.NAME.train.optimizer.lr, raise models.NAME.train.warmup, or look at these utterances",
    )
