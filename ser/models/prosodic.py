"""The prosodic teacher: low-level descriptors of pitch, loudness, spectrum and voice quality, frame by frame."""

import torch
from torch import Tensor, nn

from ser.features.prosody import NAMES, SPECTRAL
from ser.models.base import Heads, Inputs, ModelOutput, SERModel
from ser.models.config import FrameConfig, ProsodicConfig
from ser.models.layers import FrameNetwork
from ser.models.statistics import Functionals
from shards.errors import UserError


class FrameModel(SERModel):
    """A frame network with heads; a subclass says where the frames come from."""

    def __init__(self, config: FrameConfig, classes: int, dimensions: bool):
        super().__init__(config, classes, dimensions)
        self.network = FrameNetwork(config)
        self.functionals = self.make_functionals() if config.functionals else None
        size = self.network.size + (self.functionals.size if self.functionals is not None else 0)
        self.heads = Heads(size, config, classes, dimensions)
        self.embedding_size = self.heads.size
        self.sequence_size = self.network.mixed

    def frames(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        """Features (B, T, F) and their lengths (B,)."""
        raise NotImplementedError

    def _checked(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        frames, lengths = self.frames(batch)
        if frames.shape[-1] != self.config.inputs_size:
            raise UserError(
                f"the frames have {frames.shape[-1]} features, the model was built for {self.config.inputs_size}",
                where=f"{self.config.kind} model",
                hint="make the stored features' setting and the model's agree",
            )
        return frames, lengths

    def sequence(self, batch: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        frames, lengths = self._checked(batch)
        hidden, mask, _ = self.network.hidden(frames, lengths)
        return hidden, mask, lengths > 0

    def unused_in_sequence(self) -> list[nn.Module]:
        return [self.heads, self.network.pool]

    def answer(self, batch: Inputs) -> ModelOutput:
        frames, lengths = self._checked(batch)
        pooled = self.network(frames, lengths)
        if self.functionals is not None:
            pooled = torch.cat([pooled, self.functionals(frames, lengths).to(pooled.dtype)], -1)
        return self.heads(pooled, lengths > 0)

    def make_functionals(self) -> Functionals:
        """Statistics of this model's frames over an utterance."""
        return Functionals(self.config.inputs_size)

    def fit_normalisation(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and standard deviation (F,) of the training frames; only for `normalise: fitted` and `level`.

        Raises:
            UserError: Where the model normalises otherwise, or the sizes differ.
        """
        if self.config.normalise not in ("fitted", "level"):
            raise UserError(
                f"the model has normalise: {self.config.normalise}", hint="set normalise: fitted or level"
            )
        mean, deviation = torch.as_tensor(mean), torch.as_tensor(deviation)
        if mean.shape != (self.config.inputs_size,) or deviation.shape != mean.shape:
            raise UserError(
                f"mean and deviation must have {self.config.inputs_size} values, got {tuple(mean.shape)}"
            )
        if not (mean.isfinite().all() and deviation.isfinite().all()):
            raise UserError("mean or deviation of the training frames is not finite")
        self.network.normalise.fit(mean, deviation)


class Prosodic(FrameModel):
    """Reads `batch.features["prosody"]` (B, T, 25)."""

    inputs = frozenset({"prosody"})
    config: ProsodicConfig

    def frames(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        return batch.features["prosody"], batch.feature_lengths["prosody"]

    def frame_sizes(self) -> dict[str, int]:
        return {"prosody": self.config.descriptors}

    def make_functionals(self) -> Functionals:
        if self.config.descriptors != len(NAMES):
            return super().make_functionals()
        return Functionals(len(NAMES), voiced=(NAMES.index("F0semitoneFrom27.5Hz"), SPECTRAL))
