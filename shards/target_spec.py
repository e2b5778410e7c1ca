"""What a set of stored targets is: its outputs, and the fingerprint of all that its numbers depend on.

Guarantees: equal fingerprints mean equal specs, as far as they were written down; two that differ can be told apart
field by field. Pure, no files.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shards.errors import UserError

VIEW_POLICY = "view_policy"  # the field that holds ViewPolicy.hash(); the loader compares it
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
DENSE_KINDS, RAGGED_KINDS = ("utterance", "layer-pooled"), ("frame", "token")
DTYPES = {"float32": (np.dtype("<f4"), pa.float32()), "float16": (np.dtype("<f2"), pa.float16())}


@dataclass(frozen=True)
class Output:
    """One thing a teacher says: its name, kind, shape of one row (without the ragged axis) and number type.

    Attributes:
        name: Column name in the side-shards, `[A-Za-z0-9_.-]+`, not "state".
        kind: "utterance" or "layer-pooled" (one array a row), "frame" or "token" (a ragged first axis a row).
        shape: For example (4,) logits, (12, 768) pooled layers, (64,) mel bands of a frame.
        dtype: "float32" or "float16", as stored.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.kind not in DENSE_KINDS + RAGGED_KINDS:
            raise UserError(
                f"output kind {self.kind!r} is none of {DENSE_KINDS + RAGGED_KINDS}", where=self.name
            )
        if self.dtype not in DTYPES:
            raise UserError(f"output dtype {self.dtype!r} is none of {tuple(DTYPES)}", where=self.name)
        if min(self.shape, default=1) < 1:
            raise UserError(f"output shape {self.shape} has an axis below 1", where=self.name)

    @property
    def ragged(self) -> bool:
        return self.kind in RAGGED_KINDS

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    @property
    def numpy(self) -> np.dtype:
        return DTYPES[self.dtype][0]

    def arrow(self) -> pa.DataType:
        item = pa.list_(pa.field("item", DTYPES[self.dtype][1], nullable=False), self.width)
        return pa.large_list(pa.field("item", item, nullable=False)) if self.ragged else item


@dataclass(frozen=True)
class TargetSpec:
    """What a set of targets is, and all that its numbers depend on.

    Attributes:
        teacher: Name, a folder: `[A-Za-z0-9_.-]{1,80}`.
        outputs: What the teacher says.
        fields: Everything the numbers depend on, as JSON: weights' sha256, teacher recipe, ordered label space and
            scale, `view_policy` (ViewPolicy.hash(), unless view_invariant), batch policy, precision, exposure.
        informative: Recorded, not part of the fingerprint: library versions, CPU or GPU kind.
        view_invariant: One answer for all views (a text teacher).
    """

    teacher: str
    outputs: tuple[Output, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    informative: Mapping[str, Any] = field(default_factory=dict)
    view_invariant: bool = False

    def __post_init__(self):
        object.__setattr__(self, "outputs", tuple(self.outputs))
        for name in ("fields", "informative"):
            # Through JSON and back, so that a spec in memory equals the one read from targets.json (tuples, int keys).
            object.__setattr__(self, name, json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False)))
        names = [o.name for o in self.outputs]
        for name in (self.teacher, *names):
            if not NAME.fullmatch(name):
                raise UserError(
                    f"name {name!r} is not of the form [A-Za-z0-9_.-]{{1,80}}",
                    where=f"targets of {self.teacher!r}",
                )
        if not names or len(set(names)) < len(names) or "state" in names:
            raise UserError(
                f"output names {names} must be distinct, at least one, and not 'state'", where=self.teacher
            )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of everything but `informative`."""
        return hashlib.sha256(json.dumps(self._core(), sort_keys=True).encode()).hexdigest()[:16]

    def _core(self) -> dict:
        outputs = [
            {"name": o.name, "kind": o.kind, "shape": list(o.shape), "dtype": o.dtype} for o in self.outputs
        ]
        return {
            "teacher": self.teacher, "outputs": outputs, "fields": self.fields, "view_invariant": self.view_invariant
        }  # fmt: skip

    def to_dict(self) -> dict:
        return {"schema": 1, **self._core(), "informative": self.informative, "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, text: Mapping[str, Any]) -> "TargetSpec":
        outputs = tuple(Output(o["name"], o["kind"], tuple(o["shape"]), o["dtype"]) for o in text["outputs"])
        return cls(
            text["teacher"],
            outputs,
            text["fields"],
            text.get("informative", {}),
            bool(text["view_invariant"]),
        )

    def differences(self, other: "TargetSpec") -> list[tuple[str, Any, Any]]:
        """(dotted field, mine, other's) for each leaf in which two fingerprints differ; missing ones say so."""
        mine, theirs = _leaves(self._core()), _leaves(other._core())
        names = [*mine, *(name for name in theirs if name not in mine)]
        pairs = [(name, mine.get(name, "(missing)"), theirs.get(name, "(missing)")) for name in names]
        return [pair for pair in pairs if pair[1] != pair[2]]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Nested JSON as {dotted path: JSON text of the leaf}."""
    items: Any = ()
    if isinstance(value, dict):
        items = sorted(value.items())
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        items = [(v.get("name", str(i)) if isinstance(v, dict) else str(i), v) for i, v in enumerate(value)]
    leaves = {}
    for name, v in items:
        leaves |= _leaves(v, f"{path}.{name}" if path else str(name))
    return leaves or {path: json.dumps(value)}
