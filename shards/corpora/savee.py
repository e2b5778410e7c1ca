"""SAVEE, Surrey Audio-Visual Expressed Emotion: British English, 4 men, 7 emotions, 480 utterances.

Haq and Jackson, "Multimodal Emotion Recognition", in Machine Audition, IGI Global, 2010. Licence: free for research
after registration; no formal text.

Layouts: the original (`AudioData/DC/a01.wav`) and the flat one of some mirrors (`DC_a01.wav`, `DCa01.wav`); keys are
`savee-DC_a01` in both. Names: a, d, f, h, n, sa, su and the sentence number (15 an emotion, 30 for neutral).
`extra`: code, sentence. The sentences are TIMIT's; their texts are not reproduced here, so text is null. The speakers
were 27 to 31 years old; who was how old is not published, so age is null.
Traps: male speakers only; four folds by speaker is all there is, below any interval worth printing; the sentences of
one number differ between emotions, except three common ones, so text can leak the label.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from shards.corpora._common import (
    audio_files,
    check_counts,
    check_mode,
    complain,
    corpus_root,
    label_counts,
    some,
)
from shards.errors import UserError
from shards.utterance import Utterance, make_key

LABELS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}
PUBLISHED = {"whole corpus": {label: 120 if label == "neutral" else 60 for label in LABELS.values()}}
SPEAKERS = ("DC", "JE", "JK", "KL")
NAME = re.compile(r"(?:(DC|JE|JK|KL)_?)?(sa|su|[adfhn])(\d{2})")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of SAVEE in order of key; see the module for layouts."""
    folder = corpus_root(root, "savee")
    check_mode(counts)
    utterances, strange = {}, []
    for path in _files(folder):
        match = NAME.fullmatch(path.stem)
        speaker = match and (match[1] or path.parent.name)
        if match is None or speaker not in SPEAKERS:
            strange.append(path)
            continue
        utterance = _build(path, speaker, match[2], match[3])
        if utterance.key in utterances:
            raise UserError(
                f"savee: {utterance.key} is there twice",
                where=f"{utterances[utterance.key].audio} and {path}",
                hint="point root at one copy of the corpus",
            )
        utterances[utterance.key] = utterance
    if strange:
        complain(
            counts, f"savee: {len(strange)} audio files have a name of no utterance: {some(strange)}", folder
        )
    check_counts("savee", label_counts(utterances.values()), PUBLISHED, counts, folder)
    return iter([utterances[key] for key in sorted(utterances)])


def _files(folder: Path) -> list[Path]:
    """Audio of the flat layout, or of the four speakers' folders, where the same name occurs once a speaker."""
    homes = sorted(path for name in SPEAKERS for path in folder.rglob(name) if path.is_dir())
    return [path for home in homes or [folder] for path in audio_files(home, "savee").values()]


def _build(path: Path, speaker: str, code: str, sentence: str) -> Utterance:
    name = f"{speaker}_{code}{sentence}"
    return Utterance(
        key=make_key("savee", name),
        corpus="savee",
        audio=str(path),
        recording=name,
        speaker=speaker,
        language="en",
        gender="male",
        label=LABELS[code],
        licence="research only, by registration",
        extra={"code": code, "sentence": sentence},
    )
