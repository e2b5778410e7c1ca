"""Students: the small convolutional one over log-mel frames, and a small HuBERT."""

import torch
from torch import Tensor

from ser.models.acoustic import Acoustic
from ser.models.base import Inputs
from ser.models.config import ConvConfig, EncoderConfig
from ser.models.pooling import frame_mask
from ser.models.prosodic import FrameModel
from ser.models.statistics import Functionals

CEPSTRA = 20


class Conv(FrameModel):
    """Hears `batch.features["mel"]` where the batch has it, else computes the same frames from the waveform.

    With `features: stored` training reads the dataset's log-mel; the saved model still answers to a waveform alone.
    """

    config: ConvConfig

    def __init__(self, config: ConvConfig, classes: int, dimensions: bool):
        super().__init__(config, classes, dimensions)
        self.inputs = frozenset({"mel" if config.features == "stored" else "waveform"})
        # In a list, so that it is no submodule: it has nothing to train or to save, and stays in float32 whatever
        # precision the model is cast to.
        self._front: list[torch.nn.Module] = []

    def frames(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        # Where the batch carries neither, the loader was not asked: `inputs` says what to ask for.
        if "mel" in batch.features:
            return batch.features["mel"], batch.feature_lengths["mel"]
        if not self._front:
            from ser.features.mel import LogMel

            self._front.append(LogMel(**self.config.mel))
        assert batch.waveform is not None
        wave = batch.waveform.float()
        wave = torch.where(frame_mask(batch.lengths, wave.shape[1]), wave, 0.0)
        with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
            frames, counts = self._front[0].to(wave.device)(wave, batch.lengths)
        # Too short for a frame still gives one; no samples at all give none.
        return frames, torch.where(batch.lengths > 0, counts, 0)

    def frame_sizes(self) -> dict[str, int]:
        return {"mel": self.config.bands}

    def make_functionals(self) -> Functionals:
        return Functionals(self.config.bands, cepstra=min(CEPSTRA, self.config.bands))


class Encoder(Acoustic):
    """A HuBERT or DistilHuBERT student: the acoustic encoder, last layer, all of it but the convolutions trained."""

    config: EncoderConfig
