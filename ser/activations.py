"""What a training step keeps for its backward pass, counted on small copies of a model before the model itself is there.

Guarantees: every tensor that autograd saves is counted once, as `torch.autograd.graph.saved_tensors_hooks` shows it;
weights, buffers and inputs are not. A transformer is built with one layer and with two at its full width and forwarded
over one utterance on the CPU; each further layer keeps what the second did.
Gives up: exactness. Kernels of another device save other tensors, and the allocator's gaps are not counted; a batch keeps
as much a second of padded audio as one utterance of the mean duration does.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from ser.agreement import outputs
from ser.capacity import hollow, shape_of, whole
from ser.models import SERModel
from ser.models.config import FusedConfig, LinguisticConfig, ModelConfig, PretrainedConfig, ProbeConfig
from ser.protocol import load_protocol
from ser.recipe import Recipe
from shards.utterance import SAMPLE_RATE

FRAMES = {"mel": 100, "prosody": 100}  # a second of these features; encoders give 50
WORDS_A_SECOND = 2.5
# Of small copies: a model whose layers are recomputed has the same as one that keeps them, and so have those of other depths.
_COUNTED: dict[tuple[str, int, bool, float], int] = {}


def batch_of(model: SERModel, rows: int, seconds: float, device: torch.device | str = "cpu") -> Any:
    """An input of `rows` utterances of `seconds` each: noise, silence or words, whatever the model reads."""
    samples = int(seconds * SAMPLE_RATE)
    sizes = {name: size for name, size in model.frame_sizes().items() if name in model.inputs}
    frames = {name: max(1, int(seconds * FRAMES.get(name, 50))) for name in sizes}
    if isinstance(model.config, ProbeConfig):
        frames = dict.fromkeys(sizes, model.config.states)
    ones = torch.ones(rows, dtype=torch.int64, device=device)
    return SimpleNamespace(
        waveform=torch.randn(rows, samples, device=device) * 0.1 if "waveform" in model.inputs else None,
        lengths=samples * ones,
        features={name: torch.randn(rows, frames[name], size, device=device) for name, size in sizes.items()},
        feature_lengths={name: frames[name] * ones for name in sizes},
        text=["word " * max(1, round(seconds * WORDS_A_SECOND))] * rows,
    )


def activations(recipe: Recipe, name: str, seconds: float) -> float:
    """Bytes in fp32 that a second of padded audio keeps for the backward pass of model `name`.

    Args:
        recipe: The resolved recipe.
        name: A model that is trained.
        seconds: Duration of a typical utterance; attention that keeps its weights grows with it.
    """
    answers = outputs(recipe, name)
    classes = len(load_protocol(recipe.protocol).classes) if answers.classes else 0
    config = whole(recipe, recipe.models[name].model)

    def kept(layers: Mapping[str, int]) -> int:
        small = _cut(config, layers)
        key = small.model_dump_json(), classes, answers.dimensions, seconds
        if key not in _COUNTED:
            model = hollow(small, classes, answers.dimensions).train()
            _COUNTED[key] = saved_bytes(model, batch_of(model, 1, seconds))
        return _COUNTED[key]

    deep = dict(_encoders(config))
    one = dict.fromkeys(deep, 1)
    total = base = kept(one)
    for path, part in deep.items():
        more = _layers(part) - 1
        layer = kept({**one, path: 2}) - base if more else 0
        if part.gradient_checkpointing:
            # a layer keeps its input; one layer at a time is whole while it is recomputed
            tokens = seconds * (WORDS_A_SECOND if isinstance(part, LinguisticConfig) else 50)
            layer = min(layer, int(4 * tokens * int(shape_of(part).get("hidden_size", 768))))
        total += more * layer
    return total / seconds


def saved_bytes(model: SERModel, batch: Any) -> int:
    """Bytes of the tensors that autograd saves in one forward pass, besides weights, buffers and the batch."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    own |= {
        t.untyped_storage().data_ptr() for t in (batch.waveform, *batch.features.values()) if t is not None
    }
    seen: dict[int, tuple[Any, int]] = {}

    def keep(tensor: torch.Tensor) -> None:  # the graph that kept an output of its own would never be freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage, storage.nbytes()  # held, so that no address comes twice

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        output = model(batch)
    del output
    return sum(size for _, size in seen.values())


def _layers(part: PretrainedConfig) -> int:
    from transformers import CONFIG_MAPPING

    shape = shape_of(part)
    usual = CONFIG_MAPPING[shape["model_type"]]().num_hidden_layers
    return int(shape.get("num_hidden_layers", usual))


def _encoders(config: ModelConfig, path: str = "") -> list[tuple[str, PretrainedConfig]]:
    """Every transformer inside a configuration, by its place."""
    if isinstance(config, FusedConfig):
        parts = [(name, part) for name, part in config.components.items() if part is not None]
        return [found for name, part in parts for found in _encoders(part, f"{path}{name}.")]
    return [(path, config)] if isinstance(config, PretrainedConfig) else []


def _cut(config: ModelConfig, layers: Mapping[str, int], path: str = "") -> ModelConfig:
    """The same configuration with so many layers a transformer, random weights and no recomputation."""
    if isinstance(config, FusedConfig):
        parts = {
            name: None if part is None else _cut(part, layers, f"{path}{name}.")
            for name, part in config.components.items()
        }
        return config.model_copy(update={"components": parts})
    if not isinstance(config, PretrainedConfig):
        return config
    shape = {**shape_of(config), "num_hidden_layers": layers[path]}
    return config.model_copy(
        update={
            "name": None,
            "revision": None,
            "config": shape,
            "num_layers": None,
            "gradient_checkpointing": False,
        }
    )
