"""Keys of what is stored beside the shards: features, frames of encoders, targets of teachers."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ser.strict import Strict


class FeatureConfig(Strict):
    """A stored feature: computed once a view, memory-mapped while training.

    `mel` and `prosody` are frames of every view; `egemaps` and `mfcc` are functionals of the clean utterance alone,
    for classical models.
    """

    kind: Literal["mel", "prosody", "egemaps", "mfcc"]
    options: dict[str, Any] = {}
    dtype: Literal["float32", "float16"] = "float32"


class TargetsConfig(Strict):
    """What is stored of each teacher, and how the inference batches are cut (part of the fingerprint).

    Attributes:
        source: stored (each teacher answers once, beside the shards) or online (it is asked at every step).
        mode: Of the teachers: eval, or train (LEGACY: their dropout is on, as in some released code; online alone).
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"source", "mode"})

    slot_seconds: float = Field(default=120, gt=0)
    embedding: bool = True
    dtype: Literal["float32", "float16"] = "float32"
    source: Literal["stored", "online"] = "stored"
    mode: Literal["eval", "train"] = "eval"

    @model_validator(mode="after")
    def _mode_fits(self) -> "TargetsConfig":
        if self.mode == "train" and self.source == "stored":
            raise ValueError("mode train draws other answers at every step: it needs `source: online`")
        return self


class FramesConfig(Strict):
    """Which frames of an encoder are stored for the models that read them.

    Attributes:
        layer: 0 is the transformer's input, then its layers; -1 is the last.
        dtype: As stored; frames computed on the spot are rounded alike.
    """

    layer: int = Field(default=-1, ge=-1)
    dtype: Literal["float32", "float16"] = "float16"
