"""Whose directory a training's directory is: one process at a time, one identity; what is finished is never deleted."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from ser.distributed import World, barrier
from ser.job import Job, digest, directory, read_identity, superseded, write_identity
from ser.recipe import Recipe
from shards.lock import hold


def alone(folder: Path, patience: float) -> AbstractContextManager[None]:
    """The context in which no other process trains in `folder`; beside it, because the folder may be replaced."""
    return hold(
        folder.with_name(folder.name + ".lock"),
        "another process does this training",
        "train in another run directory (run_dir=FOLDER)",
        patience,
    )


def claim(recipe: Recipe, job: Job, wanted: dict, world: World) -> None:
    """Make the directory this training's.

    A finished training of another identity is set aside below `superseded/`, and comes back when it is asked for again;
    a half-done one goes.
    """
    folder = directory(recipe, job)
    if world.main:
        found = read_identity(folder)
        if found != wanted:
            if (folder / "DONE").is_file():
                aside = superseded(recipe, job, found)
                aside.parent.mkdir(parents=True, exist_ok=True)
                while aside.exists():  # the same training twice, for instance copied in by hand
                    aside = aside.with_name(aside.name + "-again")
                folder.rename(aside)
            # First what says whose it is, so that a half-deleted training is never taken for a whole one.
            (folder / "job.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            kept = superseded(recipe, job, wanted)
            if (kept / "DONE").is_file() and read_identity(kept) == wanted:
                folder.parent.mkdir(parents=True, exist_ok=True)
                kept.rename(folder)
        write_identity(folder, wanted)
    barrier(world)
    assert read_identity(folder) is None or digest(read_identity(folder)) == digest(wanted)
