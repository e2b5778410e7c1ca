"""One training on several workers: Ray Train (TorchTrainer) around `ser.train`, DeepSpeed inside.

The run directory is the truth: on a restart after a lost worker the loop reads its own committed checkpoint there.
Ray gets a number to show, never a copy of the checkpoint.
"""

import os
from pathlib import Path
from typing import Any

from ser.job import Job, directory, train_config
from ser.recipe import Recipe
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
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config, folder = train_config(recipe, job), directory(recipe, job).resolve()
    gpu = recipe.cluster.gpus_per_task > 0
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"recipe": recipe.model_dump_json(), "job": job, "cwd": os.getcwd()},
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
            storage_path=str(folder.parent / f".{folder.name}-ray"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        found = _user_error(error)
        raise (found if found is not None else error) from None
    return folder


def _loop(config: dict[str, Any]) -> None:
    """What every worker runs; Ray Train has set RANK, WORLD_SIZE and the process group."""
    import ray.train

    from ser.train import train

    os.chdir(config["cwd"])
    context = ray.train.get_context()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    recipe = Recipe.model_validate_json(config["recipe"])
    train(recipe, config["job"])
    ray.train.report({"rank": context.get_world_rank()})


def _user_error(error: BaseException) -> UserError | None:
    """The UserError inside a failed run, if a worker raised one."""
    failures = getattr(error, "worker_failures", {}) or {}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None
