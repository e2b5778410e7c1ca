"""TESS, the Toronto Emotional Speech Set: English, 2 actresses, 200 words in "Say the word ...", 7 emotions, 2800 files.

Pichora-Fuller and Dupuis, "Toronto emotional speech set (TESS)", 2020, doi:10.5683/SP2/E8H2MF.
Licence: CC BY-NC-ND 4.0.

Layouts: the original (`OAF_angry/OAF_back_angry.wav`, or all files in one folder) and `audio/*.flac` + `labels.tsv`;
the development subset of 12 words (168 files) is recognised by its own counts.
Names: speaker (OAF 64 years, YAF 26 years), word, emotion; `ps` is pleasant surprise and is kept as the label.
`extra`: word. Traps: with two speakers a random split says nothing (about 99 % against 40 % speaker-independent).
One original name is misspelt (OA_bite_neutral) and read as OAF_bite_neutral. Some files are AIFF or 96 kHz under
.wav, which libsndfile notices by itself. One popular mirror holds the whole corpus twice (refused).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import corpus_root, number, read_named
from shards.utterance import Utterance, make_key

LABELS: tuple[str, ...] = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
PUBLISHED: dict[str, dict[str, int]] = {
    "whole corpus": dict.fromkeys(LABELS, 400),
    "subset of 12 words": dict.fromkeys(LABELS, 24),
}
AGES = {"OAF": 64, "YAF": 26}
NAME = re.compile(rf"(OAF?|YAF)_([a-z-]+)_({'|'.join(LABELS)})", re.IGNORECASE)


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of TESS in order of key; see the module for layouts."""
    folder = corpus_root(root, "tess")
    return read_named(folder, "tess", NAME, _build, PUBLISHED, counts)


def _build(stem: str, path: Path, match: re.Match, row: Mapping[str, str]) -> Utterance:
    speaker, word, label = match[1].upper(), match[2].lower(), match[3].lower()
    speaker = "OAF" if speaker == "OA" else speaker
    name = f"{speaker}_{word}_{label}"
    return Utterance(
        key=make_key("tess", name),
        corpus="tess",
        audio=str(path),
        recording=stem,
        speaker=speaker,
        language="en",
        gender="female",
        age=AGES[speaker],
        text=f"Say the word {word}",
        text_source="human",
        duration=number(row.get("duration_s")),
        label=label,
        licence="CC BY-NC-ND 4.0",
        extra={"word": word},
    )
