"""The 48 speakers: espeak variants, each in one language and one split.

A variant changes the throat (formants, pitch, voicing), the language only the phonemes, so the same variant in two
languages would be one speaker in two splits: a variant is used once. Families of near-copies (iven..iven4,
steph..steph3, klatt5/klatt6, Hugo/Henrique) are represented once. Whispers and echoing robots are left out: F0
carries arousal here, and they have none.
"""

from dataclasses import dataclass

SPLITS = ("train", "dev", "test")
LANGUAGES = ("en", "fi", "fr")
# The espeak voice of a language. `fr-fr` exists in other builds of espeak-ng, not in this one.
ESPEAK_VOICE = {"en": "en-us", "fi": "fi", "fr": "fr"}

_FEMALE = frozenset(
    [
        "f1",
        "f2",
        "f3",
        "f4",
        "f5",
        "Annie",
        "Alicia",
        "Andrea",
        "aunty",
        "steph",
        "linda",
        "shelby",
        "grandma",
        "anika",
    ],
)
_TABLE = {
    ("en", "train"): "f1 Alex m1 Annie Denis edward m5",
    ("en", "dev"): "f4 Lee",
    ("en", "test"): "Alicia f2 Andy m3 Mike Reed pablo victor",
    ("fi", "train"): "f3 steph m2 Diogo kaukovalta m7 klatt4",
    ("fi", "dev"): "max",
    ("fi", "test"): "Andrea aunty m4 Henrique adam travis sandro Gene",
    ("fr", "train"): "f5 zac m6 miguel david pedro",
    ("fr", "dev"): "shelby",
    ("fr", "test"): "grandma anika linda m8 Michael norbert marcelo Nguyen",
}


@dataclass(frozen=True)
class Voice:
    """One speaker: an espeak variant in its language."""

    variant: str
    language: str
    split: str
    gender: str | None

    @property
    def speaker(self) -> str:
        return f"{self.language}-{self.variant}"

    @property
    def espeak(self) -> str:
        """Name for espeak_SetVoiceByName."""
        return f"{ESPEAK_VOICE[self.language]}+{self.variant}"


def _gender(variant: str) -> str | None:
    # zac is a child's voice.
    return None if variant == "zac" else "female" if variant in _FEMALE else "male"


VOICES: tuple[Voice, ...] = tuple(
    Voice(variant, language, split, _gender(variant))
    for (language, split), variants in _TABLE.items()
    for variant in variants.split()
)


def of_split(split: str) -> tuple[Voice, ...]:
    """Voices of one split, languages taken in turn so that any prefix is spread over them."""
    columns = [[v for v in VOICES if v.split == split and v.language == lang] for lang in LANGUAGES]
    return tuple(c[i] for i in range(max(map(len, columns))) for c in columns if i < len(c))
