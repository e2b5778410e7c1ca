"""Stored targets: what a teacher said of each view of each utterance, in files that lie beside the shards.

Guarantees: a target is read only for the very audio (shard sha256), view and fingerprint it was computed for; a
fingerprint that does not fit is refused, naming every field that differs; a file is replaced whole and atomically and
its other rows are copied, so a killed run loses at most the unit in work and what is committed is never due again;
a withdrawn row has no targets. Files are mapped and rows are views on them: stored features (log-mel, prosody), which
are targets of kind "frame", are read at memory speed.

Gives up: two processes writing the same (shard, view) at once lose one's rows (they are due again): one unit, one worker.
A reader sees a file as it was when it first opened it, until `refresh()`.

    targets/<teacher>/<fp>/targets.json          the outputs and the fingerprint's fields
    targets/<teacher>/<fp>/v003/000000.arrow     view 3 of shard 000000 (`shards.target_file`)
    targets/<teacher>/<fp>/any/000000.arrow      view-invariant teachers: one answer for every view
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np

from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import shard_name
from shards.pack import MAX_QUARANTINED, MIN_QUARANTINED
from shards.target_file import (
    ABSENT,
    DELETE,
    NO_INPUT,
    PRESENT,
    QUARANTINED,
    MappedFile,
    encode,
    open_file,
    read_spec,
)
from shards.target_spec import VIEW_POLICY, Output, TargetSpec

__all__ = [
    "ABSENT", "NO_INPUT", "PRESENT", "QUARANTINED", "VIEW_POLICY", "Output", "TargetSource", "TargetSpec",
    "TargetStore", "Unit",
]  # fmt: skip

OPEN_FILES = 256


@dataclass(frozen=True, eq=False)
class Unit:
    """Work that is due: rows (int64, ascending) of one shard (position in `dataset.shards`), seen in one view."""

    shard: int
    view: int
    rows: np.ndarray


class TargetSource(Protocol):
    """What the loader and objectives ask of targets: the reading half of `TargetStore`, which others may put in its place."""

    @property
    def spec(self) -> TargetSpec: ...

    def state(self, rows: np.ndarray, views: Any = 0) -> np.ndarray: ...

    def read(self, rows: np.ndarray, views: Any = 0) -> dict[str, Any]: ...


class TargetStore:
    """The targets of one teacher under one fingerprint. Picklable: files are opened anew in another process."""

    def __init__(self, dataset: Dataset, spec: TargetSpec):
        self.dataset, self.spec, self.fingerprint = dataset, spec, spec.fingerprint
        self.root = f"targets/{spec.teacher}/{self.fingerprint}"
        self._starts = np.array([s.rows.start for s in dataset.shards], np.int64)
        self._files: OrderedDict[tuple[int, str], MappedFile | None] = OrderedDict()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": OrderedDict()}

    @classmethod
    def create(cls, dataset: Dataset, spec: TargetSpec) -> "TargetStore":
        """The store of this spec, made if it is not there yet (then `informative` is this spec's)."""
        made = cls(dataset, spec)
        path = f"{made.root}/targets.json"
        if not dataset.store.exists(path):
            dataset.store.put(path, json.dumps(spec.to_dict(), indent=1, sort_keys=True).encode())
        return cls(dataset, read_spec(dataset.store, spec.teacher, spec.fingerprint))

    @classmethod
    def open(
        cls,
        dataset: Dataset,
        teacher: str = "",
        fingerprint: str | None = None,
        *,
        expect: TargetSpec | None = None,
    ) -> "TargetStore":
        """Open stored targets, by fingerprint, by what they must be, or the teacher's only ones.

        Raises:
            UserError: There are none, or they were made otherwise: every field that differs, with both values.
        """
        teacher = teacher or (expect.teacher if expect else "")
        there = _fingerprints(dataset, teacher)
        hint = f"make them (ser targets RECIPE; features: ser run RECIPE); there are {there or 'none'} for {teacher!r}"
        where = f"{dataset.url}/targets/{teacher}"
        if fingerprint is None and expect is not None and expect.fingerprint in there:
            fingerprint = expect.fingerprint
        if fingerprint is None and expect is None and len(there) == 1:
            fingerprint = there[0]
        if fingerprint is not None:
            if fingerprint not in there:
                raise UserError(
                    f"no targets of {teacher!r} with fingerprint {fingerprint}", where=where, hint=hint
                )
            spec = read_spec(dataset.store, teacher, fingerprint)
            if expect is not None:
                _refuse_other([spec], expect, where)
            return cls(dataset, spec)
        if not there:
            raise UserError(f"no targets of {teacher!r}", where=where, hint=hint)
        if expect is None:
            raise UserError(
                f"several targets of {teacher!r}: {there}", where=where, hint="name the fingerprint"
            )
        _refuse_other([read_spec(dataset.store, teacher, fp) for fp in there], expect, where)
        raise AssertionError("unreachable: an equal spec has an equal fingerprint")

    # -- files ---------------------------------------------------------------------------------------------------

    def _folder(self, view: int) -> str:
        return "any" if self.spec.view_invariant else f"v{view:03d}"

    def _path(self, shard: int, folder: str) -> str:
        return f"{self.root}/{folder}/{PurePosixPath(self.dataset.shards[shard].url).stem}.arrow"

    def refresh(self) -> None:
        """Forget open files: what other processes wrote since is seen from here on."""
        self._files.clear()

    def _file(self, shard: int, folder: str) -> MappedFile | None:
        """The mapped file, None where there is none or it was made for other audio."""
        key = (shard, folder)
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        info = self.dataset.shards[shard]
        found = open_file(self.dataset.store, self._path(shard, folder), self.spec, folder)
        if found is not None and found.shard_sha256 != info.sha256:
            found = None  # made for audio that has been replaced: due again
        if found is not None and len(found.states) != info.rows.stop - info.rows.start:
            raise UserError(
                f"this file holds {len(found.states)} rows, its shard {info.rows.stop - info.rows.start}",
                where=self.dataset.store.path(self._path(shard, folder)),
                hint=DELETE,
            )
        self._files[key] = found
        while len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)
        return found

    def _groups(
        self, rows: np.ndarray, views: np.ndarray | Sequence[int] | int
    ) -> Iterator[tuple[MappedFile | None, np.ndarray, np.ndarray]]:
        """Yields (mapped file or None, positions in the request, local rows), a (shard, view) at a time."""
        rows = np.asarray(rows, np.int64)
        views = np.broadcast_to(np.asarray(0 if self.spec.view_invariant else views, np.int64), rows.shape)
        if not rows.size:
            return
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        code = shard * (int(views.max()) + 1) + views
        order = np.argsort(code, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(code[order])) + 1):
            s = int(shard[at[0]])
            yield self._file(s, self._folder(int(views[at[0]]))), at, rows[at] - self._starts[s]

    # -- reading -------------------------------------------------------------------------------------------------

    def state(self, rows: np.ndarray, views: np.ndarray | Sequence[int] | int = 0) -> np.ndarray:
        """uint8 (B,): ABSENT, PRESENT, NO_INPUT or QUARANTINED for each (row, view). Withdrawn rows are ABSENT."""
        rows = np.asarray(rows, np.int64)
        out = np.zeros(rows.shape, np.uint8)
        for file, at, local in self._groups(rows, views):
            if file is not None:
                out[at] = file.states[local]
        out[~self.dataset.alive[rows]] = ABSENT
        return out

    def read(
        self, rows: np.ndarray, views: np.ndarray | Sequence[int] | int = 0
    ) -> dict[str, np.ndarray | list[np.ndarray]]:
        """What was said of each (row, view), in the stored number type.

        Args:
            rows: int64 (B,), any order, repeats allowed.
            views: int64 (B,) or one view for all.

        Returns:
            Output name -> (B, *shape) for dense kinds; list of B arrays (T_i, *shape), read-only views on the mapped
            file, for ragged ones. Zeros or length 0 where the state is not PRESENT.
        """
        return self.look(rows, views)[0]

    def look(
        self, rows: np.ndarray, views: np.ndarray | Sequence[int] | int = 0
    ) -> tuple[dict[str, np.ndarray | list[np.ndarray]], np.ndarray]:
        """`read` and `state` of the same rows at once."""
        rows = np.asarray(rows, np.int64)
        states = np.zeros(rows.shape, np.uint8)
        dense = {o.name: np.zeros((len(rows), *o.shape), o.numpy) for o in self.spec.outputs if not o.ragged}
        empty = {o.name: np.zeros((0, *o.shape), o.numpy) for o in self.spec.outputs if o.ragged}
        ragged = {name: [none] * len(rows) for name, none in empty.items()}
        alive = self.dataset.alive[rows]
        for file, at, local in self._groups(rows, views):
            if file is None:
                continue
            states[at] = file.states[local]
            keep = (states[at] == PRESENT) & alive[at]
            at, local = at[keep], local[keep]
            for name, out in dense.items():
                out[at] = file.dense[name][local]
            for name, out in ragged.items():
                offsets, values = file.ragged[name]
                for i, a, b in zip(at.tolist(), offsets[local].tolist(), offsets[local + 1].tolist()):
                    out[i] = values[a:b]
        states[~alive] = ABSENT
        return {o.name: (ragged if o.ragged else dense)[o.name] for o in self.spec.outputs}, states

    # -- writing -------------------------------------------------------------------------------------------------

    def due(self, wanted: np.ndarray, views: Sequence[int], retry: bool = False) -> list[Unit]:
        """What is still to be computed: wanted, not withdrawn, and in state ABSENT.

        Args:
            wanted: bool (n_rows,), for example a fold's train and dev rows.
            views: Views to be covered; ignored (one unit a shard) where targets are view-invariant.
            retry: Take what is QUARANTINED as well: its audio or its disk was mended since.

        Returns:
            Units ordered by shard, then view; each is one file to write.
        """
        self.refresh()
        wanted = np.asarray(wanted, bool) & self.dataset.alive
        states = (ABSENT, QUARANTINED) if retry else (ABSENT,)
        units = []
        for s, info in enumerate(self.dataset.shards):
            rows = info.rows.start + np.flatnonzero(wanted[info.rows.start : info.rows.stop])
            for view in [0] if self.spec.view_invariant else sorted(set(views)):
                if rows.size:
                    left = rows[np.isin(self.state(rows, view), states)]
                    units += [Unit(s, int(view), left)] if left.size else []
        return units

    def write(
        self, unit: Unit, states: np.ndarray, arrays: Mapping[str, Sequence[np.ndarray | None]]
    ) -> np.ndarray:
        """Commit a unit: the file is replaced whole and atomically, rows outside the unit are copied.

        Args:
            unit: From `due`; its rows in any order.
            states: uint8 (n,), state of each row of the unit. More QUARANTINED ones than packing would allow
                (`MAX_QUARANTINED`, but never fewer than `MIN_QUARANTINED`) are taken only from a shard whose bytes
                are those that were packed.
            arrays: Output name -> n arrays (anything where the state is not PRESENT), cast to the output's dtype.

        Returns:
            int64 rows that were to be PRESENT but held a number that is not finite as stored (float16 ends at 65504);
            they are written as QUARANTINED.

        Raises:
            UserError: A shape that is not the output's; or too much of the unit is quarantined and its shard is damaged:
                nothing was written then.
        """
        info, folder = self.dataset.shards[unit.shard], self._folder(unit.view)
        for given in (states, *(arrays[o.name] for o in self.spec.outputs)):
            assert len(given) == len(unit.rows)
        assert all(info.rows.start <= row < info.rows.stop for row in (unit.rows.min(), unit.rows.max()))
        self._refuse_damage(unit, np.asarray(states))
        self._files.pop((unit.shard, folder), None)
        before = self._file(unit.shard, folder)
        n = info.rows.stop - info.rows.start
        all_states = np.zeros(n, np.uint8) if before is None else before.states.copy()
        columns: dict[str, list] = {o.name: [None] * n for o in self.spec.outputs}
        if before is not None:
            for o in self.spec.outputs:
                columns[o.name] = [before.row(o, i) if all_states[i] == PRESENT else None for i in range(n)]
        refused = []
        for i, row in enumerate(unit.rows.tolist()):
            local, values = row - info.rows.start, {}
            all_states[local] = states[i]
            if states[i] == PRESENT:
                values = {o.name: self._checked(o, arrays[o.name][i], row) for o in self.spec.outputs}
                if not all(np.isfinite(value).all() for value in values.values()):
                    all_states[local], values = QUARANTINED, {}
                    refused.append(row)
            for o in self.spec.outputs:
                columns[o.name][local] = values.get(o.name)
        about = {"view": folder, "shard_sha256": info.sha256, "fingerprint": self.fingerprint}
        self.dataset.store.put(
            self._path(unit.shard, folder), encode(self.spec.outputs, all_states, columns, about)
        )
        self._files.pop((unit.shard, folder), None)
        return np.array(refused, np.int64)

    def _refuse_damage(self, unit: Unit, states: np.ndarray) -> None:
        """A bad moment of a disk must not become what a teacher said for ever."""
        bad, info = int((states == QUARANTINED).sum()), self.dataset.shards[unit.shard]
        if bad <= max(MIN_QUARANTINED - 1, int(MAX_QUARANTINED * len(states))):
            return
        if not self.dataset.intact(unit.shard):
            raise UserError(
                f"{bad} of {len(states)} utterances of this shard cannot be used, and its bytes are not those that "
                "were packed",
                where=info.url,
                hint=f"ser verify {self.dataset.url} names all damage; restore the shard from a copy, then run the "
                "same command again",
            )
        # The stored shard is whole, so what was read of it may have come from a bad copy on this machine.
        self.dataset.store.forget(shard_name(info.number), info.sha256)

    def _checked(self, output: Output, value: Any, row: int) -> np.ndarray:
        with np.errstate(over="ignore"):
            value = np.asarray(value).astype(output.numpy)
        if value.ndim != len(output.shape) + output.ragged or value.shape[output.ragged :] != output.shape:
            wanted = f"(T, {', '.join(map(str, output.shape))})" if output.ragged else str(output.shape)
            raise UserError(
                f"output {output.name} of {self.spec.teacher} has shape {value.shape}, not {wanted}",
                where=self.dataset.keys(np.array([row]))[0],
            )
        return value

    def size(self) -> int:
        """Bytes of all files of this store, orphans included."""
        return sum(self.dataset.store.size(name) for name in self.dataset.store.list(self.root))


def _refuse_other(specs: Sequence[TargetSpec], expect: TargetSpec, where: str) -> None:
    """Raises UserError naming the differences to the nearest of `specs`, unless one equals `expect`."""
    spec = min(specs, key=lambda spec: len(spec.differences(expect)))
    differences = spec.differences(expect)
    if differences:
        lines = "".join(f"\n    {name}: stored {mine}, wanted {other}" for name, mine, other in differences)
        raise UserError(
            f"the stored targets of {expect.teacher!r} do not fit:{lines}",
            where=f"{where}/{spec.fingerprint}",
            hint="make the wanted ones (ser targets), or set these fields back in the recipe",
        )


def _fingerprints(dataset: Dataset, teacher: str) -> list[str]:
    names = (PurePosixPath(name) for name in dataset.store.list(f"targets/{teacher}"))
    return sorted({name.parent.name for name in names if name.name == "targets.json"})
