"""The linguistic teacher: a text encoder over transcripts.

Guarantees: a row without text (None or blank) answers zeros with `has_input` False; the tokenizer travels with the
model. A random-weight encoder gets its tokenizer from the training texts it is given, and from nothing else.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ser.models import hub
from ser.models.base import Heads, Inputs, ModelOutput, SERModel
from ser.models.config import LinguisticConfig
from ser.models.pooling import POOLING
from ser.models.tokens import Tokens, built, pretrained
from shards.errors import UserError


class Linguistic(SERModel):
    """Reads `batch.text`, a list of B strings or None."""

    inputs = frozenset({"text"})
    config: LinguisticConfig
    encoder: Any

    def __init__(
        self,
        config: LinguisticConfig,
        classes: int,
        dimensions: bool,
        texts: Iterable[str | None] | None = None,
        skeleton: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
    ):
        super().__init__(config, classes, dimensions)
        if skeleton is not None:
            self.tokens = Tokens.from_bytes((files or {})["tokenizer.json"])
        elif config.name is not None:
            self.tokens = pretrained(config.name, config.revision, config.local_files_only)
        else:
            self.tokens = built(texts or (), config.tokenizer, config.vocabulary)
        # A checkpoint's embeddings may be padded beyond its tokenizer; random ones fit exactly.
        sizes = {} if config.name else {"vocab_size": len(self.tokens), "pad_token_id": self.tokens.pad}
        self.encoder = hub.load_backbone(config, sizes, (skeleton or {}).get("backbone"))
        if skeleton is None:
            self.tokens.limit(min(config.max_tokens, self._positions()))
        if config.gradient_checkpointing:
            self.encoder.activation_checkpointing_enable({"use_reentrant": False})
        self.text_from = config.text_from
        self.freeze(config.freeze)
        self.pool = POOLING[config.pooling](self.encoder.config.hidden_size)
        self.heads = Heads(self.pool.size, config, classes, dimensions)
        self.embedding_size = self.heads.size
        self.sequence_size = self.encoder.config.hidden_size

    def freeze(self, part: str) -> None:
        """Take a part of the encoder out of training; see `LinguisticConfig.freeze`."""
        if part == "encoder":
            hub.freeze(self.encoder)
        elif part == "embeddings":
            hub.freeze(self.encoder.get_input_embeddings())
        elif part == "all_embeddings":
            hub.freeze(self.encoder.embeddings)
        elif part != "none":
            raise UserError(f"a text encoder has no {part} to freeze", where="freeze")

    def answer(self, batch: Inputs) -> ModelOutput:
        hidden, mask, given = self.sequence(batch)
        return self.heads(self.pool(hidden, mask), given)

    def unused_in_sequence(self) -> list[nn.Module]:
        return [self.heads, self.pool]

    def sequence(self, batch: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        if batch.text is None:
            raise UserError(
                "the batch carries no texts", where="linguistic model", hint="ask the loader for text"
            )
        numbers, mask = self.tokens([text or "" for text in batch.text])
        given = torch.tensor([bool(text and text.strip()) for text in batch.text])
        given &= mask.any(1)
        # A row without any token still needs one to attend to.
        mask[:, 0] = True
        numbers, mask, given = (x.to(self.device) for x in (numbers, mask, given))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.freeze != "encoder"):
            hidden = self.encoder(input_ids=numbers, attention_mask=mask.long()).last_hidden_state
        return hidden, mask, given

    def train(self, mode: bool = True) -> "Linguistic":
        super().train(mode)
        if self.config.freeze == "encoder":
            self.encoder.eval()
        return self

    def skeleton(self) -> dict[str, Any]:
        return {"backbone": hub.stored_config(self.encoder)}

    def extra_files(self) -> dict[str, bytes]:
        return {"tokenizer.json": self.tokens.to_bytes()}

    def _positions(self) -> int:
        limit = getattr(self.encoder.config, "max_position_embeddings", None) or self.config.max_tokens
        # RoBERTa counts positions from its padding number on.
        offset = getattr(getattr(self.encoder, "embeddings", None), "padding_idx", None)
        return limit - (offset + 1 if offset is not None else 0)
