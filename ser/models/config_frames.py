"""What a recipe may say about networks over frames: log-mels, prosodic descriptors, an encoder's frames."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ser.models.config_encoders import HeadConfig, Positive, Probability
from ser.strict import Strict


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


class StreamConfig(Strict):
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
