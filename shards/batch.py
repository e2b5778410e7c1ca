"""One slot as tensors, and how it is made from a dataset: the pure part of loading.

Guarantees: a batch is a function of (dataset, slot, needs, policy) alone: no process, worker, order or earlier batch
enters. Audio that cannot be decoded keeps its place in the batch (`present` False, zeros of its planned length) and is named
with a reason; nothing is dropped. Rows are padded with zeros to the longest of the slot. What is not needed is not read.
A Batch pickles as plain bytes: no shared memory, no file descriptors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from shards import transcripts
from shards.audio import BadAudio
from shards.columns import HAS_TEXT
from shards.dataset import Dataset
from shards.errors import UserError
from shards.slots import Slot
from shards.targets import ABSENT, NO_INPUT, PRESENT, VIEW_POLICY, Output, TargetSource, TargetStore
from shards.views import ViewPolicy, apply, params, view_samples


@dataclass(frozen=True)
class Needs:
    """What a consumer wants in its batches.

    Attributes:
        waveform: Audio of the view.
        text: Transcripts.
        features: Name -> store; the frames a model reads instead of audio. Read from the store's output of that name,
            else from its only ragged one; the layers of a layer-pooled output of that name count as frames.
        targets: Name -> store; what teachers said.
        text_from: Where transcripts come from; see `texts`.
    """

    waveform: bool = False
    text: bool = False
    features: Mapping[str, TargetStore] = field(default_factory=dict)
    targets: Mapping[str, TargetSource] = field(default_factory=dict)
    text_from: str = "text"


@dataclass
class Batch:
    """B utterances of one slot.

    Attributes:
        rows, views: int64 (B,) numpy arrays, as planned.
        keys: B utterance keys.
        present: bool (B,). False: quarantined while loading; the row's inputs are zeros.
        lengths: int64 (B,) samples of the view at 16 kHz, known without the audio.
        waveform: float32 (B, T) or None.
        features: Name -> float32 (B, F, *shape), zeros past feature_lengths.
        feature_lengths: Name -> int64 (B,) frames.
        text: B transcripts (None: has none), or None.
        targets: Name -> output -> float32 (B, *shape); ragged outputs (B, T, *shape) with target_lengths.
        target_present: Name -> bool (B,). False: this teacher said nothing of the row.
        target_lengths: Name -> ragged output -> int64 (B,).
        quarantined: (key, reason) of each row with `present` False.
    """

    rows: np.ndarray
    views: np.ndarray
    keys: list[str]
    present: torch.Tensor
    lengths: torch.Tensor
    waveform: torch.Tensor | None = None
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    feature_lengths: dict[str, torch.Tensor] = field(default_factory=dict)
    text: list[str | None] | None = None
    targets: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    target_present: dict[str, torch.Tensor] = field(default_factory=dict)
    target_lengths: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    quarantined: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on a device; rows, views, keys and text stay where they are."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (the loader's pin_memory calls it)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, function) -> "Batch":
        return replace(
            self, **{f.name: _each(getattr(self, f.name), torch.Tensor, function) for f in fields(self)}
        )

    # Tensors would travel between processes through shared memory and descriptors, which containers limit (64 MB of
    # /dev/shm is a common default) and killed processes leave behind. numpy arrays travel through the pipe.
    def __getstate__(self) -> dict[str, Any]:
        return {f.name: _each(getattr(self, f.name), torch.Tensor, _Array) for f in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: _each(value, _Array, _Array.tensor) for name, value in state.items()})


class _Array:
    """A tensor on its way between processes."""

    def __init__(self, tensor: torch.Tensor):
        self.array = tensor.detach().cpu().numpy()

    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.array)


def _each(value: Any, kind: type, function) -> Any:
    """`value` with the function applied to everything of a kind in it, through dicts."""
    if isinstance(value, dict):
        return {name: _each(item, kind, function) for name, item in value.items()}
    return function(value) if isinstance(value, kind) else value


def check_views(needs: Needs, policy: ViewPolicy | None) -> None:
    """Refuses stored features and targets that were computed on views of another policy.

    Raises:
        UserError: Names the store, the stored and the wanted hash.
    """
    wanted = (policy or ViewPolicy()).hash()
    for store in [*needs.features.values(), *needs.targets.values()]:
        stored = store.spec.fields.get(VIEW_POLICY, "(missing)")
        if not store.spec.view_invariant and stored != wanted:
            raise UserError(
                f"{store.spec.teacher!r} was computed on other views: {VIEW_POLICY} stored {stored}, wanted {wanted}",
                where=f"{store.dataset.url}/{store.root}",
                hint="compute it on these views (ser targets), or give the recipe the views it was computed on",
            )


def load_slot(dataset: Dataset, slot: Slot, needs: Needs, policy: ViewPolicy | None = None) -> Batch:
    """Everything a consumer needs of one slot. Pure; may run in any process.

    Args:
        dataset: Where the rows live.
        slot: rows and views, int64 (B,); B = 0 gives an empty batch.
        needs: What to read.
        policy: The views; None for `ViewPolicy()`: every view is 0, the whole stored audio.

    Raises:
        UserError: A feature of a row was never computed.
    """
    rows, views = np.asarray(slot.rows, np.int64), np.asarray(slot.views, np.int64)
    hashes, samples = np.asarray(dataset.key_hash[rows]), np.asarray(dataset.samples[rows]).astype(np.int64)
    assert policy is not None or not views.any(), "views need a policy"
    policy = policy or ViewPolicy()
    lengths = view_samples(policy, hashes, views, samples)
    reasons: dict[int, str] = {}
    batch = Batch(
        rows, views, list(dataset.keys(rows)) if len(rows) else [], torch.ones(len(rows), dtype=torch.bool),
        torch.from_numpy(lengths),
    )  # fmt: skip
    if needs.waveform:
        batch.waveform = torch.from_numpy(_waveforms(dataset, rows, views, lengths, policy, reasons))
    if needs.text:
        batch.text = texts(dataset, needs.text_from, rows) if len(rows) else []
    for name, store in needs.features.items():
        output = _frames_of(store, name)
        said, states = store.look(rows, views)
        shape = output.shape if output.ragged else output.shape[1:]
        for i in np.flatnonzero(states != PRESENT):
            reasons.setdefault(int(i), _why_no_feature(store, name, batch.keys[i], rows[i], views[i]))
        padded, counts = _pad(said[output.name], shape)
        batch.features[name], batch.feature_lengths[name] = torch.from_numpy(padded), torch.from_numpy(counts)
    for name, store in needs.targets.items():
        batch.targets[name], batch.target_lengths[name] = {}, {}
        said = store.read(rows, views)
        for output in store.spec.outputs:
            value = said[output.name]
            if output.ragged:
                value, counts = _pad(value, output.shape)
                batch.target_lengths[name][output.name] = torch.from_numpy(counts)
            batch.targets[name][output.name] = torch.from_numpy(np.asarray(value, np.float32))
        batch.target_present[name] = torch.from_numpy(store.state(rows, views) == PRESENT)
    _quarantine(batch, reasons)
    return batch


def texts(dataset: Dataset, source: str, rows: np.ndarray) -> list[str | None]:
    """Transcripts of some rows, None where there is none.

    Args:
        source: "text", the corpus's own; "extra.<name>", others in its extra fields; "asr:<model>", those that lie beside
            the dataset (`shards.transcripts`).
    """
    if source.startswith("asr:"):
        return transcripts.read(dataset, source).take(pa.array(np.asarray(rows, np.int64))).to_pylist()
    column, _, key = source.partition(".")
    values = dataset.fields([column], rows).column(column).to_pylist()
    return values if not key else [json.loads(value).get(key) if value else None for value in values]


def has_text(dataset: Dataset, source: str, rows: np.ndarray) -> np.ndarray:
    """(m,) bool: rows with a transcript in `source`, as in `texts`."""
    if source == "text":
        return np.asarray(dataset.bits[rows]) & HAS_TEXT != 0
    return np.array([bool(text) for text in texts(dataset, source, rows)], bool)


def _waveforms(
    dataset: Dataset, rows: np.ndarray, views: np.ndarray, lengths: np.ndarray, policy: ViewPolicy,
    reasons: dict[int, str],
) -> np.ndarray:  # fmt: skip
    """float32 (B, max of lengths); fills `reasons` for what cannot be used."""
    out = np.zeros((len(rows), int(lengths.max(initial=0))), np.float32)
    unique, which = np.unique(rows, return_inverse=True)
    sources = dataset.audio(unique) if len(unique) else []
    for i, (row, view) in enumerate(zip(rows, views)):
        audio, samples = sources[which[i]], int(dataset.samples[row])
        if isinstance(audio, BadAudio):
            reasons[i] = audio.reason
        elif len(audio) != samples:
            reasons[i] = f"unreadable: {len(audio)} samples, the index says {samples}"
        else:
            drawn = params(policy, int(dataset.key_hash[row]), int(view), samples)
            out[i, : lengths[i]] = apply(policy, audio, drawn)
    return out


def _pad(rows: Sequence[np.ndarray] | np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Ragged rows (T_i, *shape) as float32 (B, max T, *shape) with zeros, and int64 (B,) counts."""
    counts = np.array([len(row) for row in rows], np.int64)
    out = np.zeros((len(rows), int(counts.max(initial=0)), *shape), np.float32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out, counts


def _frames_of(store: TargetStore, name: str) -> Output:
    ragged = [o for o in store.spec.outputs if o.ragged]
    pooled = [o for o in store.spec.outputs if o.kind == "layer-pooled" and o.name == name]
    named = pooled or [o for o in ragged if o.name == name] or ragged
    if len(named) != 1:
        raise UserError(
            f"which output of {store.spec.teacher!r} is the feature {name!r}? It has {[o.name for o in ragged]} as frames",
            where=store.root,
            hint="call the feature by the name of one of them",
        )
    return named[0]


def _why_no_feature(store: TargetStore, name: str, key: str, row: int, view: int) -> str:
    state = int(store.state(np.array([row]), np.array([view]))[0])
    if state == ABSENT:
        raise UserError(
            f"feature {name!r} was not computed for view {view} of {key}",
            where=f"{store.dataset.url}/{store.root}",
            hint="compute it for all rows and views of the run (ser targets); done work is kept",
        )
    return f"feature {name}: {'no input' if state == NO_INPUT else 'quarantined'}"


def _quarantine(batch: Batch, reasons: Mapping[int, str]) -> None:
    """Marks rows absent and zeroes all their inputs, so that half a row never reaches a model."""
    for i, reason in sorted(reasons.items()):
        batch.present[i] = False
        batch.quarantined.append((batch.keys[i], reason))
        for tensor in (batch.waveform, *batch.features.values()):
            if tensor is not None:
                tensor[i] = 0
