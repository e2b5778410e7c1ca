"""Models: one interface for teachers and students, told apart only by their configuration.

Importing this package imports neither transformers nor tokenizers; they are imported when a model that needs them is
built or loaded, so a convolutional student predicts without them.
"""

from ser.models.base import ModelOutput, SERModel, count_parameters
from ser.models.config import ModelConfig, parse_config
from ser.models.io import build, load, load_meta, save
from ser.models.projectors import Projectors

__all__ = [
    "ModelConfig",
    "ModelOutput",
    "Projectors",
    "SERModel",
    "build",
    "count_parameters",
    "load",
    "load_meta",
    "parse_config",
    "save",
]
