"""URDU-Dataset: Urdu, cut from TV talk shows, not acted, 400 utterances, 100 each of angry, happy, neutral, sad.

Latif, Qayyum, Usman, Qadir, "Cross Lingual Speech Emotion Recognition: Urdu vs. Western Languages", 2018,
arXiv:1812.10411. Licence: "only for research purposes" (README); none else stated.

Layouts: the original (`Angry/SM1_F10_A010.wav` and so on) and `audio/*.flac` + `labels.tsv`.
Names: S, gender M or F, speaker number; F, number of the speaker's file; emotion letter, number. No transcripts.
`extra`: code. Traps: the README speaks of 38 speakers, the names give 29 (18 male, 11 female). Speaker and emotion
are strongly confounded (SM4: 48 angry only, SM25: 40 sad only, SM24: 38 sad only), so a random split leaks and even
a speaker-independent one measures who is speaking. The speaker's number restarts with the gender: SM1 is not SF1.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import corpus_root, number, read_named
from shards.utterance import Utterance, make_key

LABELS = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}
PUBLISHED = {"whole corpus": dict.fromkeys(LABELS.values(), 100)}
NAME = re.compile(r"(S([MF])\d+)_F\d+_([AHNS])\d+")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of the URDU-Dataset in order of key; see the module for layouts."""
    folder = corpus_root(root, "urdu")
    return read_named(folder, "urdu", NAME, _build, PUBLISHED, counts)


def _build(stem: str, path: Path, match: re.Match, row: Mapping[str, str]) -> Utterance:
    speaker, gender, code = match.groups()
    return Utterance(
        key=make_key("urdu", stem),
        corpus="urdu",
        audio=str(path),
        recording=stem,
        speaker=speaker,
        language="ur",
        gender="male" if gender == "M" else "female",
        duration=number(row.get("duration_s")),
        label=LABELS[code],
        licence="research only",
        extra={"code": code},
    )
