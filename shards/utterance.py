"""The utterance: one labelled (or unlabelled) stretch of speech, and the rules its fields obey.

Missing is None, never 0 or an empty string. Labels are the corpus's own; merging them into classes is the
protocol's work (`ser.protocol`), so that no choice of classes ever re-packs audio.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from shards.errors import UserError

SAMPLE_RATE = 16_000
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
TEXT_SOURCE_PATTERN = re.compile(r"human|none|asr:.+")


@dataclass(frozen=True, slots=True)
class Vote:
    """One rater's opinion: a label of the corpus's own vocabulary, and the rater's id where the corpus gives it."""

    label: str
    rater: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One stretch of speech and everything the corpus says about it.

    Attributes:
        key: Unique in the dataset (ignoring case), `[A-Za-z0-9_-]{1,80}`; readers prefix it with the corpus name.
        corpus: Name of the corpus, the reader's registered name.
        audio: Path or URL of the source file. Not stored in the dataset.
        recording: Id of the source recording (utterances cut from one file share it).
        start, end: Borders in the source file in seconds; None means the file's own border.
        speaker, session: The corpus's own ids, unique inside the corpus.
        language: ISO 639-1 code.
        gender: "female", "male" or another word of the corpus; age in years.
        text: Transcript, and `text_source`: "human", "asr:<model>" or "none".
        duration: Seconds where the corpus states it; measured again while packing.
        label: The corpus's own categorical label.
        votes: Raters' opinions behind the label.
        valence, arousal, dominance: Native ratings, on `scale` = (lowest, highest).
        licence: Licence of the audio and labels.
        extra: Corpus-specific facts (intensity, scripted or improvised, perception scores), JSON scalars.
    """

    key: str
    corpus: str
    audio: str
    recording: str
    start: float | None = None
    end: float | None = None
    speaker: str | None = None
    session: str | None = None
    language: str | None = None
    gender: str | None = None
    age: float | None = None
    text: str | None = None
    text_source: str = "none"
    duration: float | None = None
    label: str | None = None
    votes: Sequence[Vote] = ()
    valence: float | None = None
    arousal: float | None = None
    dominance: float | None = None
    scale: tuple[float, float] | None = None
    licence: str | None = None
    extra: Mapping[str, str | float | int | bool | None] = field(default_factory=dict)

    def __post_init__(self):
        if not KEY_PATTERN.fullmatch(self.key):
            raise UserError(
                f"key {self.key!r} is not of the form [A-Za-z0-9_-]{{1,80}}",
                where=self.audio,
                hint="use shards.utterance.make_key(corpus, name) in the reader",
            )
        if not TEXT_SOURCE_PATTERN.fullmatch(self.text_source):
            raise UserError(
                f"text_source {self.text_source!r} is none of human, none, asr:<model>", where=self.key
            )
        if (self.text is None) != (self.text_source == "none"):
            raise UserError("text and text_source disagree: both or neither must be given", where=self.key)
        if self.start is not None and self.end is not None and not self.start < self.end:
            raise UserError(f"start {self.start} is not before end {self.end}", where=self.key)
        for name in ("valence", "arousal", "dominance"):
            value = getattr(self, name)
            if value is None:
                continue
            if self.scale is None or not self.scale[0] <= value <= self.scale[1]:
                raise UserError(f"{name} {value} lies outside its scale {self.scale}", where=self.key)


FIELDS = tuple(f.name for f in fields(Utterance))


def make_key(corpus: str, name: str) -> str:
    """A valid key from a corpus name and a file's own name: other characters become "-".

    Two names that collide afterwards are found while packing (duplicate key), never silently merged.
    """
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{corpus}-{name}")[:80]
