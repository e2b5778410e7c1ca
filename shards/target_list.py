"""Keeping house in targets/: what lies there, what nothing reads any more, what is damaged, and what erasure carries over.

Guarantees: nothing here trusts a file's name alone: a file counts only where its own metadata and its shard's sha256 fit.
One damaged file does not hide the others.
Gives up: everything is found by listing the folder, which for 10^5 files of an object store takes a minute.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from shards.dataset import Dataset
from shards.errors import UserError
from shards.store import Store
from shards.target_file import DELETE, PRESENT, encode, open_file, read_spec
from shards.target_spec import TargetSpec


@dataclass(frozen=True)
class TargetsInfo:
    """What lies in one folder of targets.

    Attributes:
        teacher, fingerprint: Where: targets/<teacher>/<fingerprint>.
        bytes: Of all its files.
        present: Folder ("v003", "any") -> rows in state PRESENT that this dataset can use.
        orphans: Files that this dataset never reads: their shard is gone or was replaced, or nothing describes them.
        damaged: Files that cannot be read.
        twins: Other fingerprints of the same teacher with the same exposure: of these one is wanted, as a rule, and
            the others were made by an older training, on other views or with other options.
        stale: Why nothing reads this folder any more; "" where something may.
    """

    teacher: str
    fingerprint: str
    bytes: int
    present: Mapping[str, int]
    orphans: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()
    stale: str = ""


def folders_of(store: Store) -> dict[tuple[str, str], list[str]]:
    """The files of each (teacher, fingerprint) under targets/."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in store.list("targets"):
        parts = name.split("/")
        if len(parts) >= 4:
            found.setdefault((parts[1], parts[2]), []).append(name)
    return found


def list_targets(dataset: Dataset) -> list[TargetsInfo]:
    """Everything under targets/, teacher by teacher."""
    store, folders = dataset.store, folders_of(dataset.store)
    specs = {place: _spec(store, place, names) for place, names in folders.items()}
    shas = {PurePosixPath(info.url).stem: info for info in dataset.shards}
    found = []
    for (teacher, fingerprint), names in sorted(folders.items()):
        spec = specs[teacher, fingerprint]
        present, orphans, damaged = {}, [], []
        for name in (name for name in names if name.endswith(".arrow")):
            path = PurePosixPath(name)
            info, file = shas.get(path.stem), None
            if spec is not None and info is not None:
                try:
                    file = open_file(store, name, spec, path.parent.name)
                except UserError:
                    damaged.append(name)
                    continue
            if info is None or file is None or file.shard_sha256 != info.sha256:
                orphans.append(name)
                continue
            usable = (file.states == PRESENT) & dataset.alive[info.rows]
            present[path.parent.name] = present.get(path.parent.name, 0) + int(usable.sum())
        found.append(
            TargetsInfo(
                teacher,
                fingerprint,
                sum(map(store.size, names)),
                dict(sorted(present.items())),
                tuple(orphans),
                tuple(damaged),
                tuple(sorted(_twins(specs, teacher, fingerprint))),
                _why_stale(spec, present, orphans, damaged),
            )
        )
    return found


def _spec(store: Store, place: tuple[str, str], names: list[str]) -> TargetSpec | None:
    try:
        return read_spec(store, *place) if f"targets/{'/'.join(place)}/targets.json" in names else None
    except UserError:
        return None


def _twins(specs: Mapping[tuple[str, str], TargetSpec | None], teacher: str, fingerprint: str) -> list[str]:
    mine = specs[teacher, fingerprint]
    return [
        other
        for (name, other), spec in specs.items()
        if mine is not None and spec is not None and name == teacher and other != fingerprint
        if spec.fields.get("exposure") == mine.fields.get("exposure")
    ]


def _why_stale(spec: TargetSpec | None, present: Mapping, orphans: list, damaged: list) -> str:
    if spec is None:
        return "no targets.json describes it"
    if orphans and not present and not damaged:
        return "all of it was made from shards that are gone or were replaced"
    return ""


def remove(dataset: Dataset, teacher: str, fingerprint: str) -> int:
    """Deletes one folder of targets, targets.json first: from then on the rest is an orphan that nothing reads.

    Returns:
        How many bytes went.

    Raises:
        UserError: There is no such folder.
    """
    store, there = dataset.store, folders_of(dataset.store)
    names = there.get((teacher, fingerprint))
    if names is None:
        raise UserError(
            f"there are no targets {teacher}/{fingerprint}",
            where=dataset.url,
            hint=f"there are: {', '.join('/'.join(place) for place in sorted(there)) or 'none'}",
        )
    size, mark = sum(map(store.size, names)), f"targets/{teacher}/{fingerprint}/targets.json"
    for name in sorted(names, key=lambda name: name != mark):
        store.forget(name)
        store.delete(name)
    return size


def verify_targets(store: Store, teacher: str, fingerprint: str) -> list[str]:
    """Problems of one folder's files, each a readable text: reads every byte, changes nothing."""
    return [what for _, what in check_folder(store, (teacher, fingerprint))]


def check_folder(store: Store, place: tuple[str, str]) -> list[tuple[str, str]]:
    """(file, what is wrong) of one (teacher, fingerprint): every byte is read. No description is no fault: see `stale`."""
    problems = []
    try:
        spec = read_spec(store, *place)
    except FileNotFoundError:
        return []
    except UserError as error:
        return [(f"targets/{'/'.join(place)}/targets.json", f"{error.what}; {error.hint}")]
    for name in store.list(f"targets/{'/'.join(place)}"):
        if name.endswith(".arrow"):
            try:
                file = open_file(store, name, spec, PurePosixPath(name).parent.name, cached=False)
            except UserError as error:
                problems.append((name, f"{store.path(name)}: {error.what}; {error.hint}"))
                continue
            if file is not None and not file.check_sum():
                what = "its numbers have changed since they were written"
                problems.append((name, f"{store.path(name)}: {what}; {DELETE}"))
    return problems


def files_by_shard(store: Store) -> dict[str, list[str]]:
    """The files of targets of each shard, by the stem of the shard's file ("000003")."""
    found: dict[str, list[str]] = {}
    for name in store.list("targets"):
        path = PurePosixPath(name)
        if len(path.parts) == 5 and path.suffix == ".arrow":
            found.setdefault(path.stem, []).append(name)
    return found


def carry(
    store: Store,
    old: tuple[str, str],
    new: tuple[str, str],
    keep: np.ndarray,
    names: Iterable[str] | None = None,
) -> list[str]:
    """Copies the targets of a shard to the shard that replaces it with fewer rows (erasure of withdrawn rows).

    Args:
        store: The dataset's.
        old, new: (stem of the shard's file, its sha256), as in ("000003", "9f..."). The old files stay: delete them
            when the rest is committed. Targets of other audio than old's are not copied.
        keep: bool (rows of the old shard,); the kept rows keep their order and their audio.
        names: The old shard's files (`files_by_shard`); default: the folder is listed.

    Returns:
        Names of the files written.

    Raises:
        UserError: A file is damaged; copying would seal the damage.
    """
    written, rows = [], np.flatnonzero(keep)
    for name in files_by_shard(store).get(old[0], ()) if names is None else names:
        path = PurePosixPath(name)
        if not store.exists(str(path.parent.parent / "targets.json")):
            continue
        spec = read_spec(store, path.parts[1], path.parts[2])
        file = open_file(store, name, spec, path.parent.name, cached=False)
        if file is None or file.shard_sha256 != old[1] or len(file.states) != len(keep):
            continue
        if not file.check_sum():
            raise UserError(
                "the numbers of this file have changed since they were written; erasing would seal the damage",
                where=store.path(name),
                hint=DELETE,
            )
        columns = {o.name: [file.row(o, int(i)) for i in rows] for o in spec.outputs}
        about = {"view": file.view, "shard_sha256": new[1], "fingerprint": file.fingerprint}
        written.append(str(path.with_name(f"{new[0]}.arrow")))
        store.put(written[-1], encode(spec.outputs, file.states[rows], columns, about))
    return written
