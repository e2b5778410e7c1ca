"""RAVDESS, speech, audio only: North American English, 24 actors, 2 sentences, 8 emotions, 1440 utterances.

Livingstone and Russo, "The Ryerson Audio-Visual Database of Emotional Speech and Song", PLOS ONE 13(5), 2018,
e0196391. Licence: CC BY-NC-SA 4.0.

Layouts: the original (`Actor_01/03-01-05-02-01-01-01.wav`, with or without a folder above) and `audio/*.flac` +
`labels.tsv`. Names: modality, channel, emotion, intensity, statement, repetition, actor. Song (02) and video (01,
02 in the first place) lying beside are left out. `extra`: code, intensity (normal, strong), statement, repetition.
Odd actors are male, even ones female; ages are published as a range only (21 to 33), so age is null.
Traps: neutral has no strong intensity, so half as many files; about 1 s of near silence at both ends; every sentence
occurs in every emotion, so a text model can learn nothing; some mirrors hold the whole corpus twice (refused).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import corpus_root, number, read_named
from shards.utterance import Utterance, make_key

LABELS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
PUBLISHED = {"whole corpus": {label: 96 if label == "neutral" else 192 for label in LABELS.values()}}
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
INTENSITIES = {"01": "normal", "02": "strong"}
NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-([01][0-9]|2[0-4])")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of RAVDESS's audio-only speech in order of key; see the module for layouts."""
    folder = corpus_root(root, "ravdess")
    return read_named(folder, "ravdess", NAME, _build, PUBLISHED, counts)


def _build(stem: str, path: Path, match: re.Match, row: Mapping[str, str]) -> Utterance | None:
    modality, channel, code, intensity, statement, repetition, actor = match.groups()
    if (modality, channel) != ("03", "01"):
        return None
    return Utterance(
        key=make_key("ravdess", stem),
        corpus="ravdess",
        audio=str(path),
        recording=stem,
        speaker=actor,
        language="en",
        gender="male" if int(actor) % 2 else "female",
        text=STATEMENTS[statement],
        text_source="human",
        duration=number(row.get("duration_s")),
        label=LABELS[code],
        licence="CC BY-NC-SA 4.0",
        extra={
            "code": code,
            "intensity": INTENSITIES[intensity],
            "statement": statement,
            "repetition": repetition,
        },
    )
