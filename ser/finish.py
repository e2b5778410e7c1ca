"""The end of a training: which weights are kept, the exported model, and its predictions on dev and test."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from ser import checkpoint
from ser.build import Ingredients
from ser.distributed import World, barrier
from ser.engine import Engine
from ser.frames import encoder_facts
from ser.infer import Answers, answer
from ser.licences import inherited
from ser.models import count_parameters, save
from ser.produce import heard_texts
from ser.taught import metas_of
from shards.transcripts import licence


def save_best(engine: Engine, folder: Path, step: int, world: World) -> None:
    """Write the current weights as `best-<step>.safetensors` (every rank calls, the main one writes)."""
    weights = engine.weights()
    if world.main:
        path = folder / f"best-{step}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, str(temporary))
        checkpoint.fsync(temporary)
        temporary.replace(path)


def export(x: Ingredients, engine: Engine, state: checkpoint.State, folder: Path, world: World) -> None:
    """Write model/, predictions.parquet and DONE from the weights that the protocol chooses."""
    weights = engine.weights()
    chosen = "last"
    if x.setting.protocol.checkpoint != "last" and state.best_step is not None:
        chosen = f"step {state.best_step}"
        if state.best_step != state.step:
            weights = load_file(str(folder / f"best-{state.best_step}.safetensors"))
    x.objective.projectors = None
    training = {"chosen": chosen, "steps": state.step, "dev": state.best, "skipped": state.skipped,
                "quarantined": state.quarantined}  # fmt: skip
    if x.objective.sources:
        training["answers"] = x.plan.drawn(state.step)  # that each teacher gave, stored or asked
    finish(x, weights, folder, world, training)


def finish(
    x: Ingredients, weights: dict[str, torch.Tensor], folder: Path, world: World, training: dict
) -> None:
    """Export `weights` (names of `Trainable`), predict dev and test with them, and mark the training done."""
    model = x.blank
    own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    model.load_state_dict(own)
    meta = describe(x, model, training)
    if world.main:
        save(model, folder / "model", meta)
    model.to(world.device).eval()
    if x.setting.recipe.models[x.job.model].role == "encoder":
        # it answers nothing: what it hears is stored as frames
        if world.main:
            checkpoint.write_json(folder / "DONE", {"model": "model/model.json"})
            drop_best(folder)
        barrier(world)
        return
    tables = []
    for split, rows in (("dev", x.fold.dev), ("test", x.fold.test)):
        answers = answer(
            model, x.dataset, rows, policy=x.policy, features=x.features, slot_seconds=x.setting.recipe.targets.slot_seconds,
            world=world,
        )  # fmt: skip
        tables.append(table_of(answers, split, x.dataset.keys(rows)))
    if world.main:
        write_predictions(folder / "predictions.parquet", pa.concat_tables(tables))
        checkpoint.write_json(folder / "DONE", {"model": "model/model.json"})
        drop_best(folder)
    barrier(world)


def drop_best(folder: Path) -> None:
    """Remove the weights that were best at some time. Only once DONE stands: until then a checkpoint may name them."""
    for path in folder.glob("best-*"):
        path.unlink(missing_ok=True)


def describe(x: Ingredients, model: torch.nn.Module, training: dict) -> dict:
    """What travels with a model: label space, scale, exposure, licences, protocol, sizes."""
    encoders, said = encoder_facts(x.setting, x.job), heard_texts(x.setting, x.job)
    return {
        "name": x.job.model,
        "run": x.setting.recipe.name,
        "fold": x.job.fold,
        "seed": x.job.seed,
        "role": x.setting.recipe.models[x.job.model].role,
        "classes": x.setting.classes,
        "dimensions": "valence, arousal, dominance on [0, 1]",
        "protocol": x.setting.protocol.name,
        "strictness": x.setting.protocol.strictness,
        "exposure": x.exposure.to_json(),
        "licences": x.licences,
        "inherited": inherited(
            [*getattr(model, "hub_names", ()), *said],
            metas_of(x.setting, x.job).values(),
            x.licences,
            {
                **getattr(model, "stated_licences", {}),
                **{source: licence(x.dataset, source) for source in said},
            },
        ),
        "parameters": count_parameters(model),
        "training": training,
        **({"text": said} if said else {}),
        **({"encoders": encoders} if encoders else {}),
    }


def table_of(answers: Answers, split: str, keys: list[str]) -> pa.Table:
    """Predictions as a table: key, split, row, state, logits, dimensions."""
    n = len(answers.rows)

    def lists(values: np.ndarray | None) -> pa.Array:
        if values is None:
            return pa.nulls(n, pa.list_(pa.float32()))
        return pa.array(list(values.astype(np.float32)), pa.list_(pa.float32()))

    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "split": pa.array([split] * n, pa.string()),
            "row": pa.array(answers.rows, pa.int64()),
            "state": pa.array(answers.state, pa.uint8()),
            "logits": lists(answers.logits),
            "dimensions": lists(answers.dimensions),
        }
    )


def write_predictions(path: Path, table: pa.Table) -> None:
    """Write a table whole: temporary name, sync, rename."""
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    checkpoint.fsync(temporary)
    temporary.replace(path)


def read_predictions(path: Path, split: str) -> Answers:
    """Answers of one split from a training's predictions (or those under a condition)."""
    table = pq.read_table(path, filters=[("split", "=", split)])

    def stacked(name: str) -> np.ndarray | None:
        column = table.column(name)
        if len(column) == 0 or column.null_count:
            return None
        return np.stack(column.to_pylist()).astype(np.float32)

    return Answers(
        table.column("row").to_numpy(),
        stacked("logits"),
        stacked("dimensions"),
        None,
        table.column("state").to_numpy(),
        [],
    )


def read_meta(folder: Path) -> dict:
    """A finished training's model.json."""
    return json.loads((folder / "model" / "model.json").read_text())
