"""One training on several workers: Ray Train (TorchTrainer) around `ser.train`, DeepSpeed inside.

The run directory is the truth: on a restart after a lost worker the loop reads its own committed checkpoint there.
Ray gets a number to show, never a copy of the checkpoint. A user's mistake is not a lost worker: it is written down and
ends the training instead of being tried again.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ser.checkpoint import write_json
from ser.job import Job, directory, train_config
from ser.recipe import Recipe
from shards.atomic import raise_where_full
from shards.errors import UserError


def train_many(recipe: Recipe, job: Job, *, max_failures: int = 3) -> Path:
    """Train one job on `train.workers` Ray Train workers.

    Args:
        recipe: The resolved recipe.
        job: Which training.
        max_failures: Lost workers survived before giving up.

    Returns:
        The training's directory.

    Raises:
        UserError: As the training raised it.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    config, folder = train_config(recipe, job), directory(recipe, job).resolve()
    storage = forget(recipe, job)  # of a killed call
    storage.mkdir(parents=True)
    gpu = recipe.cluster.gpus_per_task > 0
    trainer = TorchTrainer(
        _loop,
        train_loop_config={
            "recipe": recipe.model_dump_json(),
            "job": job,
            "cwd": os.getcwd(),
            "storage": str(storage),
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=gpu,
            resources_per_worker={
                "CPU": recipe.cluster.cpus_per_task,
                **({"GPU": recipe.cluster.gpus_per_task} if gpu else {}),
            },
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        if not _refusals(storage):
            raise_where_full(error, storage)  # then no worker could write down why
            raise
        if not isinstance(error, TrainingFailedError):
            raise
    for refusal in _refusals(storage):
        raise UserError(**json.loads(refusal.read_text()))
    shutil.rmtree(storage, ignore_errors=True)
    return folder


def forget(recipe: Recipe, job: Job) -> Path:
    """Remove what Ray keeps beside a training's directory, and tell where that is.

    A driver that is killed when its workers are done leaves it, and the training is never started again.
    """
    folder = directory(recipe, job).resolve()
    storage = folder.parent / f".{folder.name}-ray"
    shutil.rmtree(storage, ignore_errors=True)
    return storage


def _loop(config: dict[str, Any]) -> None:
    """What every worker runs; Ray Train has set RANK, WORLD_SIZE and the process group."""
    import ray.train

    from cluster.session import PATIENCE
    from ser.train import train

    storage = Path(config["storage"])
    if _refusals(storage):
        return
    os.chdir(config["cwd"])
    context = ray.train.get_context()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    recipe = Recipe.model_validate_json(config["recipe"])
    try:
        train(recipe, config["job"], patience=PATIENCE)
    except UserError as error:
        # Raised all the same: the other workers may wait in a collective. The restart that follows finds the file.
        mine = storage / f"refusal-{context.get_world_rank()}.json"
        with contextlib.suppress(OSError):  # on a full disk
            write_json(mine, {"what": error.what, "where": error.where, "hint": error.hint})
        raise
    ray.train.report({"rank": context.get_world_rank()})


def _refusals(storage: Path) -> list[Path]:
    """Mistakes that workers wrote down."""
    return sorted(storage.glob("refusal-*.json"))
