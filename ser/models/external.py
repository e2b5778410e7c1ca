"""A teacher that ran elsewhere: its answers are read from files by utterance key (SpeechBrain's, emotion2vec's, anybody's).

    answers.jsonl | .parquet   key; `probabilities` or `logits` in the order of `labels`; `dimensions`; `embedding`
    FOLDER/<key>.npy           an embedding (E,), or frames (T, E) that are averaged, as emotion2vec writes them

Guarantees: another label space, order or scale is mapped where it is declared and refused where it is not; an utterance
that the files do not name has no answer, rather than zeros; the files' sha256 is part of the model's weights, and so of
its targets' fingerprint.
Gives up: views: the files answer the clean utterance (`any_view` says that every view is given that answer).
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser.models.base import DIMENSIONS, Inputs, ModelOutput, SERModel
from ser.models.config import ExternalConfig
from shards.errors import UserError
from shards.index import key_hash

# Of a class that none of the teacher's labels is mapped to.
NEVER = math.log(1e-8)


class External(SERModel):
    """Looks its answers up by `batch.keys`; it hears nothing itself.

    `skeleton` says how large its tables are: {"rows", "embedding"}.
    """

    inputs = frozenset()
    config: ExternalConfig
    keys: Tensor

    def __init__(
        self, config: ExternalConfig, classes: int, dimensions: bool, skeleton: dict[str, Any] | None = None
    ):
        super().__init__(config, classes, dimensions)
        rows, size = (skeleton or {}).get("rows", 0), (skeleton or {}).get("embedding", 0)
        self.embedding_size = size
        self.register_buffer("keys", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("logits", torch.zeros(rows, classes))
        self.register_buffer("values", torch.zeros(rows, len(DIMENSIONS) if dimensions else 0))
        self.register_buffer("vectors", torch.zeros(rows, size))

    def answer(self, batch: Inputs) -> ModelOutput:
        keys: Sequence[str] = getattr(batch, "keys", [""] * self.rows_of(batch))
        asked = _hashes(keys).to(self.device)
        if len(self.keys) == 0:
            at, known = torch.zeros_like(asked), torch.zeros_like(asked, dtype=torch.bool)
        else:
            at = torch.searchsorted(self.keys, asked).clamp_max(len(self.keys) - 1)
            known = self.keys[at] == asked

        def take(table: Any) -> Tensor:
            found = table[at] if len(table) else table.new_zeros(len(at), table.shape[1])
            return torch.where(known.unsqueeze(-1), found, 0.0)

        return ModelOutput(
            take(self.logits) if self.classes else None, take(self.values) if self.dimensions else None,
            take(self.vectors), known,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def hub_names(self) -> tuple[str, ...]:
        return (self.config.model,)

    @property
    def stated_licences(self) -> dict[str, str]:
        """Licence of the model that answered, as declared."""
        return {self.config.model: self.config.licence}

    def skeleton(self) -> dict[str, Any]:
        return {"rows": len(self.keys), "embedding": self.embedding_size}


def read(config: ExternalConfig, classes: Sequence[str], dimensions: bool) -> External:
    """The teacher with its answers, mapped to the protocol's classes and scale.

    Args:
        config: Where they lie and how they are meant.
        classes: The protocol's, in order; empty for none.

    Raises:
        UserError: No files, rows of other sizes, or labels that are not mapped.
    """
    table = sorted(_rows(Path(config.files)), key=lambda row: int(_hashes([row["key"]])))
    if not table:
        raise UserError("there are no answers", where=config.files)
    keys = [row["key"] for row in table]
    if len(set(keys)) < len(keys):
        raise UserError(f"{len(keys) - len(set(keys))} keys are answered twice", where=config.files)
    vectors = _stack(table, "embedding", config.files)
    model = External(
        config,
        len(classes),
        dimensions,
        {"rows": len(keys), "embedding": 0 if vectors is None else vectors.shape[1]},
    )
    model.keys.copy_(_hashes(keys))
    if vectors is not None:
        model.get_buffer("vectors").copy_(torch.from_numpy(vectors))
    if classes:
        model.get_buffer("logits").copy_(torch.from_numpy(_classes(config, table, classes)))
    if dimensions:
        model.get_buffer("values").copy_(torch.from_numpy(_dimensions(config, table)))
    return model


def _classes(config: ExternalConfig, table: list[dict[str, Any]], classes: Sequence[str]) -> np.ndarray:
    """(n, K) log-probabilities in the protocol's order; labels that meet in a class are summed, dropped ones left out."""
    p = _stack(table, "probabilities", config.files)
    if p is None:
        logits = _stack(table, "logits", config.files)
        if logits is None:
            raise UserError("the answers have neither probabilities nor logits", where=config.files)
        p = np.exp(logits - logits.max(1, keepdims=True))
    if p.shape[1] != len(config.labels):
        raise UserError(
            f"the answers have {p.shape[1]} numbers, `labels` names {len(config.labels)}", where=config.files,
            hint="labels: [their labels in their order]",
        )  # fmt: skip
    mapped = config.classes or {name: name for name in config.labels}
    lost = [name for name in config.labels if name not in mapped]
    strange = sorted({c for c in mapped.values() if c is not None} - set(classes))
    if lost or strange:
        raise UserError(
            f"no class of the protocol for {', '.join(lost or strange)}", where=config.files,
            hint=f"classes: {{their label: one of {', '.join(classes)}, or null to drop it}}",
        )  # fmt: skip
    out = np.zeros((len(table), len(classes)))
    for i, name in enumerate(config.labels):
        if mapped[name] is not None:
            out[:, classes.index(mapped[name])] += p[:, i]
    total = out.sum(1, keepdims=True)
    out = np.where(total > 0, out / np.where(total > 0, total, 1), 1 / len(classes))
    return np.log(np.maximum(out, math.exp(NEVER))).astype(np.float32)


def _dimensions(config: ExternalConfig, table: list[dict[str, Any]]) -> np.ndarray:
    """(n, 3) valence, arousal, dominance on [0, 1]."""
    values = _stack(table, "dimensions", config.files)
    if (
        values is None
        or values.shape[1] != len(config.dimensions)
        or set(config.dimensions) != set(DIMENSIONS)
    ):
        raise UserError(
            "the answers' dimensions and `dimensions` do not fit", where=config.files,
            hint="dimensions: [arousal, dominance, valence] in their order, three numbers a row",
        )  # fmt: skip
    assert config.scale is not None
    low, high = config.scale
    values = (values - low) / (high - low)
    if values.min() < -0.5 or values.max() > 1.5:
        raise UserError(
            f"dimensions from {values.min():.2f} to {values.max():.2f} after mapping are not on [0, 1]", where=config.files,
            hint="declare theirs, for example scale: [1, 7]",
        )  # fmt: skip
    return values[:, [config.dimensions.index(name) for name in DIMENSIONS]].astype(np.float32)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        for file in sorted(path.glob("*.npy")):
            values = np.load(file, allow_pickle=False)
            yield {"key": file.stem, "embedding": values.mean(0) if values.ndim == 2 else values}
    elif path.suffix == ".parquet" and path.is_file():
        import pyarrow.parquet as pq

        yield from pq.read_table(path).to_pylist()
    elif path.is_file():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                row["key"]
            except (ValueError, KeyError, TypeError):
                raise UserError("no JSON object with a `key`", where=f"{path}:{number}") from None
            yield row
    else:
        raise UserError(
            "there are no such answers", where=str(path), hint="a .jsonl, a .parquet, or a folder of .npy"
        )


def _stack(table: list[dict[str, Any]], name: str, where: str) -> np.ndarray | None:
    values = [row.get(name) for row in table]
    if all(value is None for value in values):
        return None
    sizes = {None if value is None else len(value) for value in values}
    if len(sizes) != 1:
        raise UserError(f"`{name}` has rows of different sizes: {sorted(map(str, sizes))}", where=where)
    out = np.array(values, dtype=np.float64)
    if not np.isfinite(out).all():
        raise UserError(f"`{name}` has numbers that are not finite", where=where)
    return out


def _hashes(keys: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.array([key_hash(key) for key in keys], np.uint64).view(np.int64).copy())
