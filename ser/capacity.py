"""What a recipe's models take, known before any weight is there: parameters, and memory of weights, gradients and moments.

Models are built on torch's meta device, hub names by the shapes of `ser.models.shapes`, so no network is asked and no
memory is used.

Guarantees: parameters are those of the real architecture; the memory of states follows ZeRO (Rajbhandari et al. 2020,
section 3.1): bf16 weights and gradients 2 bytes each, fp32 weights and Adam's two moments 12 bytes a trained parameter,
all of them divided by the number of GPUs in stage 3; a frozen parameter is 2 bytes of weights, divided likewise.
Gives up: activations (`ser.activations`) and buffers of communication (`ser.estimate`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ser.agreement import outputs
from ser.models import SERModel
from ser.models.base import Heads
from ser.models.config import FusedConfig, LinguisticConfig, ModelConfig, PretrainedConfig, ProbeConfig
from ser.models.io import empty
from ser.models.shapes import SHAPES
from ser.models.streams import encoders_read, with_sizes
from ser.models.tokens import built
from ser.protocol import load_protocol
from ser.recipe import Recipe
from shards.errors import UserError

GIB = 2**30
HIDDEN_SIZE = 768  # of transformers' speech encoders, where a configuration does not say


@dataclass(frozen=True)
class Need:
    """One model of a recipe.

    Attributes:
        name: In the recipe.
        parameters, trainable: Numbers; a probe's include the encoder that it reads.
        backbone, backbone_trainable: The same without heads, as papers count.
        inference: Bytes of bf16 weights on one GPU.
        training: Bytes of states a GPU in the recipe's ZeRO stage, 0 for a model that is not trained.
        answers: Numbers that it says of an utterance: class logits and dimensions.
        embedding: Size of its embedding.
    """

    name: str
    parameters: int
    trainable: int
    backbone: int
    backbone_trainable: int
    inference: int
    training: int
    answers: int = 0
    embedding: int = 0


def plan(recipe: Recipe, gpus: int = 1) -> list[Need]:
    """What each model needs on `gpus` GPUs; classical models, and answers that lie in files, need nothing.

    Raises:
        UserError: A hub name whose shape is not known.
    """
    count = len(load_protocol(recipe.protocol).classes)
    needs = []
    for name, entry in recipe.models.items():
        if entry.classical or entry.model.kind == "external":
            continue
        answers = outputs(recipe, name)
        model = on_meta(whole(recipe, entry.model), count if answers.classes else 0, answers.dimensions)
        total, heads = _counted(model.parameters()), _counted(_heads(model))
        below = 0
        if isinstance(entry.model, ProbeConfig):
            encoder = on_meta(whole(recipe, recipe.models[entry.model.encoder].model), 0, True)
            below = _counted(encoder.parameters())[0] - _counted(_heads(encoder))[0]
        config = entry.train
        stage = config.zero_stage if config is not None else 0
        wide = config is not None and config.precision == "fp32"
        training = states(total[0] + below, total[1], stage, gpus, wide) if config is not None else 0
        needs.append(
            Need(
                name, total[0] + below, total[1], total[0] - heads[0] + below, total[1] - heads[1],
                2 * (total[0] + below), training, model.classes + 3 * model.dimensions, model.embedding_size,
            )
        )  # fmt: skip
    return needs


def _counted(parameters: Iterable[torch.nn.Parameter]) -> tuple[int, int]:
    """Numbers in all, and those that training moves; a shared parameter counts once."""
    each = {id(p): p for p in parameters}.values()
    return sum(p.numel() for p in each), sum(p.numel() for p in each if p.requires_grad)


def _heads(model: SERModel) -> list[torch.nn.Parameter]:
    return [p for part in model.modules() if isinstance(part, Heads) for p in part.parameters()]


def states(
    total: int, trainable: int, stage: int, gpus: int, fp32: bool = False, offload: str = "none"
) -> int:
    """Bytes of weights, gradients and optimiser states on each of `gpus` GPUs under a ZeRO stage.

    `offload` leaves out what lies in the host's memory instead: "optimizer" what the optimiser works on, "parameters" the
    weights as well.
    """
    word = 4 if fp32 else 2
    share = [1 if stage < s else gpus for s in (3, 2, 1)]  # of weights, gradients, moments
    # In fp32 the weights are their own masters, but DeepSpeed 0.19 copies them all the same in stages 1 and 2.
    moments = 8 if fp32 and stage in (0, 3) else 12
    weights = 0 if offload == "parameters" else word * total // share[0]
    return weights + (
        0 if offload != "none" else word * trainable // share[1] + moments * trainable // share[2]
    )


def whole(recipe: Recipe, config: ModelConfig) -> ModelConfig:
    """A configuration with what stands elsewhere in the recipe filled in: components, and sizes of encoders' frames."""
    if isinstance(config, FusedConfig):
        parts = {
            name: whole(recipe, part or recipe.models[name].model) for name, part in config.components.items()
        }
        return config.model_copy(update={"components": parts})
    return with_sizes(config, {name: _frame_size(recipe, name) for name in encoders_read(config)})


def _frame_size(recipe: Recipe, name: str) -> int:
    config = recipe.models[name].model
    assert isinstance(config, PretrainedConfig), "the recipe has checked that it is an encoder"
    return int(shape_of(config).get("hidden_size", HIDDEN_SIZE))


def on_meta(config: ModelConfig, classes: int, dimensions: bool) -> SERModel:
    """The model without weights: every parameter has its shape and no memory."""
    # Their tables of constants are worked out when they are first imported, which no meta device can do.
    import ser.models.fused
    import ser.models.students  # noqa: F401

    with torch.device("meta"):
        return hollow(config, classes, dimensions)


def hollow(config: ModelConfig, classes: int, dimensions: bool) -> SERModel:
    """The model with whatever weights there are: right shapes and speed, answers of no meaning."""
    return empty(config, classes, dimensions, skeleton(config, classes, dimensions), files(config))


def shape_of(config: PretrainedConfig) -> dict[str, Any]:
    """The transformers configuration behind a hub name or given in the recipe, cut to `num_layers`.

    A text encoder with random weights has the recipe's largest `vocabulary`; its training texts may fill less of it.

    Raises:
        UserError: The name's shape is not known here.
    """
    if config.config is None and config.name not in SHAPES:
        raise UserError(
            f"the shape of {config.name!r} is not known without a network",
            where="ser.models.shapes",
            hint=f"known: {', '.join(SHAPES)}; or give `config:` instead of `name:`",
        )
    shape = dict(config.config if config.config is not None else SHAPES[str(config.name)])
    if config.num_layers is not None:
        shape["num_hidden_layers"] = config.num_layers
    if isinstance(config, LinguisticConfig) and config.config is not None:
        shape.setdefault("vocab_size", config.vocabulary)
    return shape


def skeleton(config: ModelConfig, classes: int, dimensions: bool) -> dict[str, Any]:
    """What `ser.models.io` rebuilds an empty model from; components have heads of their own, as when trained alone."""
    if isinstance(config, FusedConfig):
        parts = {name: part for name, part in config.components.items() if part is not None}
        heads = {"classes": classes, "dimensions": dimensions}
        return {
            name: {**heads, "skeleton": skeleton(part, classes, dimensions)} for name, part in parts.items()
        }
    if isinstance(config, PretrainedConfig):
        # as every trained model has it; a layer that is left out now and then would be counted now and then
        return {"backbone": shape_of(config) | {"layerdrop": 0.0}, "normalise": True}
    return {}


def files(config: ModelConfig) -> dict[str, bytes]:
    """Tokenizers of one word: the vocabulary's size stands in the shape."""
    if isinstance(config, FusedConfig):
        return {
            f"{name}.{file}": content
            for name, part in config.components.items()
            if part is not None
            for file, content in files(part).items()
        }
    return (
        {"tokenizer.json": built(["word"], "words", 8).to_bytes()}
        if isinstance(config, LinguisticConfig)
        else {}
    )
