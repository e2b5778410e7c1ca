"""`ser gc`: what lies in datasets and run directories and nothing refers to: found, shown, and on request deleted.

Found: stored targets, features, frames and hidden states that no run of their dataset reads; files of targets whose shard
is gone; trainings set aside in `superseded/`, and those of models that the recipe no longer has; checkpoints of finished
trainings; what killed processes left; this machine's cache of remote files.

Guarantees: nothing that a run reads is found: every run that the dataset knows is asked, by its own recipe and its finished
models, and while one of them cannot be asked (it lies on another machine, its recipe cannot be read) nothing of the
dataset's is found. Nothing of a run that works at the moment, and nothing of a dataset that it reads, is deleted: deletion
holds the runs' own locks. A training that another run has taken (`reuse`) stays.
Gives up: runs that the dataset does not know (copied by hand, made before datasets knew their runs): name them.
"""

import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launch.display import Display
from ser import pin
from ser.checkpoint import CONVERTING
from ser.frames import frame_spec
from ser.job import directory, jobs
from ser.layers import layer_spec
from ser.produce import feature_spec, teacher_spec
from ser.recipe import Recipe
from ser.setting import Setting, open_setting
from ser.strict import read_yaml, validate
from shards import cache, manifest
from shards.dataset import Dataset
from shards.errors import UserError
from shards.lock import hold, holder
from shards.store import Store
from shards.target_list import list_targets, remove

BUSY = "a process works in this run directory"


@dataclass(frozen=True)
class Leftover:
    """Something that nothing refers to.

    Attributes:
        what: In a word: targets, superseded, checkpoints, ...
        where: Its path or name.
        bytes: What goes with it.
        why: Nothing refers to it because.
        delete: Removes it.
        runs: Run directories whose locks must be had first.
    """

    what: str
    where: str
    bytes: int
    why: str
    delete: Callable[[], object]
    runs: tuple[Path, ...]


def collect(named: list[str], gone: list[str], delete: bool, display: Display) -> list[Leftover]:
    """Show what may go, and delete it if told to.

    Args:
        named: Run directories and datasets; empty is every run below `runs/` and their datasets, and the cache.
        gone: Directories of registered runs that are no more: nothing is kept for them.
        delete: Delete what is found.
        display: Where it is shown.

    Returns:
        What was found, or with `delete` what was deleted.

    Raises:
        UserError: A name is neither a run nor a dataset.
    """
    runs, datasets = _named(named)
    dead = {Path(path).resolve() for path in gone}
    found = [one for run in runs for one in of_run(run, _linked(runs))]
    for url in datasets:
        leftovers, unsure = of_dataset(url, runs, dead)
        found += leftovers
        for line in unsure:
            display.warn(line)
    if not named:
        found += of_cache()
    done = [one for one in found if not delete or _removed(one, display)]
    for one in done:  # lines, not a table: a path that is cut helps nobody
        display.say(f"{one.what:12} {one.bytes / 1e6:8.1f} MB  {one.where}: {one.why}")
    total = sum(one.bytes for one in done) / 1e6
    if delete:
        display.say(f"deleted: {len(done)}, {total:.1f} MB")
    else:
        display.say(
            f"nothing refers to {len(done)}, {total:.1f} MB" + ("; --delete removes them" if done else "")
        )
    return done


def _named(named: list[str]) -> tuple[list[Path], list[str]]:
    """Run directories and dataset URLs; a run brings its dataset along."""
    runs, datasets = [], []
    for name in named or sorted(str(path.parent) for path in Path("runs").glob("*/recipe.yaml")):
        if (Path(name) / "recipe.yaml").is_file():
            runs.append(Path(name).resolve())
        elif Store(name).exists(manifest.NAME):
            datasets.append(name)
        else:
            raise UserError(
                "neither a run directory nor a dataset",
                where=name,
                hint="ser gc runs/NAME, or ser gc DATASET",
            )
    for run in runs:
        try:
            url = _recipe(run).data.path
        except UserError:
            continue  # said when the dataset's runs are asked
        if Store(url).exists(manifest.NAME):
            datasets.append(url)
    return list(dict.fromkeys(runs)), list(dict.fromkeys(datasets))


def _recipe(run: Path) -> Recipe:
    values = read_yaml(run / "recipe.yaml")
    return validate(Recipe, {**values, "run_dir": str(run)}, where=str(run / "recipe.yaml"))


def _removed(one: Leftover, display: Display) -> bool:
    """Delete it under its runs' locks; what a live run could need is left, and said."""
    with ExitStack() as held:
        for run in one.runs:
            # A fold alone (`ser run --fold`) holds a lock of its own, and may begin any moment.
            folds = {run / f".lock-{path.name}" for path in run.glob("folds/*")} | {*run.glob(".lock-*")}
            try:
                for lock in (run / ".lock", *sorted(folds)):
                    held.enter_context(hold(lock, BUSY, "run ser gc later"))
                _refuse_training(run)
            except UserError as error:
                display.warn(f"left: {one.where}: {error.what} ({error.where})")
                return False
        one.delete()
        return True


def _refuse_training(run: Path) -> None:
    """A training may run alone (torchrun, Ray), without the run's lock."""
    for path in run.glob("folds/*/*/*.lock"):
        if (who := holder(path)) is not None:
            raise UserError(
                "a training works here", where=f"{path}: process {who.get('pid')} on {who.get('host')}"
            )


# -- datasets --------------------------------------------------------------------------------------------------------


def of_dataset(url: str, runs: Iterable[Path], dead: set[Path]) -> tuple[list[Leftover], list[str]]:
    """What no run of a dataset reads of its stored targets and features, and why it is not sure of others."""
    dataset = Dataset.open(url)
    read: set[tuple[str, str]] = set()
    asked, unsure = [], []
    known: dict[Path, str] = {}
    for address, host in pin.registered(dataset.store):
        if "://" not in address:
            known[Path(address).resolve()] = host
        elif Path(address).resolve() not in dead:
            unsure.append(
                f"{url}: its run {address} lies in an object store and is not asked; if it is no more: --gone {address}"
            )
    for run in [*known, *(run for run in runs if run not in known)]:
        if run in dead or (run not in known and not _reads(run, url)):
            continue
        if not (run / "recipe.yaml").is_file():
            if run in known and known[run] == socket.gethostname() and run.parent.is_dir():
                continue  # it was deleted here
            unsure.append(
                f"{url}: its run {run} (of host {known.get(run, '?')}) is not here to be asked; if it is no more: --gone {run}"
            )
            continue
        try:
            read |= referred(_recipe(run))
            asked.append(run)
        except UserError as error:
            unsure.append(
                f"{url}: its run {run} cannot be asked: {error.what}; if it is no more: --gone {run}"
            )
    found = []
    locks = tuple(asked)
    for info in list_targets(dataset):
        name = (info.teacher, info.fingerprint)
        if name not in read and not unsure:
            why = info.stale or f"none of its {len(asked)} runs reads it"
            found.append(
                Leftover("targets", f"{url} {'/'.join(name)}", info.bytes, why, _Remover(url, *name), locks)
            )
        elif info.orphans and name in read:
            size = sum(map(dataset.store.size, info.orphans))
            drop = _Files(dataset.store, info.orphans)
            found.append(
                Leftover(
                    "targets",
                    f"{url} {'/'.join(name)}: {len(info.orphans)} files",
                    size,
                    "their shards are gone",
                    drop,
                    locks,
                )
            )
    return found, unsure


def _reads(run: Path, url: str) -> bool:
    try:
        return Store(_recipe(run).data.path).path("") == Store(url).path("")
    except UserError:
        return False


def referred(recipe: Recipe) -> set[tuple[str, str]]:
    """(teacher, fingerprint) of all that a run stores or reads beside its dataset, as far as its models are there.

    Raises:
        UserError: The dataset or protocol does not fit the recipe any more.
    """
    recipe = recipe.model_copy(
        update={"folds": "all"}
    )  # a call that named one fold forgets none of the others
    setting = open_setting(recipe)
    specs = [feature_spec(setting, name) for name in recipe.features]
    for name, entry in recipe.models.items():
        for fold in _folds_there(setting, name):
            for job in jobs(recipe, fold, name):
                if not (directory(recipe, job) / "model" / "model.json").is_file():
                    continue
                if entry.role == "encoder":
                    specs.append(frame_spec(setting, job))
                    continue
                if not entry.classical:
                    specs.append(teacher_spec(setting, job))
                if entry.layers:
                    specs.append(layer_spec(setting, job))
    return {(spec.teacher, spec.fingerprint) for spec in specs}


def _folds_there(setting: Setting, model: str) -> list[str]:
    """Folds that a model has a directory for: a recipe may name fewer than were trained."""
    return [path.parent.name for path in setting.recipe.directory.glob(f"folds/*/{model}") if path.is_dir()]


@dataclass(frozen=True)
class _Remover:
    url: str
    teacher: str
    fingerprint: str

    def __call__(self) -> None:
        remove(Dataset.open(self.url), self.teacher, self.fingerprint)


@dataclass(frozen=True)
class _Files:
    store: Store
    names: tuple[str, ...]

    def __call__(self) -> None:
        for name in self.names:
            self.store.forget(name)
            self.store.delete(name)


# -- runs --------------------------------------------------------------------------------------------------------------


def of_run(run: Path, linked: set[Path]) -> Iterator[Leftover]:
    """What a run directory holds besides what its recipe asks for.

    Args:
        run: The directory.
        linked: Trainings that other runs have taken.
    """
    try:
        recipe = _recipe(run)
    except UserError:
        return  # what it asks for is not known
    kept = {path for path in linked if run in path.parents}

    def leftover(what: str, path: Path, why: str) -> Iterator[Leftover]:
        if not any(path == one or path in one.parents for one in kept):
            yield Leftover(what, str(path), _size(path), why, _Tree(path), (run,))

    for path in sorted(run.glob("superseded/*/*/*")):
        yield from leftover("superseded", path, "made otherwise than the recipe asks now")
    for path in sorted(run.glob("folds/*/*")):
        if path.is_dir() and path.name not in recipe.models:
            yield from leftover("training", path, f"{path.name} is no model of the recipe")
    for path in sorted(run.glob("folds/*/*/*")):
        if path.is_symlink() or not path.is_dir() or path.parent.name not in recipe.models:
            continue
        if path.name.startswith("."):
            yield from leftover("remains", path, "of a killed call of Ray Train")
        elif (path / "checkpoints").is_dir() and (path / "DONE").is_file():
            yield from leftover("checkpoints", path / "checkpoints", "the training is finished")
        else:
            for work in sorted((path / "checkpoints").glob(CONVERTING + "*")):
                yield from leftover("remains", work, "of a killed conversion")


def _linked(runs: Iterable[Path]) -> set[Path]:
    """Trainings that some run below the same folders has taken from another one, resolved."""
    links = [
        path
        for place in {run.parent for run in runs}
        for path in place.glob("*/folds/*/*/*")
        if path.is_symlink()
    ]
    return {path.resolve() for path in links}


@dataclass(frozen=True)
class _Tree:
    path: Path

    def __call__(self) -> None:
        # First what says that it is whole, so that a half-deleted training is never taken for one.
        for name in ("DONE", "job.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


# -- this machine ------------------------------------------------------------------------------------------------------


def of_cache() -> list[Leftover]:
    """The local copies of remote files: whoever reads one now keeps it, everyone else reads it anew."""
    kept = cache.Cache()
    size = sum(state.st_size for _, state in kept.entries())
    if not size:
        return []
    why = "copies of remote files, made again when read"
    return [Leftover("cache", str(kept.directory), size, why, partial(kept.drop, ""), ())]
