"""Model configurations: what a recipe may say about a model, checked before anything is built.

Guarantees: an unknown key, a wrong type or an impossible combination is refused with the place and the reason; a
configuration written by `model_dump(mode="json")` parses back to an equal one.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from torch import nn

from shards.errors import UserError

Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Pooling = Literal["mean", "attentive"]


class _Config(BaseModel):
    """Base of every model's configuration.

    Keys in `LATER` are not written while they have their default, so that what was made before they existed keeps its
    identity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values, fields = handler(self), type(self).model_fields
        quiet = {
            k for k in self.LATER if getattr(self, k) == fields[k].get_default(call_default_factory=True)
        }
        return {key: value for key, value in values.items() if key not in quiet}


class HeadConfig(_Config):
    """What every model that learns its own heads shares.

    Attributes:
        embedding: Size of a linear + ReLU embedding layer before the heads; None takes the pooled vector itself.
        dropout: Before the embedding layer and before the heads.
        dimension_activation: "sigmoid" confines the dimensions to (0, 1).
    """

    embedding: Positive | None = None
    dropout: Probability = 0.1
    dimension_activation: Literal["none", "sigmoid"] = "none"


class PretrainedConfig(HeadConfig):
    """A backbone of the transformers library: a hub name or local folder, or random weights of a given shape.

    Attributes:
        name: Hub name or folder with pretrained weights.
        revision: Commit, tag or branch on the hub.
        local_files_only: Never ask the network; the files must lie in the cache or the folder.
        config: Instead of a name: `model_type` and that type's own settings; weights are random.
        num_layers: Keep only the first layers of the transformer.
        attention: "sdpa" or "eager"; "auto" takes sdpa where the architecture has it (WavLM has not).
        gradient_checkpointing: Recompute layers in the backward pass.
    """

    name: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    config: dict[str, Any] | None = None
    num_layers: Positive | None = None
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    gradient_checkpointing: bool = False
    pooling: Pooling = "mean"

    @model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.config is None):
            raise ValueError(
                "give either name (pretrained weights) or config (random weights), not both or neither"
            )
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type, for instance hubert, wavlm or bert")
        if self.revision is not None and self.name is None:
            raise ValueError("revision belongs to a name")
        return self


class LinguisticConfig(PretrainedConfig):
    """A text encoder over transcripts.

    Attributes:
        max_tokens: Longer texts are cut.
        pooling: Also "cls", the first token.
        freeze: "embeddings" freezes the word embeddings, "all_embeddings" those of positions and their norm as well,
            "encoder" the whole backbone.
        text_from: Where the words come from: "text", the corpus's own transcripts; "extra.<name>", others that it brings;
            "asr:<model>", a recogniser's beside the dataset (`ser transcribe`, or a corpus's `transcripts`).
        tokenizer: For random weights only: how the tokenizer is built from the training texts.
        vocabulary: For random weights only: largest vocabulary.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"text_from"})

    kind: Literal["linguistic"] = "linguistic"
    max_tokens: Positive = 128
    pooling: Literal["mean", "attentive", "cls"] = "mean"
    freeze: Literal["none", "embeddings", "all_embeddings", "encoder"] = "none"
    text_from: Annotated[str, Field(pattern=r"^(text|extra\.[A-Za-z0-9_]+|asr:.+)$")] = "text"
    tokenizer: Literal["words", "bpe"] = "words"
    vocabulary: Annotated[int, Field(ge=8)] = 8000


class AcousticConfig(PretrainedConfig):
    """A HuBERT, wav2vec2 or WavLM encoder over the waveform.

    Attributes:
        layers: "weighted" learns softmax weights over all hidden states, "last" takes the last one.
        freeze: "feature_encoder" freezes the convolutions, "encoder" the whole backbone.
        normalise: Zero mean and unit variance per utterance; None asks the checkpoint's preprocessor_config.json,
            and without one takes True.
        group_norm: For encoders whose first norm runs over time (HuBERT-base, wav2vec2-base): "masked" takes its
            statistics over true frames only and hands on an attention mask, so padding changes nothing; "plain" runs
            the public code without any mask and declares `needs_equal_lengths`.
        mask_time_prob: SpecAugment over hidden frames while training.
        pad_seconds: LEGACY: pad every waveform with silence to this many seconds and take the silence for speech, in
            the normalisation, without a mask and in the pooling, as some released code does; longer ones stay as they are.
    """

    kind: Literal["acoustic"] = "acoustic"
    layers: Literal["weighted", "last"] = "weighted"
    freeze: Literal["none", "feature_encoder", "encoder"] = "feature_encoder"
    normalise: bool | None = None
    group_norm: Literal["masked", "plain"] = "masked"
    mask_time_prob: Probability = 0.0
    pad_seconds: Annotated[float, Field(gt=0)] | None = None


class EncoderConfig(AcousticConfig):
    """A student that is itself a (small) HuBERT, such as DistilHuBERT: the acoustic encoder with a student's defaults."""

    kind: Literal["encoder"] = "encoder"
    layers: Literal["weighted", "last"] = "last"


class SpeechConfig(AcousticConfig):
    """An encoder whose frames other models read (role `encoder`): pretrained, or random and trained to transcribe.

    It has no emotion heads. `freeze` is for its own training; afterwards nothing of it moves.
    """

    kind: Literal["speech"] = "speech"
    layers: Literal["weighted", "last"] = "last"
    freeze: Literal["none", "feature_encoder", "encoder"] = "none"


class AudeeringConfig(AcousticConfig):
    """A checkpoint of audEERING's dimensional wav2vec2 layout, head included (`ser.models.adapters`).

    Attributes:
        labels: Order of its three outputs; None reads the checkpoint's id2label.
        scale: Its lowest and highest value, mapped to [0, 1].
    """

    kind: Literal["audeering"] = "audeering"
    layers: Literal["last"] = "last"
    pooling: Literal["mean"] = "mean"
    embedding: None = None
    dropout: Probability = 0.0
    labels: tuple[str, str, str] | None = None
    scale: tuple[float, float] = (0.0, 1.0)

    @model_validator(mode="after")
    def _adapted(self):
        if self.name is None:
            raise ValueError("kind audeering needs the name or folder of a checkpoint")
        if self.scale[0] >= self.scale[1]:
            raise ValueError("scale is (lowest, highest)")
        return self


class ExternalConfig(_Config):
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


class FrameConfig(HeadConfig):
    """A network over frame features: strided convolutions, residual blocks, an optional mixer over time, pooling.

    Attributes:
        width: Channels of the convolutions.
        strides: Time stride of each front convolution; early striding is what makes it fast.
        kernel: Kernel of the first convolution, odd; the others have 3.
        blocks: Residual blocks of a convolution of 3 and a pointwise layer.
        mixer: "gru" (causal), "bigru" or "transformer" after the blocks; `mixer_layers` of them, `heads` heads.
        skip: The features bypass the front convolutions and are concatenated to their output (TC-GRU, Mitra et al.
            2022, figure 1); needs strides of 1.
        activation: Of the convolutions and blocks.
        front_norm: Normalise each frame after each front convolution.
        pooling: Also "mean_max", mean and maximum side by side, and "last", the last true frame.
        statistics: The utterance's own mean and deviation of every (fitted) feature join the pooled vector; with
            `normalise: level` the network would not know them otherwise.
        normalise: "fitted" uses mean and deviation of the training data (`fit_normalisation`), "utterance" those of
            the utterance, "none" neither; "level" removes, after "fitted", the utterance's own mean of each feature
            and divides all of them by one deviation, so that voice and microphone cancel and spectra keep their shape.
        functionals: Statistics of the frames over the utterance join the pooled vector (`ser.models.statistics`):
            for corpora too small to learn them.
    """

    width: Positive = 64
    strides: tuple[Positive, ...] = (3, 2)
    kernel: Positive = 5
    blocks: Annotated[int, Field(ge=0)] = 3
    mixer: Literal["none", "gru", "bigru", "transformer"] = "none"
    mixer_layers: Positive = 1
    heads: Positive = 4
    skip: bool = False
    activation: Literal["relu", "silu", "gelu"] = "relu"
    front_norm: bool = False
    pooling: Literal["mean", "attentive", "mean_max", "last"] = "attentive"
    statistics: bool = False
    normalise: Literal["fitted", "utterance", "level", "none"] = "fitted"
    functionals: bool = False
    embedding: Positive | None = 128

    @model_validator(mode="after")
    def _shape(self):
        if self.kernel % 2 == 0:
            raise ValueError("kernel must be odd, so that a frame has as many neighbours before as after")
        if not self.strides:
            raise ValueError("strides needs at least one entry, the first convolution")
        if self.skip and set(self.strides) != {1}:
            raise ValueError("skip joins features and convolution frame by frame: strides must all be 1")
        if self.mixer == "transformer" and self.channels % self.heads:
            raise ValueError(
                f"heads {self.heads} must divide the {self.channels} channels before the transformer"
            )
        return self

    @property
    def inputs_size(self) -> int:
        """Features of a frame."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Channels that enter the mixer."""
        return self.width + (self.inputs_size if self.skip else 0)


class ProsodicConfig(FrameConfig):
    """A network over the 25 prosodic low-level descriptors (`ser.features.prosody.NAMES`), 10 ms frames."""

    kind: Literal["prosodic"] = "prosodic"
    descriptors: Positive = 25

    @property
    def inputs_size(self) -> int:
        return self.descriptors


class ConvConfig(FrameConfig):
    """The small student over log-mel frames, 20 k to 3 M parameters.

    Attributes:
        bands, low, high, floor: Of the log-mel (`ser.features.mel.LogMel`); stored features must be of the same.
        features: "stored" asks the loader for the dataset's log-mel, "online" computes it from the waveform.
    """

    kind: Literal["conv"] = "conv"
    bands: Positive = 64
    low: float = Field(20.0, ge=0)
    high: float = Field(8000.0, gt=0, le=8000)
    floor: float = Field(1e-10, gt=0)
    features: Literal["stored", "online"] = "online"

    @property
    def inputs_size(self) -> int:
        return self.bands

    @property
    def mel(self) -> dict[str, Any]:
        """Options of the log-mel that this model hears."""
        return {"bands": self.bands, "low": self.low, "high": self.high, "floor": self.floor}


class StreamConfig(_Config):
    """One stream of frames.

    Attributes:
        size: Numbers a frame; None asks the encoder of that name (the log-mel's are its bands).
        stack: So many frames side by side become one: 10 ms frames stacked by 2 keep step with encoders' 20 ms.
        normalise: Before anything else, as in `FrameConfig`.
        layer_norm: Normalise each (stacked) frame, so that no stream drowns another.
    """

    size: Positive | None = None
    stack: Positive = 1
    normalise: Literal["fitted", "utterance", "level", "none"] = "none"
    layer_norm: bool = True


class TCGRUConfig(HeadConfig):
    """TC-GRU (Mitra et al. 2022, figure 1): a time convolution beside a bypass, GRU layers, an embedding layer.

    Attributes:
        streams: "mel" and names of encoders of the recipe, joined frame by frame.
        bands, low, high, floor: Of the log-mel; stored features must be of the same.
        features: "stored" asks the loader for the dataset's log-mel, "online" computes it from the waveform.
        width: Channels of the convolution and of each GRU layer.
        kernel: Of the convolution, odd.
        layers: GRU layers, forward in time.
        bypass: Without it the GRU hears the convolution alone.
        embedding_activation: Of the embedding layer.
    """

    kind: Literal["tcgru"] = "tcgru"
    streams: Annotated[dict[str, StreamConfig], Field(min_length=1)]
    bands: Positive = 40
    low: float = Field(20.0, ge=0)
    high: float = Field(8000.0, gt=0, le=8000)
    floor: float = Field(1e-10, gt=0)
    features: Literal["stored", "online"] = "online"
    width: Positive = 128
    kernel: Positive = 3
    layers: Positive = 2
    bypass: bool = True
    embedding: Positive = 128
    embedding_activation: Literal["none", "tanh", "relu"] = "none"
    dropout: Probability = 0.0

    @model_validator(mode="after")
    def _shape(self):
        if self.kernel % 2 == 0:
            raise ValueError("kernel must be odd, so that a frame has as many neighbours before as after")
        mel = self.streams.get("mel")
        if mel is not None and mel.size not in (None, self.bands):
            raise ValueError(f"the stream mel has {self.bands} bands, not {mel.size}")
        return self

    @property
    def mel(self) -> dict[str, Any]:
        """Options of the log-mel that this model hears."""
        return {"bands": self.bands, "low": self.low, "high": self.high, "floor": self.floor}

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders whose frames it reads."""
        return tuple(name for name in self.streams if name != "mel")


class CrossConfig(_Config):
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


class ClassicalConfig(_Config):
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


class ProbeConfig(HeadConfig):
    """A small head over the stored hidden states of a frozen encoder (`ser.layers`).

    Attributes:
        encoder: A model of the recipe whose states are stored (`layers: true`).
        states: Number of its hidden states: its layers, and before them the input of the first.
        size: Numbers a state.
        layer: Which state (0 is the input of the first layer), or "weighted": a softmax-weighted sum of all states, with
            weights of its own for each dimension and for the classes.
    """

    kind: Literal["probe"] = "probe"
    encoder: str
    states: Annotated[int, Field(ge=2)]
    size: Positive
    layer: Annotated[int, Field(ge=0)] | Literal["weighted"]
    embedding: Positive | None = 256

    @model_validator(mode="after")
    def _layer_there(self):
        if self.layer != "weighted" and self.layer >= self.states:
            raise ValueError(f"layer {self.layer}: the encoder has states 0 to {self.states - 1}")
        return self


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
    if isinstance(config, _Config):
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
