"""What a recipe says of its data: the corpora, how to read or make them, and the dataset that they are packed into."""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, model_validator

from ser.strict import Strict
from shards import corpora
from shards.audio import MAX_SECONDS
from shards.utterance import Utterance


class TranscriptsConfig(Strict):
    """A recogniser's transcripts of a corpus: `key<tab>text` lines, and what wrote them ("asr:<model>").

    They are put beside the dataset, as `ser transcribe` puts its own; models read them by `text_from: asr:<model>`.
    """

    path: str
    source: str = Field(pattern=r"^asr:.+")


class GenerateConfig(Strict):
    """How the generated corpus is made: its size, its seed, and how many blocks are spoken at once."""

    LATER: ClassVar[frozenset[str]] = frozenset({"jobs"})

    utterances: int = Field(default=6000, ge=1)
    seed: int = Field(default=0, ge=0)
    jobs: int = Field(default=2, ge=1)


class CorpusConfig(Strict):
    """One corpus: which reader, where it lies, (for the generated corpus) how to make it, and other transcripts of it."""

    LATER: ClassVar[frozenset[str]] = frozenset({"transcripts"})

    reader: str
    root: str
    options: dict[str, Any] = {}
    generate: GenerateConfig | None = None
    transcripts: TranscriptsConfig | None = None

    @model_validator(mode="after")
    def _generated(self) -> "CorpusConfig":
        if self.generate is not None and self.reader != "spokenaffect":
            raise ValueError(f"`generate` is for spokenaffect alone; what {self.reader} reads must be there")
        return self

    def utterances(self) -> Iterator[Utterance]:
        """What the reader reads."""
        return corpora.read(self.reader, self.root, **self.options)


class DataConfig(Strict):
    """The packed dataset: where, from which corpora, in shards of how many seconds.

    Attributes:
        max_quarantined: Share of broken utterances that is borne, in packing and wherever they are read.
        max_seconds: Longer utterances are left out as broken.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"max_seconds"})

    path: str
    corpora: list[CorpusConfig] = Field(min_length=1)
    shard_seconds: float = Field(default=600, gt=0, allow_inf_nan=False)
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    max_seconds: float = Field(default=MAX_SECONDS, gt=0, allow_inf_nan=False)
