"""Model configurations: what a recipe may say about a model, checked before anything is built.

Guarantees: an unknown key, a wrong type or an impossible combination is refused with the place and the reason; a
configuration written by `model_dump(mode="json")` parses back to an equal one.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from torch import nn

from ser.models.config_encoders import (
    AcousticConfig,
    AudeeringConfig,
    EncoderConfig,
    HeadConfig,
    LinguisticConfig,
    Positive,
    PretrainedConfig,
    Probability,
    ProbeConfig,
    SpeechConfig,
)
from ser.models.config_frames import (
    ConvConfig,
    FrameConfig,
    ProsodicConfig,
    StreamConfig,
    TCGRUConfig,
)
from ser.strict import Strict
from shards.errors import UserError

__all__ = [
    "AcousticConfig", "AudeeringConfig", "ClassicalConfig", "ConvConfig", "CrossConfig", "EncoderConfig", "ExternalConfig",
    "FrameConfig", "FusedConfig", "HeadConfig", "LinguisticConfig", "ModelConfig", "PretrainedConfig", "ProbeConfig",
    "ProsodicConfig", "SpeechConfig", "StreamConfig", "TCGRUConfig", "parse_config",
]  # fmt: skip


class ExternalConfig(Strict):
    """Answers of a model that ran elsewhere, read from files (`ser.models.external`): a teacher without weights here.

    Attributes:
        files: A .jsonl or .parquet table with `key`, or a folder of <key>.npy embeddings.
        labels: Order of its `probabilities` or `logits`, in its own words.
        classes: Its label to the protocol's class (several may meet in one), null for one that is dropped. Needed unless
            its labels are the protocol's classes.
        dimensions: Order of its `dimensions`.
        scale: Their lowest and highest value, mapped to [0, 1]; must be said where there are dimensions.
        any_view: Give the clean utterance's answer to every view, which is not the view that was answered.
        licence: Of the model that answered, as its owner states it.
        model: What it is called in cards, for example emotion2vec/emotion2vec_plus_large.
    """

    kind: Literal["external"] = "external"
    files: str
    model: str = Field(min_length=2)
    licence: str = Field(min_length=2)
    labels: tuple[str, ...] = ()
    classes: dict[str, str | None] = {}
    dimensions: tuple[Literal["valence", "arousal", "dominance"], ...] = ()
    scale: tuple[float, float] | None = None
    any_view: bool = False

    @model_validator(mode="after")
    def _scaled(self):
        if self.dimensions and self.scale is None:
            raise ValueError(
                "`dimensions` need their `scale`, for example [1, 7], or [0, 1] if they are on it"
            )
        if self.scale is not None and self.scale[0] >= self.scale[1]:
            raise ValueError("scale is (lowest, highest)")
        return self


class CrossConfig(Strict):
    """How fusion in mode cross attends: layers, heads, and the width of the feed-forward part in multiples."""

    layers: Positive = 1
    heads: Positive = 4
    widen: Positive = 2


class FusedConfig(HeadConfig):
    """Several models as one.

    Attributes:
        mode: "product" adds log-posteriors of trained, frozen components and corrects for the class prior; "concat"
            puts the embeddings side by side; "gated" mixes them by a learned softmax gate; "cross" lets the frames
            and tokens of each component attend to those of the others, then mixes what they pool to by the same gate.
        cross: Mode cross only: how it attends.
        components: Name to configuration; None where the built model is handed to `build`.
        frozen: Keep the components as they are (always so in "product").
        dimension_weights: Product only: "learned", or name to one weight or to one weight a dimension; None is equal.
        modality_dropout: All but product: chance that a component is left out of a row while training. With it above
            0 the model is made to answer with any of its modalities missing.
        freeze: Where components are not `frozen`: component -> the part of its encoder that is all the same
            ("feature_encoder", "embeddings", "all_embeddings", "encoder"), beside what its own configuration freezes.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"freeze", "cross"})

    kind: Literal["fused"] = "fused"
    mode: Literal["product", "concat", "gated", "cross"] = "concat"
    components: dict[str, "ModelConfig | None"]
    frozen: bool = True
    dimension_weights: Literal["learned"] | dict[str, float | tuple[float, float, float]] | None = None
    modality_dropout: Probability = 0.0
    embedding: Positive | None = 256
    freeze: dict[str, Literal["feature_encoder", "embeddings", "all_embeddings", "encoder"]] = {}
    cross: CrossConfig | None = None

    @model_validator(mode="after")
    def _shape(self):
        if self.cross is not None and self.mode != "cross":
            raise ValueError(f"cross says nothing with mode {self.mode}")
        if self.mode == "cross" and self.embedding and self.embedding % self.attends.heads:
            raise ValueError(f"cross.heads {self.attends.heads} must divide embedding {self.embedding}")
        if len(self.components) < 2:
            raise ValueError("a fused model needs two components or more")
        for name in self.components:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"component name {name!r} must be letters, digits, underscores and no torch word"
                )
        if self.mode == "product" and not self.frozen:
            raise ValueError("a product's components are trained alone and stay frozen")
        if strange := sorted(set(self.freeze) - set(self.components)):
            raise ValueError(f"freeze names {', '.join(strange)}, no component")
        if self.freeze and self.frozen:
            raise ValueError("freeze says nothing where all components are frozen: set frozen: false")
        if self.mode != "product" and self.embedding is None:
            raise ValueError(f"mode {self.mode} needs a size of its embedding")
        if isinstance(self.dimension_weights, dict) and set(self.dimension_weights) != set(self.components):
            raise ValueError("dimension_weights must name exactly the components")
        return self

    @property
    def attends(self) -> CrossConfig:
        """How mode cross attends, defaults filled in."""
        return self.cross or CrossConfig()


class ClassicalConfig(Strict):
    """A linear classifier over functionals, fitted by scikit-learn instead of gradient steps (`ser.classical`).

    Attributes:
        features: "egemaps" (openSMILE's functionals; its licence forbids commercial use) or "mfcc" (free).
        classifier: "svm" (linear, one against the rest) or "logistic" regression.
        grid: Values of C tried on the fold's dev set; a smaller C is a stronger regularisation.
        class_weights: "balanced" weighs every class alike.
    """

    kind: Literal["classical"] = "classical"
    features: Literal["egemaps", "mfcc"] = "egemaps"
    classifier: Literal["svm", "logistic"] = "svm"
    grid: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.001, 0.003, 0.01, 0.03, 0.1)  # fmt: skip
    class_weights: Literal["balanced", "none"] = "balanced"


ModelConfig = Annotated[
    LinguisticConfig
    | ProsodicConfig
    | AcousticConfig
    | FusedConfig
    | ConvConfig
    | EncoderConfig
    | SpeechConfig
    | TCGRUConfig
    | AudeeringConfig
    | ExternalConfig
    | ClassicalConfig
    | ProbeConfig,
    Field(discriminator="kind"),
]
FusedConfig.model_rebuild()
_ADAPTER = TypeAdapter(ModelConfig)


def parse_config(config: "Mapping[str, Any] | ModelConfig", where: str = "model") -> ModelConfig:
    """A checked configuration from a recipe's mapping (one that is already checked is returned).

    Raises:
        UserError: With the key and the reason, for the first three faults.
    """
    if isinstance(config, Strict):
        return config
    try:
        return _ADAPTER.validate_python(dict(config))
    except ValidationError as error:
        faults = [".".join(map(str, e["loc"])) + ": " + e["msg"] for e in error.errors()]
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise UserError(
            "the model's configuration is wrong: " + "; ".join(faults[:3]) + more,
            where=where,
            hint="kinds are linguistic, prosodic, acoustic, fused, conv, encoder, speech, tcgru, probe, audeering, external, classical; ser/models/config.py lists their keys",
        ) from None
