"""Probes of a frozen encoder: small heads over its hidden states, one layer's or a softmax-weighted sum a question.

Guarantees: the encoder is no part of the model and gets no gradient; every state is standardised by the mean and
deviation of the training rows (`fit_normalisation`), so that a layer's scale is no advantage.
Gives up: time. A probe hears each layer's mean over the utterance and nothing of its course.
"""

import torch
from torch import Tensor, nn

from ser.models.base import DIMENSIONS, Heads, Inputs, ModelOutput, SERModel
from ser.models.config import ProbeConfig

LAYERS = "layers"


class Probe(SERModel):
    """Reads `batch.features["layers"]` (B, states, size).

    With a layer: Linear, ReLU, Linear on that layer alone. With "weighted": for each question (three dimensions, and the
    classes together) weights of its own, softmax over states (Yang et al. 2021, SUPERB, there one set for a task), and a
    network of its own on the weighted sum.
    """

    inputs = frozenset({LAYERS})
    config: ProbeConfig
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ProbeConfig, classes: int, dimensions: bool):
        super().__init__(config, classes, dimensions)
        self.register_buffer("mean", torch.zeros(config.states, config.size))
        self.register_buffer("deviation", torch.ones(config.states, config.size))
        self.questions = [*(DIMENSIONS if dimensions else ()), *(["classes"] if classes else [])]
        if config.layer == "weighted":
            self.weights = nn.Parameter(torch.zeros(len(self.questions), config.states))
            self.heads = nn.ModuleList(
                Heads(config.size, config, classes if question == "classes" else 1, False)
                for question in self.questions
            )
            self.embedding_size = sum(head.size for head in self._heads())
        else:
            self.heads = nn.ModuleList([Heads(config.size, config, classes, dimensions)])
            self.embedding_size = self._heads()[0].size
        if dimensions and config.layer == "weighted":
            for head in self._heads()[: len(DIMENSIONS)]:
                assert head.categorical is not None
                nn.init.constant_(head.categorical.bias, 0.5)

    def answer(self, batch: Inputs) -> ModelOutput:
        states = (batch.features[LAYERS].to(self.dtype) - self.mean) / self.deviation
        there = batch.lengths > 0
        if self.config.layer != "weighted":
            return self._heads()[0](states[:, self.config.layer], there)
        pooled = torch.einsum("qs,bse->qbe", self.weights.softmax(1), states)
        said = [head(p, there) for head, p in zip(self._heads(), pooled, strict=True)]
        values = dict(zip(self.questions, said, strict=True))
        dimensions = None
        if self.dimensions:
            dimensions = torch.cat([values[name].logits for name in DIMENSIONS], 1)
        return ModelOutput(
            logits=values["classes"].logits if self.classes else None,
            dimensions=dimensions,
            embedding=torch.cat([one.embedding for one in said], 1),
            has_input=there,
        )

    def fit_normalisation(self, mean: Tensor, deviation: Tensor) -> None:
        """Take mean and deviation (states, size) of the training rows."""
        with torch.no_grad():
            self.mean.copy_(mean)
            self.deviation.copy_(deviation.clamp_min(1e-5))

    def frame_sizes(self) -> dict[str, int]:
        return {LAYERS: self.config.size}

    def shares(self) -> dict[str, list[float]]:
        """Question -> its softmax weights over the states; empty for a probe of one layer."""
        if self.config.layer != "weighted":
            return {}
        return dict(zip(self.questions, self.weights.detach().softmax(1).tolist(), strict=True))

    def _heads(self) -> list[Heads]:
        return [head for head in self.heads if isinstance(head, Heads)]
