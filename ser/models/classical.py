"""A linear classifier over the functionals of an utterance: standardise, then W x + b.

The weights do not come from gradient steps but from scikit-learn (`ser.classical`); once fitted it is a model like any
other: it is saved, loaded, evaluated and reported in the same way, and needs no scikit-learn to answer.
"""

import torch
from torch import Tensor, nn

from ser.features.functionals import SIZES
from ser.models.base import Inputs, ModelOutput, SERModel
from ser.models.config import ClassicalConfig
from ser.models.layers import Normalise
from shards.errors import UserError


class Classical(SERModel):
    """Reads `batch.features["egemaps"]` or `["mfcc"]`, (B, 1, D): one frame holds an utterance's functionals."""

    config: ClassicalConfig

    def __init__(self, config: ClassicalConfig, classes: int, dimensions: bool):
        # No dimension head: a dimension that nothing has fitted would be answered by chance.
        super().__init__(config, classes, False)
        if not classes:
            raise UserError(
                "a classical model tells classes apart, and the protocol has none", where="classical model"
            )
        size = SIZES[config.features]
        self.inputs = frozenset({config.features})
        self.normalise = Normalise(size, "fitted")
        self.linear = nn.Linear(size, classes)
        self.embedding_size = size

    def answer(self, batch: Inputs) -> ModelOutput:
        frames = batch.features[self.config.features]
        there = batch.feature_lengths[self.config.features] > 0
        if frames.shape[1] == 0:
            frames = frames.new_zeros(len(frames), 1, self.embedding_size)
        vector = self.normalise(frames[:, :1].to(self.dtype), there[:, None])[:, 0]
        return ModelOutput(torch.where(there[:, None], self.linear(vector), 0.0), None, vector, there)

    def set_weights(self, mean: Tensor, deviation: Tensor, weights: Tensor, bias: Tensor) -> None:
        """Take fitted values: (D,) mean and deviation of the training functionals, (K, D) weights and (K,) bias."""
        self.normalise.fit(mean, deviation)
        with torch.no_grad():
            self.linear.weight.copy_(weights)
            self.linear.bias.copy_(bias)

    def frame_sizes(self) -> dict[str, int]:
        return {self.config.features: SIZES[self.config.features]}
