"""The Optuna study of a sweep: where it is stored, whose it is, and by which rules values are proposed and trials pruned.

Guarantees: the study holds everything, so any driver can go on with it and any Optuna tool can open it; one that was made
for another recipe, space or data is refused with what differs; a line that a killed writer left torn in a journal is cut off
before the next one is written. A fresh sampler, seeded by the recipe's seed and the trial's number, proposes each trial: no generator's
state has to survive a kill.
Gives up: SQLite on a network file system, which is refused.
"""

import contextlib
import os
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.pruners import WilcoxonPruner as Wilcoxon
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from ser.job import leaves
from ser.sweep import PRUNERS, SAMPLERS, SweepConfig, grid_of
from shards.errors import UserError

MADE_FOR = "ser"
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
     "beegfs_nodev", "panfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "wekafs", "virtiofs"}
)  # fmt: skip
LOCK_PATIENCE = 2.0  # seconds: the lock is held for the time of one write

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class _Grid(GridSampler):
    """Ends no loop of Optuna's when the grid is through: there is none."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        pass


def sampler(sweep: SweepConfig, number: int) -> BaseSampler:
    """Who proposes trial `number`."""
    kind, seed = sweep.sampler.kind, sweep.sampler.seed
    options = SAMPLERS[kind] | sweep.sampler.options
    if kind == "grid":
        return _Grid(grid_of(sweep.space), seed=seed)
    # Not seed + number: the trials of one seed would be those of the next one, moved on.
    mixed = (seed * 1_000_003 + number * 7919) % 2**32
    if kind == "random":
        return RandomSampler(seed=mixed)
    if kind == "gp":
        return GPSampler(seed=mixed, warn_independent_sampling=False, **options)
    if kind == "cmaes":
        with _installed("cmaes", "the sampler cmaes"):
            return CmaEsSampler(seed=mixed, warn_independent_sampling=False, **options)
    if kind == "nsga2":
        return NSGAIISampler(seed=mixed, **options)
    # Conditional keys form groups that are modelled apart; else they would be drawn one by one.
    return TPESampler(seed=mixed, group=sweep.conditional, **options)


def pruner(sweep: SweepConfig, most: int) -> BasePruner:
    """Who ends trials early; `most` is the number of folds or steps of a whole trial."""
    kind = sweep.pruner.kind
    options = PRUNERS[kind] | sweep.pruner.options
    if kind == "median":
        return MedianPruner(**options)
    if kind == "asha":
        return SuccessiveHalvingPruner(**options)
    if kind == "hyperband":
        return HyperbandPruner(max_resource=most, **options)
    if kind == "wilcoxon":
        return Wilcoxon(**options)
    return NopPruner()


def open_study(
    sweep: SweepConfig, name: str, folder: Path, made_for: dict[str, Any], most: int
) -> optuna.Study:
    """Make the study of a sweep, or go on with it.

    Args:
        name: The study's.
        folder: The sweep's, where the journal lies by default.
        made_for: Everything that decides what its trials are and how they are judged.
        most: Folds or steps of a whole trial.

    Raises:
        UserError: It is another sweep's (naming the fields that differ), or its storage cannot be used.
    """
    storage = open_storage(sweep.storage, folder)
    sampler(sweep, 0)  # what it needs is there
    directions: list[Literal["minimize", "maximize"]] = [one.towards for one in sweep.objectives]
    study = optuna.create_study(
        study_name=name, storage=storage, directions=directions, load_if_exists=True,
        sampler=RandomSampler(seed=0), pruner=pruner(sweep, most),
    )  # fmt: skip
    found = study.user_attrs.get(MADE_FOR)
    where = f"study {name!r} in {_shown(sweep.storage, folder)}"
    if found is None:
        if study.get_trials(deepcopy=False):
            raise UserError(
                "a study of this name is there that `ser sweep` has not made",
                where=where,
                hint="give the recipe another name, or sweep.storage another place",
            )
        study.set_metric_names([one.title for one in sweep.objectives])
        study.set_user_attr(MADE_FOR, made_for)
    elif found != made_for:
        old, new = leaves(found), leaves(made_for)
        fields = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        shown = [f"{f}: {old.get(f, 'not there')} -> {new.get(f, 'not there')}" for f in fields[:6]]
        more = f"\n  and {len(fields) - 6} more" if len(fields) > 6 else ""
        raise UserError(
            "this study was made for another sweep; its trials and new ones could not be compared. What differs:\n  "
            + "\n  ".join(shown)
            + more,
            where=where,
            hint="give this sweep a run of its own (run_dir=FOLDER), or take the change back",
        )
    return study


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """Where a study is stored: a journal in `folder`, a file, or a database.

    Raises:
        UserError: SQLite on a network file system, a variable that is not set, a database that does not answer.
    """
    if storage is not None and storage.startswith("env:"):
        name = storage.removeprefix("env:")
        url = os.environ.get(name)
        if not url:
            raise UserError(
                f"the variable {name} is not set",
                where="sweep.storage",
                hint=f"export {name}=postgresql://USER:PASSWORD@HOST/NAME",
            )
    else:
        url = storage
    if url is None or "://" not in url:
        path = Path(url) if url else folder / "study.journal"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(str(path))
        mend(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    if url.startswith("sqlite"):
        path = url.partition("///")[2].partition("?")[0]
        kind = file_system(Path(path or "."), _mounts())
        if kind in NETWORK or kind.startswith("fuse."):
            raise UserError(
                f"SQLite loses writes on a network file system ({kind}): its locks do not hold there",
                where=f"sweep.storage: {url}",
                hint="leave sweep.storage out (a journal, whose locks hold), or use PostgreSQL or MySQL by env:NAME",
            )
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _installed("psycopg2 or PyMySQL", "this database"):
            return RDBStorage(url)
    except SQLAlchemyError as error:
        raise UserError(
            f"the database cannot be used: {_without_secrets(str(error).splitlines()[0], url)}",
            where=f"sweep.storage: {storage}",
            hint="check host, port, user and password, and that the database exists",
        ) from None


def mend(path: Path) -> None:
    """Cut off the torn last line of a journal whose writer was killed, and remove the lock that it may have left.

    The caller is the only driver. Others hold the lock for the time of one write.
    """
    lock = Path(f"{path}.lock")
    end = time.monotonic() + LOCK_PATIENCE
    while lock.is_symlink() and time.monotonic() < end:
        time.sleep(0.05)
    lock.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)


def file_system(path: Path, mounts: str) -> str:
    """Type of the file system of a path, from the text of /proc/self/mounts; "" where it is not known."""
    at, best, kind = str(path.absolute().resolve()), "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = fields[1].encode().decode("unicode_escape") if len(fields) > 2 else ""
        inside = at == point or at.startswith(point.rstrip("/") + "/")
        if point and inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def _mounts() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/self/mounts").read_text()
    return ""


@contextlib.contextmanager
def _installed(package: str, what: str):
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} needs a package that is not installed ({error})",
            where="sweep",
            hint=f"pip install {package}",
        ) from None


def _shown(storage: str | None, folder: Path) -> str:
    return storage or str(folder / "study.journal")


def _without_secrets(text: str, url: str) -> str:
    password = url.partition("://")[2].partition("@")[0].partition(":")[2]
    return text.replace(password, "***") if password else text
