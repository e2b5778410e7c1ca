"""A speech encoder whose frames other models read: HuBERT, wav2vec2 or WavLM, with a transcription head if it has one.

Guarantees: those of `ser.models.acoustic` (padding changes no true frame). With training texts it gets a linear CTC head
over their characters; without (a pretrained encoder that stays as it is) it has none. Its embedding is the masked mean
of the last layer, so it can be looked at, but it answers no emotion.
"""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ser.models.acoustic import Acoustic
from ser.models.alphabet import Alphabet
from ser.models.base import Inputs, ModelOutput
from ser.models.config import SpeechConfig
from ser.models.pooling import masked, masked_mean
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE


class Speech(Acoustic):
    """Reads `batch.waveform`; `frames` gives one layer's hidden states.

    Args:
        config: Its backbone.
        texts: Training texts for the alphabet; None for no transcription head.
        skeleton: Of a saved model.
    """

    config: SpeechConfig

    def __init__(
        self,
        config: SpeechConfig,
        texts: Iterable[str | None] | None = None,
        skeleton: dict[str, Any] | None = None,
    ):
        super().__init__(config, 0, False, skeleton)
        characters = (skeleton or {}).get("characters")
        if characters is not None:
            self.alphabet: Alphabet | None = Alphabet(characters)
        else:
            self.alphabet = None if texts is None else Alphabet.of(texts)
        if self.alphabet is not None and len(self.alphabet) < 3:
            raise UserError(
                "there are no transcripts to learn characters from",
                where="speech encoder",
                hint="use a corpus with texts, or name a pretrained encoder and leave out `objective` and `train`",
            )
        size = self.encoder.config.hidden_size
        self.characters = None if self.alphabet is None else nn.Linear(size, len(self.alphabet))

    def answer(self, batch: Inputs) -> ModelOutput:
        hidden, mask = self._hidden(batch, every_layer=False)
        embedding = masked_mean(hidden[-1], mask)
        tokens = None if self.characters is None else self.characters(masked(hidden[-1], mask))
        return ModelOutput(None, None, embedding, batch.lengths > 0, tokens, mask.sum(1))

    def frames(self, batch: Inputs, layer: int = -1) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, E) after transformer layer `layer` (0 is its input, -1 the last) and true frames (B,).

        Raises:
            UserError: There is no such layer.
        """
        count = self.encoder.config.num_hidden_layers
        if not -1 <= layer <= count:
            raise UserError(
                f"no layer {layer}", where="speech encoder", hint=f"0 to {count}, or -1 for the last"
            )
        last = layer in (-1, count)
        hidden, mask = self._hidden(batch, every_layer=not last)
        chosen = hidden[-1] if last else hidden[layer]
        return masked(chosen, mask), mask.sum(1) * (batch.lengths > 0)

    @property
    def frame_size(self) -> int:
        """E."""
        return int(self.encoder.config.hidden_size)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return SAMPLE_RATE / math.prod(self.encoder.config.conv_stride)

    def skeleton(self) -> dict[str, Any]:
        own = super().skeleton() | {"frame_size": self.frame_size, "frame_rate": self.frame_rate}
        return own | ({} if self.alphabet is None else {"characters": self.alphabet.characters})
