"""nEMO: Polish, 9 actors, 90 sentences, 6 emotions, 4481 utterances.

Christop, "nEMO: Dataset of Emotional Speech in Polish", LREC-COLING 2024. Licence: CC BY-NC-SA 4.0 (some lists say
CC BY 4.0, wrongly).

Layouts: the original (`samples/WR0_surprised_64.wav` + `data.tsv`) and `audio/*.flac` + `labels.tsv`; the
development subset (1240 files) is recognised by its own counts. Names: speaker, emotion, sentence number.
Texts come from the table (labels.tsv first, then data.tsv): its raw_text. `extra`: sentence.
Traps: data.tsv has blanks before speaker_id and bare quotes inside texts; MK0 has no "surprised", MP0 few of all
but neutral, so a fold that tests them has uneven classes.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import complain, corpus_root, need_columns, number, read_named, rows_of, some
from shards.utterance import Utterance, make_key

LABELS: tuple[str, ...] = ("anger", "fear", "happiness", "neutral", "sadness", "surprised")
PUBLISHED = {
    "whole corpus": dict(zip(LABELS, (749, 736, 749, 809, 769, 669), strict=True)),
    "development subset": dict(zip(LABELS, (206, 207, 207, 221, 213, 186), strict=True)),
}
SPEAKERS = {
    "EB0": ("female", 27),
    "IC0": ("female", 28),
    "KD0": ("female", 28),
    "KS0": ("male", 23),
    "MK0": ("female", 23),
    "MP0": ("male", 24),
    "SM0": ("male", 24),
    "TP0": ("male", 26),
    "WR0": ("male", 23),
}
NAME = re.compile(rf"({'|'.join(SPEAKERS)})_({'|'.join(LABELS)})_(\d+)")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of nEMO in order of key; see the module for layouts."""
    folder = corpus_root(root, "nemo")
    texts = _texts(folder / "data.tsv", counts)

    def build(stem: str, path: Path, match: re.Match, row: Mapping[str, str]) -> Utterance:
        speaker, label, sentence = match.groups()
        gender, age = SPEAKERS[speaker]
        text = row.get("transcript") or texts.get(stem) or None
        return Utterance(
            key=make_key("nemo", stem),
            corpus="nemo",
            audio=str(path),
            recording=stem,
            speaker=speaker,
            language="pl",
            gender=gender,
            age=age,
            text=text,
            text_source="human" if text else "none",
            duration=number(row.get("duration_s")),
            label=label,
            licence="CC BY-NC-SA 4.0",
            extra={"sentence": sentence},
        )

    return read_named(folder, "nemo", NAME, build, PUBLISHED, counts)


def _texts(path: Path, counts: str) -> dict[str, str]:
    """{stem: raw text} of data.tsv, whose rows must say what their own file names say."""
    if not path.is_file():
        return {}
    texts, wrong = {}, []
    for line, row in rows_of(path, "\t"):
        need_columns(row, ("file_id", "emotion", "raw_text", "speaker_id"), path)
        stem = row["file_id"].removesuffix(".wav")
        speaker, label = row["speaker_id"].strip(), row["emotion"]
        if not stem.startswith(f"{speaker}_{label}_"):
            wrong.append(f"line {line}: {stem} is said to be {speaker}, {label}")
        texts[stem] = row["raw_text"]
    if wrong:
        complain(counts, f"nemo: {len(wrong)} lines contradict their file names: {some(wrong)}", path)
    return texts
