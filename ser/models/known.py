"""Shapes of public checkpoints, so that a recipe that names them can be counted and planned without the hub.

Guarantees: `blueprint` builds the same modules as loading the checkpoint would, on torch's meta device, without memory,
network or weights; what it counts is what training would move. The shapes are those of the checkpoints' config.json.
Gives up: checkpoints that are not listed are refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ser.models.base import Heads, SERModel, count_parameters
from ser.models.config import FusedConfig, LinguisticConfig, PretrainedConfig, ProbeConfig
from ser.models.fused import Fused
from ser.models.io import _make
from ser.models.tokens import built
from shards.errors import UserError

_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "conv_bias": True,
    "do_stable_layer_norm": True, "feat_extract_norm": "layer",
}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {
    "facebook/hubert-base-ls960": {"model_type": "hubert", "feat_proj_layer_norm": True},
    "facebook/hubert-large-ll60k": {"model_type": "hubert", "feat_proj_layer_norm": True, **_LARGE},
    "ntu-spml/distilhubert": {"model_type": "hubert", "num_hidden_layers": 2, "feat_proj_layer_norm": False},
    "distilbert-base-uncased": {"model_type": "distilbert", "vocab_size": 30522},
    "bert-base-uncased": {"model_type": "bert", "vocab_size": 30522},
}


def blueprint(
    config: Any, classes: int, dimensions: bool, components: Mapping[str, Any] | None = None
) -> SERModel:
    """The model of a configuration on the meta device.

    Args:
        config: A parsed configuration; a component of None is looked up in `components`.
        classes, dimensions: As for `ser.models.build`.
        components: Configurations of the recipe's models by name.

    Raises:
        UserError: A checkpoint that is not listed in `KNOWN`.
    """
    # modules that compute constants when imported must do so on a real device
    import ser.models.linguistic
    import ser.models.students  # noqa: F401

    with torch.device("meta"):
        return _blueprint(config, classes, dimensions, components or {})


def _blueprint(config: Any, classes: int, dimensions: bool, components: Mapping[str, Any]) -> SERModel:
    given: Any = config  # keeps its own type below, whatever is asked of it here
    if isinstance(config, FusedConfig):
        # experts of a product keep their heads, other components bring their embedding alone
        heads = (classes, dimensions) if config.mode == "product" else (0, False)
        parts = {
            name: _blueprint(part or components[name], *heads, components)
            for name, part in config.components.items()
        }
        return Fused(config, classes, dimensions, parts)
    if not isinstance(config, PretrainedConfig):
        return _make(given, classes, dimensions)
    if config.name is None:
        return _make(given, classes, dimensions, texts=["a"])
    if config.name not in KNOWN:
        raise UserError(
            f"the shape of {config.name} is not known here, so it cannot be counted without the hub",
            where="model.name",
            hint=f"known: {', '.join(KNOWN)}",
        )
    from transformers import CONFIG_MAPPING

    facts = dict(KNOWN[config.name])
    shape = CONFIG_MAPPING[facts.pop("model_type")](**facts)
    if config.num_layers is not None:
        shape.num_hidden_layers = config.num_layers
    skeleton: dict[str, Any] = {"backbone": shape.to_dict(), "normalise": True}
    files = {}
    if isinstance(config, LinguisticConfig):
        files = {"tokenizer.json": built(["a"], "words", 8).to_bytes()}
    return _make(given, classes, dimensions, skeleton=skeleton, files=files)


@dataclass(frozen=True)
class Size:
    """Parameters of one model: all, those that training moves, and those of the backbones without heads."""

    name: str
    total: int
    trainable: int
    backbone: int
    backbone_trainable: int

    @property
    def training_bytes(self) -> int:
        """Weights, gradients and AdamW's two moments in fp32; activations come on top."""
        return 4 * self.total + 12 * self.trainable


def size_of(name: str, model: SERModel) -> Size:
    """Count a model (a blueprint or a real one)."""
    whole = count_parameters(model)
    heads = [m for m in model.modules() if isinstance(m, Heads)]
    inside = {id(p): p for head in heads for p in head.parameters()}
    total = sum(p.numel() for p in inside.values())
    trainable = sum(p.numel() for p in inside.values() if p.requires_grad)
    return Size(
        name, whole["total"], whole["trainable"], whole["total"] - total, whole["trainable"] - trainable
    )


def sizes(recipe: Any) -> list[Size]:
    """Every model of a recipe, counted on the meta device (probes and classical models by what they are themselves)."""
    from ser.agreement import outputs
    from ser.protocol import load_protocol

    protocol = load_protocol(recipe.protocol)
    configs = {name: entry.model for name, entry in recipe.models.items()}
    out = []
    for name, entry in recipe.models.items():
        if entry.classical:
            continue
        said = outputs(recipe, name)
        model = blueprint(
            configs[name], len(protocol.classes) if said.classes else 0, said.dimensions, configs
        )
        below = 0
        if isinstance(entry.model, ProbeConfig):
            below = size_of(name, blueprint(configs[entry.model.encoder], 0, True, configs)).backbone
        found = size_of(name, model)
        out.append(
            Size(name, found.total + below, found.trainable, found.backbone + below, found.backbone_trainable)
        )
    return out
