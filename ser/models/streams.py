"""Which encoders a model's configuration reads frames of, and their sizes once they are known. Pure."""

from collections.abc import Mapping
from typing import Any

from ser.models.config import FusedConfig, TCGRUConfig


def encoders_read(config: Any) -> tuple[str, ...]:
    """Names of the encoders whose frames a model reads, through components that stand in its own configuration."""
    if isinstance(config, FusedConfig):
        parts = [part for part in config.components.values() if part is not None]
        return tuple(dict.fromkeys(name for part in parts for name in encoders_read(part)))
    return config.encoders if isinstance(config, TCGRUConfig) else ()


def with_sizes(config: Any, sizes: Mapping[str, int]) -> Any:
    """The same configuration with the frame size of every encoder that it reads filled in."""
    if isinstance(config, FusedConfig):
        parts = {
            name: None if part is None else with_sizes(part, sizes)
            for name, part in config.components.items()
        }
        return config.model_copy(update={"components": parts})
    if not isinstance(config, TCGRUConfig):
        return config
    streams = {
        name: stream
        if name == "mel" or name not in sizes
        else stream.model_copy(update={"size": sizes[name]})
        for name, stream in config.streams.items()
    }
    return config.model_copy(update={"streams": streams})
