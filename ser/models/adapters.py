"""Named adapters: published emotion models whose heads transformers' Auto classes would silently leave random.

audEERING's dimensional wav2vec2 (Wagner et al. 2023, "Dawn of the transformer era in speech emotion recognition"; the
layout is that of its model card): wav2vec2, mean over time, Linear, tanh, Linear to three numbers, in its own order
arousal, dominance, valence. Here they come out as valence, arousal, dominance.

Guarantees: every weight of the head is found in the checkpoint or it is refused; the order is read from the checkpoint's
`id2label` or declared, never assumed; another scale than [0, 1] is mapped when declared. A saved model needs no checkpoint.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ser.models import hub
from ser.models.acoustic import Acoustic
from ser.models.base import DIMENSIONS, Heads
from ser.models.config import AudeeringConfig
from shards.errors import UserError


class Audeering(Acoustic):
    """The acoustic model with that head; without training it answers what the checkpoint answers."""

    config: AudeeringConfig

    def __init__(
        self, config: AudeeringConfig, classes: int, dimensions: bool, skeleton: dict[str, Any] | None = None
    ):
        super().__init__(config, classes, dimensions, skeleton)
        size = self.encoder.config.hidden_size
        self.heads = Heads(size, config.model_copy(update={"embedding": size}), classes, dimensions)
        self.heads.bend = torch.tanh
        self.embedding_size = self.heads.size
        if skeleton is None:
            self._take_head(config)

    def _take_head(self, config: AudeeringConfig) -> None:
        weights, labels = head_of(config)
        order = order_of(config.labels or labels, str(config.name))
        low, high = config.scale
        with torch.no_grad():
            assert self.heads.embed is not None
            _put(self.heads.embed, weights["dense.weight"], weights["dense.bias"], config)
            if self.heads.dimensional is not None:
                weight, bias = weights["out_proj.weight"], weights["out_proj.bias"]
                if len(weight) != len(order):
                    raise UserError(f"the head answers {len(weight)} numbers, not 3", where=str(config.name))
                _put(
                    self.heads.dimensional,
                    weight[order] / (high - low),
                    (bias[order] - low) / (high - low),
                    config,
                )


def _put(layer: nn.Linear, weight: Tensor, bias: Tensor, config: AudeeringConfig) -> None:
    if weight.shape != layer.weight.shape:
        raise UserError(
            f"the head's layer is {tuple(weight.shape)}, expected {tuple(layer.weight.shape)}",
            where=str(config.name),
        )
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def order_of(labels: tuple[str, ...] | None, where: str) -> list[int]:
    """Where valence, arousal and dominance stand in the checkpoint's own order.

    Raises:
        UserError: The labels are not these three.
    """
    names = [str(name) for name in labels or ()]
    if sorted(names) != sorted(DIMENSIONS):
        raise UserError(
            f"the checkpoint's outputs are called {', '.join(names) or 'nothing'}, not arousal, dominance and valence",
            where=where,
            hint="declare their order: labels: [arousal, dominance, valence]",
        )
    return [names.index(name) for name in DIMENSIONS]


def head_of(config: AudeeringConfig) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The checkpoint's head, {"dense.weight", ...} in float32, and its labels in order.

    Raises:
        UserError: Not that layout.
    """
    from transformers import AutoConfig, Wav2Vec2Model, Wav2Vec2PreTrainedModel

    class Head(nn.Module):
        def __init__(self, shape: Any):
            super().__init__()
            self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)
            self.out_proj = nn.Linear(shape.hidden_size, shape.num_labels)

    class Layout(Wav2Vec2PreTrainedModel):
        def __init__(self, shape: Any):
            super().__init__(shape)
            self.wav2vec2, self.classifier = Wav2Vec2Model(shape), Head(shape)
            self.post_init()

    name: Any = config.name
    source: Any = {"revision": config.revision, "local_files_only": config.local_files_only}
    with hub.hub_errors(config):
        shape = AutoConfig.from_pretrained(name, trust_remote_code=False, **source)
        if shape.model_type != "wav2vec2":
            raise UserError(
                f"a {shape.model_type} checkpoint is not audEERING's layout", where=str(config.name)
            )
        if config.num_layers is not None:
            shape.num_hidden_layers = config.num_layers
        whole: Any = Layout.from_pretrained(
            name,
            config=shape,
            output_loading_info=True,
            trust_remote_code=False,
            dtype=torch.float32,
            **source,
        )
    found, report = whole
    lost = sorted(name for name in report["missing_keys"] if name.startswith("classifier."))
    if lost:
        raise UserError(
            f"the checkpoint has no head of audEERING's layout: {lost[0]} is missing", where=str(config.name),
            hint="use kind acoustic for a checkpoint without one",
        )  # fmt: skip
    labels = getattr(shape, "id2label", None) or {}
    names = tuple(str(labels[i]) for i in sorted(labels, key=int))
    return {name: value.detach() for name, value in found.classifier.state_dict().items()}, names or None
