"""Submitting a run: render what the target wants, show it or send it, and ask for it again by the run's name.

Guarantees: the job runs the recipe as it was when it was submitted; the same run submitted again goes on where it stopped; a run
that is queued or running is refused with its id, on whatever target it is; a submitter that is killed leaves either no job
or one that the next submission finds.
"""

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import yaml

from launch import profile as profiles
from launch import record as records
from launch.fold import names as fold_names
from launch.profile import Profile
from launch.record import Job, Live, Record
from ser import hubs
from ser.recipe import Recipe, refuse_remote
from ser.space import sweep_of
from shards import atomic
from shards.errors import UserError
from shards.lock import hold


def target(name: str) -> ModuleType:
    """The module that knows a target: render, apply, find, status, logs, cancel."""
    return importlib.import_module(f"launch.to_{name}")


def make_job(
    recipe: Recipe,
    profile: Profile,
    until: str,
    folds: bool = False,
    only: str | None = None,
    sweep: bool = False,
) -> Job:
    """What a recipe asks of a target.

    Args:
        recipe: The resolved recipe.
        profile: Of the site, with its target.
        until: Last stage, as in `ser run`.
        folds: A job a fold, where the target has arrays of jobs.
        only: "MODEL FOLD SEED" of one training, where it is started without Ray.
        sweep: The recipe's sweep instead of its run.

    Raises:
        UserError: Arrays or a training alone where there are none, or with a sweep; a sweep that the recipe does not have;
            or what the job would refuse itself, once it holds its machines.
    """
    folder, run = profile.folder or os.getcwd(), _run(recipe, profile)
    here = profile.to in ("local", "slurm")  # the same folders as on this machine
    if profile.to != "slurm" and (folds or only):
        raise UserError(
            f"{'--folds' if folds else '--training'} is for --to slurm, not {profile.to}",
            hint="leave it out: one job does all folds",
        )
    if folds and only:
        raise UserError("--folds and --training do not go together", hint="one of them")
    if only and profile.slurm.start != "srun":
        raise UserError(
            "a training alone is started by srun",
            where="slurm.start",
            hint="set slurm.start: srun in the profile",
        )
    if sweep:
        _refuse_parts(recipe, until, folds, only)
    if folds or only:
        what = (
            "single folds share a run directory"
            if folds
            else "a training by itself copies nothing to an object store"
        )
        refuse_remote(recipe, what)
    if recipe.is_remote and profile.nodes > 1 and not profile.environment.get("SER_SCRATCH"):
        raise UserError(
            f"{profile.nodes} machines work on this run in one folder, of which nobody says that they share it",
            where=f"run_dir={recipe.run_dir}",
            hint="environment: {SER_SCRATCH: FOLDER} in the profile, a folder that all of them have; or nodes: 1",
        )
    if profile.offline:
        hubs.refuse_unpinned(recipe, "the job runs with HF_HUB_OFFLINE=1")
    arguments = ("sweep", "{recipe}") if sweep else ("run", "{recipe}", "--until", until)
    if profile.to not in ("local",):
        # its own cluster, with a token of its own, whichever the recipe names
        arguments += ("cluster.address=auto", "cluster.token_file=null")
    training = _training(recipe, only) if only else None
    return Job(
        name=records.job_name(recipe.name, recipe.address if recipe.is_remote else run), run=run, number=records.next_number(run), folder=folder,
        python=profile.python or (sys.executable if here else "python"), arguments=arguments,
        there=recipe.address if recipe.is_remote else str(run) if here else f"{PurePosixPath(folder) / recipe.directory}",
        folds=fold_names(recipe) if folds else (),
        training=training,
    )  # fmt: skip


def _refuse_parts(recipe: Recipe, until: str, folds: bool, only: str | None) -> None:
    """Refuse a sweep that is none, and options that are a run's."""
    sweep_of(recipe)
    given = {"--folds": folds, "--training": only, "--until": until != "report"}
    if others := [name for name, value in given.items() if value]:
        raise UserError(
            f"--sweep and {', '.join(others)} do not go together",
            hint="a sweep is one job, to its end; sweep.folds says which folds its trials run",
        )


def _run(recipe: Recipe, profile: Profile | None) -> Path:
    """The run directory as this machine sees it: below the profile's folder where that is here."""
    base = Path(profile.folder) if profile is not None and profile.folder else Path.cwd()
    return ((base if base.is_dir() else Path.cwd()) / recipe.records).absolute()


def _training(recipe: Recipe, text: str) -> tuple[str, str, str]:
    parts = text.split()
    if len(parts) != 3 or parts[0] not in recipe.models or not parts[2].isdigit():
        raise UserError(
            f"--training {text!r} is not 'MODEL FOLD SEED'", hint=f"models: {', '.join(recipe.models)}"
        )
    return parts[0], parts[1], parts[2]


def submit(recipe: Recipe, profile: Profile, job: Job) -> Record:
    """Send a job, unless the run is under way.

    Raises:
        UserError: The run is queued or running, or the target refuses.
    """
    where = target(str(profile.to))
    with ExitStack() as held:
        other = "wait for it"
        held.enter_context(hold(job.run / ".submit.lock", "this run is just being submitted", other))
        _refuse_live(job, profile, where)
        with hold(job.run / job.lock, "a process works in this run directory", other):
            pass
        job = replace(job, number=records.next_number(job.run))
        job.home.mkdir(parents=True)
        atomic.write(job.recipe, yaml.safe_dump(recipe.dump(), sort_keys=False))
        try:
            ids = where.apply(job, where.render(job, profile), profile)
        except BaseException:
            _forget(job)
            raise
        record = records.new(job, str(profile.to), ids, _kept(profile))
        records.write(record)
    return record


def _kept(profile: Profile) -> dict[str, Any]:
    return profile.model_dump(mode="json", exclude_defaults=True)


def _forget(job: Job) -> None:
    """Leave nothing of a job that its target did not take."""
    shutil.rmtree(job.home)
    with contextlib.suppress(OSError):  # others are there
        job.home.parent.rmdir()


def _refuse_live(job: Job, profile: Profile, where: ModuleType) -> None:
    """Ask the target of the run's last submission for it, and this one's target for jobs of its name."""
    live, on = [], str(profile.to)
    last = records.read(job.run)
    if last is not None:
        found = look(last)
        if found.phase in ("queued", "running"):
            live, on = last.ids, last.target
        elif found.phase == "unknown" and not last.cancelled:
            raise UserError(
                f"it was last submitted to {last.target}, which cannot be asked now: {found.detail}",
                where=str(job.run / records.NAME),
                hint=f"ask again later; or, if you know that it is over, remove {job.run / records.NAME}",
            )
    if not live and (live := where.find(job, profile)):
        # of a submitter that was killed before it wrote the record, without which no verb would reach them
        number = max(1, records.next_number(job.run) - 1)
        records.write(records.new(replace(job, number=number), on, live, _kept(profile)))
    if live:
        raise UserError(
            f"this run is submitted already: {on} {', '.join(live)}",
            where=str(job.run),
            hint=f"ser status {job.run}; ser cancel {job.run}; or give this one a directory of its own (run_dir=FOLDER)",
        )


def look(record: Record) -> Live:
    """What its target says of a submission; "unknown" where it cannot be asked."""
    try:
        return target(record.target).status(record)
    except UserError as error:
        return Live("unknown", error.what)


def find(name: str, variant: str | None = None, profile: Profile | None = None) -> Record:
    """The submission of a run: its directory, its name below runs/, or its recipe (and profile, if that has a folder).

    Raises:
        UserError: There is none.
    """
    for run in (Path(name), Path("runs") / name):
        record = records.read(run)
        if record is not None:
            return record
    if Path(name).is_dir():
        raise UserError(
            "this run was never submitted", where=str(Path(name)), hint="ser submit RECIPE --to TARGET"
        )
    from ser.recipe import load

    recipe = load(name, (), variant)
    record = records.read(_run(recipe, profile))
    if record is None:
        raise UserError(
            "this run was never submitted",
            where=str(_run(recipe, profile)),
            hint=f"ser submit {name} --to {' | '.join(profiles.TARGETS)}; or name its directory, or the --profile it was submitted with",
        )
    return record


def logs(record: Record, follow: bool) -> Iterator[str]:
    """What a submission printed, in pieces."""
    return target(record.target).logs(record, follow)


def cancel(record: Record) -> None:
    """End a submission; what it has committed stays.

    Raises:
        UserError: Its target cannot be asked; then it is not cancelled.
    """
    records.write(replace(record, cancelled=True))  # first, so that nobody takes its end for a failure
    try:
        target(record.target).cancel(record)
    except BaseException:
        records.write(record)
        raise
