"""What a recipe may say about heads and about encoders of the transformers library, over audio or text, and probes of them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ser.strict import Strict

Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Pooling = Literal["mean", "attentive"]


class HeadConfig(Strict):
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
