"""TC-GRU: streams of frames joined, a time convolution beside a bypass, GRU layers, an embedding layer, V/A/D out.

    streams (B, T, d_i) --stack, normalise, LayerNorm each, concat--> x --[relu(conv(x)), x]--> GRU -> GRU -> last true
    frame -> linear embedding -> linear heads                                   (Mitra et al. 2022, figure 1)

Guarantees: padding changes no answer (the convolution sees zeros behind an utterance's end, the GRU runs forward, and
the last true frame is taken by mask); a row without frames in some stream answers zeros with `has_input` False.
Streams must run at one frame rate; where their lengths differ by a few frames, the surplus is cut at the end.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ser.models.base import Heads, Inputs, ModelOutput, SERModel
from ser.models.config import StreamConfig, TCGRUConfig
from ser.models.layers import Normalise, Recurrent, TimeConv
from ser.models.pooling import frame_mask, last_frame, masked
from shards.errors import UserError

if TYPE_CHECKING:
    from ser.features.mel import LogMel

# Encoders and log-mels frame the ends of an utterance differently, by a handful of frames.
MOST_APART = 8


class Stream(nn.Module):
    """One stream: (B, T, size) and lengths -> (B, T // stack, size * stack) and lengths."""

    def __init__(self, config: StreamConfig, size: int):
        super().__init__()
        self.stack, self.inputs, self.size = config.stack, size, size * config.stack
        self.normalise = Normalise(size, config.normalise)
        self.norm = nn.LayerNorm(self.size) if config.layer_norm else nn.Identity()

    def forward(self, x: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mask = frame_mask(lengths, x.shape[1])
        # Features far from zero lose their detail in half precision: cast once they are centred.
        x = self.normalise(x.to(torch.promote_types(dtype, torch.float32)), mask).to(dtype)
        if x.shape[1] == 0:
            x = nn.functional.pad(x, (0, 0, 0, 1))
        if self.stack > 1:
            # A row of fewer frames than `stack` still gives one, filled up with zeros.
            whole = (x.shape[1] + self.stack - 1) // self.stack  # ONNX divides negative numbers towards zero
            x = nn.functional.pad(x, (0, 0, 0, whole * self.stack - x.shape[1]))
            x = x.reshape(x.shape[0], whole, self.size)
            lengths = torch.where(lengths > 0, (lengths // self.stack).clamp_min(1), 0)
        return self.norm(x), lengths


class TCGRU(SERModel):
    """Reads the frames of its streams from `batch.features`."""

    config: TCGRUConfig

    def __init__(self, config: TCGRUConfig, classes: int, dimensions: bool):
        super().__init__(config, classes, dimensions)
        unknown = [name for name in config.encoders if config.streams[name].size is None]
        if unknown:
            raise UserError(
                f"the frame size of {', '.join(unknown)} is not known",
                where="tcgru model",
                hint="name an encoder of the recipe (role: encoder), or give the stream's `size`",
            )
        mel = "mel" if config.features == "stored" else "waveform"
        self.inputs = frozenset(mel if name == "mel" else name for name in config.streams)
        self.streams = nn.ModuleDict(
            {
                name: Stream(s, config.bands if name == "mel" else s.size or 0)
                for name, s in config.streams.items()
            }
        )
        size = sum(stream.size for stream in self.stream_list())
        self.conv = TimeConv(size, config.width, config.kernel)
        joined = config.width + (size if config.bypass else 0)
        self.recurrent = nn.ModuleList(
            Recurrent(joined if i == 0 else config.width, config.width, both=False)
            for i in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.embed = nn.Linear(config.width, config.embedding)
        self.heads = Heads(
            config.embedding, config.model_copy(update={"embedding": None}), classes, dimensions
        )
        self.embedding_size = config.embedding
        # In a list, so that it is no submodule: nothing in it is trained, saved or cast.
        self._front: list[LogMel] = []

    def stream_list(self) -> list[Stream]:
        """The streams in their order."""
        return [stream for stream in self.streams.values() if isinstance(stream, Stream)]

    def answer(self, batch: Inputs) -> ModelOutput:
        dtype = self.embed.weight.dtype
        parts, counts = [], []
        for name, stream in zip(self.config.streams, self.stream_list()):
            frames, lengths = self.frames(batch, name)
            if frames.shape[-1] != stream.inputs:
                raise UserError(
                    f"the frames of {name} have {frames.shape[-1]} numbers, the model was built for {stream.inputs}",
                    where="tcgru model",
                    hint="make the stored feature's or the encoder's setting and the model's agree",
                )
            x, n = stream(frames, lengths, dtype)
            parts.append(x)
            counts.append(n)
        lengths = self._common(torch.stack(counts))
        # No stream has more true frames than the shortest tensor; a number out of `lengths` itself would not export.
        longest = min(x.shape[1] for x in parts)
        parts = [x[:, :longest] for x in parts]
        mask = frame_mask(lengths, longest)
        x = masked(torch.cat(parts, -1), mask)
        y = torch.relu(self.conv(x))
        x = masked(torch.cat([y, x], -1) if self.config.bypass else y, mask)
        for layer in self.recurrent:
            x = layer(self.dropout(x), mask)
        embedding = self.embed(self.dropout(last_frame(x, mask)))
        kind = self.config.embedding_activation
        embedding = embedding if kind == "none" else getattr(torch, kind)(embedding)
        return self.heads(embedding, lengths > 0)

    def _common(self, counts: Tensor) -> Tensor:
        """(B,) frames that all streams have, from (streams, B); a row without frames in one of them has none."""
        least, most = counts.amin(0), counts.amax(0)
        apart = torch.where(least > 0, most - least, 0)
        # A frame more a second is a rounding of the hop; twice as many is another frame rate.
        if len(counts) > 1 and bool((apart > MOST_APART + most // 50).any()):
            worst = int(apart.argmax())
            told = ", ".join(f"{name} {int(n)}" for name, n in zip(self.config.streams, counts[:, worst]))
            raise UserError(
                f"the streams do not run at one frame rate: frames of one utterance are {told}",
                where="tcgru model",
                hint="set `stack` of the faster one (10 ms log-mels beside 20 ms encoder frames: stack: 2)",
            )
        return least

    def frames(self, batch: Inputs, name: str) -> tuple[Tensor, Tensor]:
        """Frames (B, T, F) and lengths (B,) of a stream; the log-mel is computed where the batch does not bring it."""
        if name in batch.features:
            return batch.features[name], batch.feature_lengths[name]
        if name != "mel":
            raise UserError(
                f"the batch carries no frames of {name}", where="tcgru model", hint="attach the encoder"
            )
        if not self._front:
            from ser.features.mel import LogMel

            self._front.append(LogMel(**self.config.mel))
        assert batch.waveform is not None
        wave = batch.waveform.float()
        wave = torch.where(frame_mask(batch.lengths, wave.shape[1]), wave, 0.0)
        with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
            frames, counts = self._front[0].to(wave.device)(wave, batch.lengths)
        return frames, torch.where(batch.lengths > 0, counts, 0)

    def fitted(self) -> list[str]:
        """Streams that want mean and deviation of the training frames (`fit_stream`)."""
        return [n for n, s in self.config.streams.items() if s.normalise in ("fitted", "level")]

    def fit_stream(self, name: str, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation (F,) of a stream's training frames."""
        stream = self.streams[name]
        assert isinstance(stream, Stream)
        stream.normalise.fit(mean, deviation)

    def frame_sizes(self) -> dict[str, int]:
        return {name: stream.inputs for name, stream in zip(self.config.streams, self.stream_list())}
