"""Finished trainings of other runs: taken as they lie there, where they are the very ones that a recipe asks for.

Guarantees: equal identity or nothing (`ser.job.identity` holds data, labels, settings and every teacher below), so what is
taken is what would have been trained; the other run's files are never changed. A link to a training that has gone is
removed and the training is done here.
Gives up: what is taken stays in the other run's folder and goes with it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ser.job import Job, directory, identity, read_identity
from ser.setting import Setting
from shards.errors import UserError


def adopt(setting: Setting, job: Job, runs: Sequence[str]) -> bool:
    """Link a finished training from the first of `runs` that has it into this run; False where none has."""
    folder = directory(setting.recipe, job)
    if folder.is_symlink() and not folder.exists():
        folder.unlink()
    if not runs or folder.exists():  # begun here: go on
        return False
    wanted = identity(setting, job)
    for run in runs:
        if "://" in run:
            raise UserError(
                "finished trainings are taken from folders",
                where=f"reuse: {run}",
                hint="copy that run to a folder first",
            )
        theirs = Path(run) / folder.relative_to(setting.recipe.directory)
        if (theirs / "DONE").is_file() and read_identity(theirs) == wanted:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # one step, so that a kill leaves all or nothing; the target is spelled so that the runs may move together
            temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(os.path.relpath(theirs.resolve(), folder.parent.resolve()))
            temporary.replace(folder)
            return True
    return False
