"""What a training starts from: weights of another model's encoder, the texts it reads, and whose rate `encoder_lr` is."""

from typing import Any

from torch import nn

from ser.models import SERModel
from ser.models.config import FusedConfig, LinguisticConfig
from ser.models.fused import Fused
from shards.errors import UserError


def start_encoder(model: Any, other: Any, name: str) -> None:
    """Copy the encoder's weights of another acoustic model; of a deeper one the first layers are taken.

    Raises:
        UserError: The two are of different shapes.
    """
    own, given = model.encoder.state_dict(), other.encoder.state_dict()
    odd = [key for key, value in own.items() if key not in given or given[key].shape != value.shape]
    if odd:
        raise UserError(
            f"the encoder of {name} does not fit the one it starts from, first at {odd[0]}",
            where=f"models.{name}.encoder_from",
            hint="give both the same `config`, but for num_hidden_layers (or `num_layers`)",
        )
    model.encoder.load_state_dict({key: given[key] for key in own})


def text_source(config: Any) -> str:
    """Where a model's own configuration says that its words come from; "text" for one that does not read."""
    if isinstance(config, FusedConfig):
        found = [text_source(part) for part in config.components.values() if part is not None]
        return next((source for source in found if source != "text"), "text")
    return getattr(config, "text_from", "text")


def reads_text(config: Any) -> bool:
    """Whether a model's own configuration (not that of trained components) has a part that reads."""
    if isinstance(config, FusedConfig):
        return any(reads_text(part) for part in config.components.values() if part is not None)
    return isinstance(config, LinguisticConfig)


def encoder_parameters(model: SERModel) -> list[nn.Parameter]:
    """Parameters that `optimizer.encoder_lr` is for: those of a model's encoder, or of its components' encoders."""
    if isinstance(model, Fused):
        return [p for part in model.parts.values() for p in encoder_parameters(part)]
    encoder = getattr(model, "encoder", None)
    return list(encoder.parameters()) if isinstance(encoder, nn.Module) else []
