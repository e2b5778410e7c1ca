"""CaFE, Canadian French Emotional: 12 actors, 6 sentences, 7 emotions, 2 intensities, 936 utterances.

Gournay, Lahaie, Lefebvre, "A Canadian French Emotional Speech Dataset", ACM MMSys 2018, doi:10.1145/3204949.3208121;
Zenodo record 1478765. Licence: CC BY-NC-SA 4.0.

Layout: the original, `<emotion>/<Faible|Fort>/01-C-1-1.wav` (neutral has no intensity folder), 48 kHz .wav or 192 kHz
.aiff; only the file name is read, since archives spell the accents of the folders in several ways.
Names: actor 01-12, emotion letter (Colere, Degout, Joie, Neutre, Peur, Surprise, Tristesse), intensity 1 weak
2 strong, sentence. `extra`: code, intensity (null for neutral), sentence. Odd actors are male, even ones female.
Ages are published in a table that is not reproduced here, so age is null.
Traps: neutral is half as frequent; the folder with both rates holds every utterance twice (refused); every sentence
occurs in every emotion, so a text model can learn nothing.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import corpus_root, number, read_named
from shards.utterance import Utterance, make_key

LABELS = {
    "C": "anger",
    "D": "disgust",
    "J": "happiness",
    "N": "neutral",
    "P": "fear",
    "S": "surprise",
    "T": "sadness",
}
PUBLISHED = {"whole corpus": {label: 72 if label == "neutral" else 144 for label in LABELS.values()}}
SENTENCES = {
    "1": "Un cheval fou dans mon jardin",
    "2": "Deux \u00e2nes aigris au pelage brun",
    "3": "Trois cygnes aveugles au bord du lac",
    "4": "Quatre vieilles truies \u00e9l\u00e9phantesques",
    "5": "Cinq pumas fiers et passionn\u00e9s",
    "6": "Six ours aimants domestiqu\u00e9s",
}
INTENSITIES = {"1": "weak", "2": "strong"}
NAME = re.compile(r"(0[1-9]|1[0-2])-([CDJNPST])-([12])-([1-6])")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of CaFE in order of key; see the module for the layout."""
    folder = corpus_root(root, "cafe")
    return read_named(folder, "cafe", NAME, _build, PUBLISHED, counts)


def _build(stem: str, path: Path, match: re.Match, row: Mapping[str, str]) -> Utterance:
    actor, code, intensity, sentence = match.groups()
    return Utterance(
        key=make_key("cafe", stem),
        corpus="cafe",
        audio=str(path),
        recording=stem,
        speaker=actor,
        language="fr",
        gender="male" if int(actor) % 2 else "female",
        text=SENTENCES[sentence],
        text_source="human",
        duration=number(row.get("duration_s")),
        label=LABELS[code],
        licence="CC BY-NC-SA 4.0",
        extra={
            "code": code,
            "intensity": None if code == "N" else INTENSITIES[intensity],
            "sentence": sentence,
        },
    )
