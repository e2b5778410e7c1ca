"""The interface of every model, and the heads that most of them share.

Guarantees: one forward gives class logits, dimensions and embedding at once; a row without input (no text, no
samples, no frames) gives zeros in all three and `has_input` False; a batch of no rows is answered with empty outputs
that are still connected to every trained parameter, so that an empty slot may take part in a collective step.
"""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ser.models.config import HeadConfig

DIMENSIONS = ("valence", "arousal", "dominance")


class Inputs(Protocol):
    """What models read of a batch (`shards.loader.Batch` is one)."""

    waveform: Tensor | None
    lengths: Tensor
    features: dict[str, Tensor]
    feature_lengths: dict[str, Tensor]
    text: list[str | None] | None


class ModelOutput(NamedTuple):
    """Answers for B rows; a tuple, because DDP and ZeRO look for tensors in tuples only.

    Attributes:
        logits: (B, K), or None for a model without classes.
        dimensions: (B, 3) valence, arousal, dominance on the protocol's [0, 1] scale, or None.
        embedding: (B, E), what embedding distillation compares.
        has_input: (B,) bool, False where the model had nothing to answer from.
        tokens: (B, T, V) character scores of every frame, the blank first; only of an encoder that learns to transcribe.
        token_lengths: (B,) true frames of `tokens`.
    """

    logits: Tensor | None
    dimensions: Tensor | None
    embedding: Tensor
    has_input: Tensor
    tokens: Tensor | None = None
    token_lengths: Tensor | None = None


class Heads(nn.Module):
    """Optional embedding layer, then a linear class head and a linear dimension head."""

    def __init__(self, size: int, config: "HeadConfig", classes: int, dimensions: bool):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.embed = nn.Linear(size, config.embedding) if config.embedding else None
        self.size = config.embedding or size
        self.categorical = nn.Linear(self.size, classes) if classes else None
        self.dimensional = nn.Linear(self.size, len(DIMENSIONS)) if dimensions else None
        self.sigmoid = config.dimension_activation == "sigmoid"
        self.bend = torch.relu
        if self.dimensional is not None and not self.sigmoid:
            # The middle of the scale, so that early steps are not spent on the offset.
            nn.init.constant_(self.dimensional.bias, 0.5)

    def forward(self, pooled: Tensor, has_input: Tensor) -> ModelOutput:
        embedding = pooled if self.embed is None else self.bend(self.embed(self.dropout(pooled)))
        hidden = self.dropout(embedding)
        keep = has_input.unsqueeze(-1)
        logits = self.categorical(hidden) if self.categorical is not None else None
        dimensions = self.dimensional(hidden) if self.dimensional is not None else None
        if dimensions is not None and self.sigmoid:
            dimensions = dimensions.sigmoid()
        return ModelOutput(
            logits=None if logits is None else torch.where(keep, logits, 0.0),
            dimensions=None if dimensions is None else torch.where(keep, dimensions, 0.0),
            embedding=torch.where(keep, embedding, 0.0),
            has_input=has_input,
        )


class SERModel(nn.Module):
    """A model that hears or reads emotion.

    Attributes:
        inputs: What it reads: "waveform", "mel", "prosody", "text", and the names of encoders whose frames it reads.
        needs_equal_lengths: True where padding would change the answer; the caller then batches equal lengths.
        embedding_size: E.
        text_from: Where its texts come from, as in `shards.batch.texts`.
        attached: Encoders at hand by name, for frames that a batch does not bring (`ser.frames`); no part of the model.
        sequence_size: Channels of what `sequence` gives; 0 for a model without.
    """

    text_from: str = "text"
    inputs: frozenset[str] = frozenset()
    needs_equal_lengths: bool = False

    def __init__(self, config: Any, classes: int, dimensions: bool):
        super().__init__()
        self.config, self.classes, self.dimensions = config, int(classes), bool(dimensions)
        self.embedding_size = 0
        self.attached: dict[str, Any] = {}
        self.sequence_size = 0

    def sequence(self, batch: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states before pooling, for fusion that attends: (B, T, C), mask (B, T) and has_input (B,)."""
        raise NotImplementedError

    def unused_in_sequence(self) -> list[nn.Module]:
        """Modules that `sequence` does not reach: they would have no gradient."""
        return []

    def answer(self, batch: Inputs) -> ModelOutput:
        """Output for a batch of one row or more; what a kind of model implements."""
        raise NotImplementedError

    def forward(self, batch: Inputs) -> ModelOutput:
        """Answers for a batch; see `ModelOutput`."""
        rows = self.rows_of(batch)
        if rows:
            return self.answer(batch)
        out = self.answer(self._silence())
        return ModelOutput(
            logits=None if out.logits is None else out.logits[:0],
            dimensions=None if out.dimensions is None else out.dimensions[:0],
            embedding=out.embedding[:0],
            has_input=out.has_input[:0],
            tokens=None if out.tokens is None else out.tokens[:0],
            token_lengths=None if out.token_lengths is None else out.token_lengths[:0],
        )

    def rows_of(self, batch: Inputs) -> int:
        """Rows of a batch, seen from whatever it carries."""
        if batch.lengths is not None:
            return batch.lengths.shape[0]  # len() would fix the size of an exported graph
        if batch.text is not None:
            return len(batch.text)
        return len(next(iter(batch.features.values())))

    def _silence(self) -> Any:
        device, frames = self.device, self.frame_sizes()
        one = torch.ones(1, dtype=torch.int64, device=device)
        return SimpleNamespace(
            waveform=torch.zeros(1, 1600, device=device),
            lengths=1600 * one,
            features={name: torch.zeros(1, 10, size, device=device) for name, size in frames.items()},
            feature_lengths={name: 10 * one for name in frames},
            text=["."],
        )

    def frame_sizes(self) -> dict[str, int]:
        """Frame features that it can read, and their numbers of channels."""
        return {}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters; inputs are cast to it."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def hub_names(self) -> tuple[str, ...]:
        """Names of pretrained checkpoints inside: what they have heard is unknown."""
        name = getattr(self.config, "name", None)
        return (name,) if name else ()

    def skeleton(self) -> dict[str, Any]:
        """JSON facts that rebuild the empty model without hub or texts; see `ser.models.io`."""
        return {}

    def extra_files(self) -> dict[str, bytes]:
        """Files that belong to the model beside its weights: plain name to content."""
        return {}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """{"total", "trainable"} numbers of parameters; a shared tensor counts once, one split by ZeRO-3 in full."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, wanted in sizes if wanted)}
