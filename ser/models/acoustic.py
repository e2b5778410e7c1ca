"""The acoustic teacher: HuBERT, wav2vec2 or WavLM over the waveform.

Guarantees: padding does not change an answer (float32 within 1e-4, float64 within 1e-9 of the row alone), for
layer-norm encoders by their attention mask and for group-norm encoders because the norm takes its statistics over
true frames; with `group_norm: plain` it does, and `needs_equal_lengths` says so. Layer drop is off (it breaks ZeRO).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.models import hub
from ser.models.base import Heads, Inputs, ModelOutput, SERModel
from ser.models.config import AcousticConfig
from ser.models.pooling import POOLING, Mean, frame_mask, masked_mean
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE


class LayerMix(nn.Module):
    """Softmax-weighted sum of equal-shaped tensors, the layers' weights learned (Yang et al. 2021, SUPERB)."""

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))

    def forward(self, *hidden: Tensor) -> Tensor:
        weights = self.weights.softmax(0)
        total = weights[0] * hidden[0]
        for i in range(1, len(hidden)):
            total = total + weights[i] * hidden[i]
        return total


class MaskedGroupNorm(nn.Module):
    """The first norm of HuBERT-base and wav2vec2-base, per channel over time, with statistics of true frames only.

    It equals torch's GroupNorm with one channel a group on a row alone. `lengths` (B,) of its input in frames is set
    before each forward pass, because the backbone between hands on a single tensor.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        assert norm.num_groups == norm.num_channels
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.lengths: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.lengths is not None
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mask = frame_mask(self.lengths, x.shape[-1]).unsqueeze(1)
        count = self.lengths.clamp_min(1)[:, None, None]
        mean = (wide * mask).sum(-1, keepdim=True) / count
        centred = wide - mean
        variance = (centred.square() * mask).sum(-1, keepdim=True) / count
        y = centred * (variance + self.eps).rsqrt()
        return (y * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


class Acoustic(SERModel):
    """Reads `batch.waveform` (B, samples) at 16 kHz and `batch.lengths`."""

    inputs = frozenset({"waveform"})
    config: AcousticConfig
    # A transformers model: its modules are reached by name.
    encoder: Any

    def __init__(
        self, config: AcousticConfig, classes: int, dimensions: bool, skeleton: dict[str, Any] | None = None
    ):
        super().__init__(config, classes, dimensions)
        overrides = {
            "layerdrop": 0.0,
            "mask_time_prob": config.mask_time_prob,
            "mask_feature_prob": 0.0,
            "add_adapter": False,
        }
        self.encoder = hub.load_backbone(config, overrides, (skeleton or {}).get("backbone"))
        shape = self.encoder.config
        if not hasattr(shape, "conv_kernel") or not hasattr(self.encoder, "feature_extractor"):
            raise UserError(
                f"a {shape.model_type} backbone does not read waveforms as HuBERT does",
                where=str(config.name or "config"),
                hint="use a hubert, wav2vec2 or wavlm checkpoint",
            )
        if skeleton is not None:
            self.normalise = bool(skeleton["normalise"])
        else:
            self.normalise = (
                hub.checkpoint_normalises(config) if config.normalise is None else config.normalise
            )
        group = getattr(shape, "feat_extract_norm", "layer") == "group"
        if group and config.group_norm == "masked":
            first = self.encoder.feature_extractor.conv_layers[0]
            first.layer_norm = MaskedGroupNorm(first.layer_norm)
        self.masked_norm = group and config.group_norm == "masked"
        self.needs_equal_lengths = group and config.group_norm == "plain"
        if config.gradient_checkpointing:
            self.encoder.activation_checkpointing_enable({"use_reentrant": False})
        self.freeze(config.freeze)
        self.mix = LayerMix(shape.num_hidden_layers + 1) if config.layers == "weighted" else None
        self.pool = POOLING[config.pooling](shape.hidden_size)
        self.heads = Heads(self.pool.size, config, classes, dimensions)
        self.embedding_size = self.heads.size
        self.sequence_size = shape.hidden_size

    def freeze(self, part: str) -> None:
        """Take a part of the encoder out of training; see `AcousticConfig.freeze`."""
        if part == "none":
            return
        if part not in ("feature_encoder", "encoder"):
            raise UserError(f"a speech encoder has no {part} to freeze", where="freeze")
        extractor = self.encoder.feature_extractor
        hub.freeze(self.encoder if part == "encoder" else extractor)
        # Otherwise the extractor asks for gradients of the waveform itself.
        extractor._requires_grad = False

    def answer(self, batch: Inputs) -> ModelOutput:
        hidden, mask = self._hidden(batch, every_layer=self.mix is not None)
        if self.mix is None:
            pooled = self.pool(hidden[-1], mask)
        elif isinstance(self.pool, Mean):
            # Mean and layer mix are both linear: pooling first keeps (B, E) a layer instead of (B, T, E).
            pooled = self.mix(*(masked_mean(h, mask) for h in hidden))
        else:
            pooled = self.pool(self.mix(*hidden), mask)
        return self.heads(pooled, batch.lengths > 0)

    def sequence(self, batch: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        hidden, mask = self._hidden(batch, every_layer=self.mix is not None)
        return hidden[-1] if self.mix is None else self.mix(*hidden), mask, batch.lengths > 0

    def unused_in_sequence(self) -> list[nn.Module]:
        return [self.heads, self.pool]

    def layer_pooled(self, batch: Inputs) -> Tensor:
        """(B, layers + 1, size): the masked mean of every hidden state, for layer-wise targets and probes."""
        hidden, mask = self._hidden(batch, every_layer=True)
        return torch.stack([masked_mean(h, mask) for h in hidden], 1)

    def train(self, mode: bool = True) -> "Acoustic":
        super().train(mode)
        if self.config.freeze == "encoder":
            self.encoder.eval()
        return self

    def skeleton(self) -> dict[str, Any]:
        # apply_spec_augment is switched by the batch at hand.
        shape = {**hub.stored_config(self.encoder), "apply_spec_augment": True}
        return {"backbone": shape, "normalise": self.normalise}

    def _hidden(self, batch: Inputs, every_layer: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        assert batch.waveform is not None
        shape = self.encoder.config
        # The shortest waveform that gives one frame; shorter ones are continued with silence.
        least = 1
        for kernel, stride in zip(reversed(shape.conv_kernel), reversed(shape.conv_stride)):
            least = (least - 1) * stride + kernel
        spoken, wave = batch.lengths, batch.waveform.to(torch.promote_types(self.dtype, torch.float32))
        if self.config.pad_seconds is not None:
            whole = round(self.config.pad_seconds * SAMPLE_RATE)
            spoken = torch.where(spoken > 0, spoken.clamp_min(whole), 0)
            wave = F.pad(wave, (0, max(0, whole - wave.shape[1])))
        lengths = spoken.clamp_min(least)
        samples = frame_mask(spoken, wave.shape[1])
        wave = torch.where(samples, wave, 0.0)
        if self.normalise:
            count = spoken.clamp_min(1)[:, None]
            wave = torch.where(samples, wave - wave.sum(1, keepdim=True) / count, 0.0)
            wave = wave / (wave.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        wave = F.pad(wave, (0, max(0, least - wave.shape[1]))).to(self.dtype)
        if self.masked_norm:
            # floor((n - kernel) / stride) + 1 frames leave the first convolution.
            norm = self.encoder.feature_extractor.conv_layers[0].layer_norm
            norm.lengths = (lengths - shape.conv_kernel[0]) // shape.conv_stride[0] + 1
        attention = None if self.needs_equal_lengths else frame_mask(lengths, wave.shape[1]).long()
        frames = lengths
        for kernel, stride in zip(shape.conv_kernel, shape.conv_stride):
            frames = (frames - kernel) // stride + 1
        # A mask span longer than the batch's longest row is an error in transformers.
        shape.apply_spec_augment = (
            self.config.mask_time_prob > 0 and int(frames.max()) >= shape.mask_time_length
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.freeze != "encoder"):
            out = self.encoder(wave, attention_mask=attention, output_hidden_states=every_layer)
        # The last state after the encoder's final norm, as the large models were trained to be read.
        earlier = out.hidden_states[: shape.num_hidden_layers] if every_layer else ()
        hidden = (*earlier, out.last_hidden_state)
        return hidden, frame_mask(frames, hidden[-1].shape[1])
