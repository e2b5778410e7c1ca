"""Build a model from its configuration; save it to a folder that stands alone; load it back.

    model.safetensors   every weight and buffer, pretrained ones too; a tensor shared under two names is stored once
    tokenizer.json      text models (`<component>.tokenizer.json` inside a fused one)
    model.json          configuration, the shape facts that a hub would otherwise be asked for, aliases of shared tensors,
                        sha256 of the other files; written last, so a folder without it is no model

Guarantees: loading runs no code (safetensors and JSON), asks no hub, refuses a file whose sha256 differs and any
missing or surplus weight, and gives outputs equal to the bit. It leaves the random number generators as they were.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ser.models.base import SERModel, count_parameters
from ser.models.config import FusedConfig, ModelConfig, parse_config
from shards import atomic
from shards.errors import UserError

FORMAT = 1
WEIGHTS, FACTS = "model.safetensors", "model.json"


def build(
    config: "Mapping[str, Any] | ModelConfig",
    classes: int,
    dimensions: bool,
    *,
    texts: Iterable[str | None] | None = None,
    components: Mapping[str, SERModel] | None = None,
) -> SERModel:
    """A model in training mode, its weights whole in memory (shard it afterwards).

    Args:
        config: Parsed, or a recipe's mapping.
        classes: K, 0 for no class head.
        dimensions: Whether valence, arousal and dominance are answered.
        texts: The fold's training texts, for the tokenizer of a random-weight text encoder.
        components: Built models for the components of a fused model; others are built from the configuration.

    Raises:
        UserError: The configuration or the checkpoint is wrong.
    """
    config = parse_config(config)
    if config.kind != "speech" and (classes < 0 or (classes == 0 and not dimensions)):
        raise UserError("a model needs classes, dimensions or both", where=f"{config.kind} model")
    return _make(config, classes, dimensions, texts=texts, components=components)


def save(
    model: SERModel,
    directory: str | os.PathLike,
    meta: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model's folder, replacing one that is there.

    Args:
        model: The model; with ZeRO-3 its parameters are partitioned, then `state` holds the gathered weights.
        meta: JSON facts for the reader: class names, scale, exposure, recipe.
        state: Weights under the model's own names, None takes the model's.

    Returns:
        The folder.
    """
    from safetensors.torch import save as to_safetensors

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # From here to the last line the folder is no model, rather than a mixture of two.
    (folder / FACTS).unlink(missing_ok=True)
    atomic.clean(folder)
    tensors, aliases = _unshared(model.state_dict() if state is None else state)
    contents = {WEIGHTS: to_safetensors(tensors), **model.extra_files()}
    for name, content in contents.items():
        atomic.write(folder / name, content)
    facts = {
        "format": FORMAT,
        "config": model.config.model_dump(mode="json"),
        "classes": model.classes,
        "dimensions": model.dimensions,
        "skeleton": model.skeleton(),
        "aliases": aliases,
        "hub_names": list(model.hub_names),
        "inputs": sorted(model.inputs),
        "embedding_size": model.embedding_size,
        "parameters": count_parameters(model),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        "meta": dict(meta),
    }
    # Keys unsorted: the order of a fused model's components is the order of its weights.
    atomic.write(folder / FACTS, (json.dumps(facts, indent=1) + "\n").encode())
    return folder


def load_meta(directory: str | os.PathLike) -> dict[str, Any]:
    """`meta` of a saved model alone; no weights are read.

    Raises:
        UserError: No model there, or a newer format.
    """
    return _facts(Path(directory))["meta"]


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / FACTS).read_text())
    except FileNotFoundError:
        raise UserError(f"there is no {FACTS}, so no complete model", where=str(folder)) from None
    except ValueError as error:
        raise UserError(f"{FACTS} is not JSON: {error}", where=str(folder)) from None
    if facts.get("format") != FORMAT:
        raise UserError(f"model format {facts.get('format')}, this version reads {FORMAT}", where=str(folder))
    return facts


def load(directory: str | os.PathLike) -> tuple[SERModel, dict[str, Any]]:
    """A saved model in evaluation mode on the CPU, in the precision it was saved in, and its `meta`.

    Raises:
        UserError: No model there, a newer format, a changed file, or weights that do not fit.
    """
    from safetensors.torch import load as from_safetensors

    folder = Path(directory)
    facts = _facts(folder)
    files = {name: _read(folder, name, digest) for name, digest in facts["files"].items()}
    tensors = from_safetensors(files.pop(WEIGHTS))
    for alias, name in facts["aliases"].items():
        tensors[alias] = tensors[name]
    config = parse_config(facts["config"], where=str(folder / FACTS))
    # Building draws random weights first.
    with torch.random.fork_rng(devices=[]):
        model = _make(config, facts["classes"], facts["dimensions"], skeleton=facts["skeleton"], files=files)
    kinds = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(kinds) == 1:
        model.to(kinds.pop())
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the model: {error}", where=str(folder)) from None
    return model.eval(), facts["meta"]


def empty(
    config: ModelConfig, classes: int, dimensions: bool, skeleton: dict[str, Any], files: Mapping[str, bytes]
) -> SERModel:
    """The shape of a model from facts alone, as loading builds it: no hub, no texts; on the meta device no memory."""
    return _make(config, classes, dimensions, skeleton=skeleton, files=files)


def _make(
    config: ModelConfig,
    classes: int,
    dimensions: bool,
    texts: Iterable[str | None] | None = None,
    components: Mapping[str, SERModel] | None = None,
    skeleton: dict[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> SERModel:
    # Imports on use: a kind brings its libraries along.
    if config.kind == "fused":
        from ser.models.fused import Fused

        parts = _components(config, classes, dimensions, texts, components or {}, skeleton, files or {})
        return Fused(config, classes, dimensions, parts)
    if components:
        raise UserError(f"a {config.kind} model has no components, got {sorted(components)}")
    if config.kind == "linguistic":
        from ser.models.linguistic import Linguistic

        return Linguistic(config, classes, dimensions, texts, skeleton, dict(files or {}))
    if config.kind == "prosodic":
        from ser.models.prosodic import Prosodic

        return Prosodic(config, classes, dimensions)
    if config.kind == "conv":
        from ser.models.students import Conv

        return Conv(config, classes, dimensions)
    if config.kind == "classical":
        from ser.models.classical import Classical

        return Classical(config, classes, dimensions)
    if config.kind == "probe":
        from ser.models.probe import Probe

        return Probe(config, classes, dimensions)
    if config.kind == "tcgru":
        from ser.models.tcgru import TCGRU

        return TCGRU(config, classes, dimensions)
    if config.kind == "speech":
        from ser.models.speech import Speech

        return Speech(config, texts, skeleton)
    if config.kind == "audeering":
        from ser.models.adapters import Audeering

        return Audeering(config, classes, dimensions, skeleton)
    if config.kind == "external":
        from ser.models.external import External

        return External(config, classes, dimensions, skeleton)
    if config.kind == "encoder":
        from ser.models.students import Encoder

        return Encoder(config, classes, dimensions, skeleton)
    from ser.models.acoustic import Acoustic

    return Acoustic(config, classes, dimensions, skeleton)


def _components(
    config: FusedConfig,
    classes: int,
    dimensions: bool,
    texts: Iterable[str | None] | None,
    given: Mapping[str, SERModel],
    skeleton: dict[str, Any] | None,
    files: Mapping[str, bytes],
) -> dict[str, SERModel]:
    """The components by name: as given, or built from their configuration, or empty shapes when loading."""
    strange = sorted(set(given) - set(config.components))
    if strange:
        raise UserError(
            f"components {strange} are not in the fused model's configuration", where="fused model"
        )
    texts = list(texts) if texts is not None else None
    parts: dict[str, SERModel] = {}
    for name, part in config.components.items():
        if name in given:
            parts[name] = given[name]
        elif part is None or (skeleton is None and config.mode == "product"):
            raise UserError(
                f"component {name!r} must be a trained model, and none was given",
                where=f"fused model, mode {config.mode}",
                hint="train it first and name its run, or give its configuration in mode concat or gated",
            )
        elif skeleton is not None:
            facts = skeleton[name]
            own = {
                file.removeprefix(name + "."): c for file, c in files.items() if file.startswith(name + ".")
            }
            parts[name] = _make(
                part, facts["classes"], facts["dimensions"], skeleton=facts["skeleton"], files=own
            )
        else:
            # Its embedding is all that is used.
            parts[name] = _make(part, 0, False, texts=texts)
    return parts


def _unshared(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store, and names whose tensor is stored under another name."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        # A copy of its own: safetensors refuses views of one storage.
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, aliases


def _read(folder: Path, name: str, digest: str) -> bytes:
    if Path(name).name != name:
        raise UserError(f"{FACTS} names a file outside its folder: {name!r}", where=str(folder))
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        raise UserError(f"the model's file {name} is missing", where=str(folder)) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(
            f"{name} is not the file that was saved (its sha256 differs)",
            where=str(folder),
            hint="copy the model again, or train it again",
        )
    return content
