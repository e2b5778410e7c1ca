"""MSP-Podcast: English, natural speech from podcasts, categorical and dimensional crowd labels, grows by release.

Lotfian and Busso, "Building naturalistic emotionally balanced speech corpus by retrieving emotional speech from
existing podcast recordings", IEEE Trans. Affective Computing 10(4), 2019; Busso et al., "The MSP-Podcast Corpus",
2025. Licence: UT Dallas's own, academic or commercial, by signed form.

Layout: the original, `Labels/labels_consensus.csv` (some releases spell it concensus), `Audios/*.wav` (or Audio),
optionally `Transcripts/*.txt` and the raters' rows `Labels/labels_detailed.csv` or .json.
Labels are the release's letters: A angry, S sad, H happy, U surprise, F fear, D disgust, C contempt, N neutral, O other,
X no agreement. Valence, arousal and dominance are means on 1-7. `session`: the partition (Train, Development, Test1,
...); `recording`: the podcast; `votes`: each rater's primary emotion as such a letter, any "Other-..." as O.
Counts are asserted per partition, for the releases whose sizes could be verified (1.6, 1.11, 2.0): for the one that
release= names, else for one that the label file comes close to (its very Train, which every release enlarged, or in all
within 2 %). 1.10's sizes (63,076 / 10,999 / 16,903 / 13,289) are from memory and counts per label are not published for
all: neither is asserted, and of other releases nothing.
Traps: Test3 has no public labels; speaker "Unknown" is null here and must never count as one speaker; releases are not
interchangeable, figures on them even less.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import (
    check_counts,
    check_mode,
    complain,
    corpus_root,
    first_existing,
    need_columns,
    number,
    rows_of,
    some,
)
from shards.errors import UserError
from shards.utterance import Utterance, Vote, make_key

LETTERS = "ASHUFDCNOX"
VOTES = {
    "angry": "A",
    "sad": "S",
    "happy": "H",
    "surprise": "U",
    "fear": "F",
    "disgust": "D",
    "contempt": "C",
    "neutral": "N",
    "other": "O",
}
RELEASES = {
    "1.6": {"Train": 34280, "Development": 5958, "Test": 10124},
    "1.11": {"Train": 84030, "Development": 19815, "Test1": 30647, "Test2": 14815},
    "2.0": {"Train": 169190, "Development": 34399, "Test1": 46294, "Test2": 14822},
}
NEAR = 0.02  # of a release's utterances: further away it may be any other release
SCALE = (1.0, 7.0)
COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
DIMENSIONS = ("EmoVal", "EmoAct", "EmoDom")
WORKER = re.compile(r"worker|annotator|rater", re.IGNORECASE)


def read(root: str, counts: str = "strict", release: str | None = None) -> Iterator[Utterance]:
    """Utterances of MSP-Podcast in the order of its label file.

    Args:
        root: Folder that holds Labels and Audios.
        counts: See `shards.corpora`.
        release: "1.6", "1.11" or "2.0" to assert its partition sizes; None asserts those of the one it comes close to.
    """
    folder = corpus_root(root, "msppodcast", "give the folder that holds Labels and Audios")
    check_mode(counts)
    if release is not None and release not in RELEASES:
        raise UserError(
            f"msppodcast: the sizes of release {release!r} are not known",
            hint=f"use one of {', '.join(RELEASES)}, or leave it",
        )
    labels = _find(folder, "labels_consensus.csv", "labels_concensus.csv")
    if labels is None:
        raise UserError(
            "msppodcast: no Labels/labels_consensus.csv", where=str(folder), hint="unpack Labels there"
        )
    audio = next((path for name in ("Audios", "Audio") if (path := folder / name).is_dir()), folder)
    rows = _rows(labels, counts)
    # Older releases say Validation for what newer ones call Development.
    partitions = Counter("Development" if (p := row["Split_Set"]) == "Validation" else p for row in rows)
    expected = {release: RELEASES[release]} if release else _resembled(partitions)
    check_counts(f"msppodcast {', '.join(expected)}", partitions, expected, counts, labels)
    present = set(os.listdir(audio))
    lost = [row["FileName"] for row in rows if row["FileName"] not in present]
    if lost:
        complain(
            counts, f"msppodcast: {len(lost)} of {len(rows)} audio files are missing: {some(lost)}", audio
        )
    votes = _votes(folder)
    transcripts = first_existing(folder, "Transcripts", "Transcription")
    return (_build(row, audio, transcripts, votes) for row in rows if row["FileName"] in present)


def _resembled(partitions: Mapping[str, int]) -> dict[str, Mapping[str, int]]:
    """The releases that these partition sizes are, or nearly are."""
    total = sum(partitions.values())
    return {
        name: sizes
        for name, sizes in RELEASES.items()
        if partitions.get("Train") == sizes["Train"]
        or abs(total - sum(sizes.values())) <= NEAR * sum(sizes.values())
    }


def _find(folder: Path, *names: str) -> Path | None:
    return first_existing(
        folder, *(f"{home}{name}" for home in ("Labels/", "", "Labels/Labels/") for name in names)
    )


def _rows(labels: Path, counts: str) -> list[dict[str, str]]:
    """Rows of the label file; unreadable ones are complained of and left out."""
    rows, wrong, seen = [], [], set()
    for line, row in rows_of(labels):
        need_columns(row, COLUMNS, labels)
        problem = _problem(row)
        if row["FileName"] in seen:
            problem = f"{row['FileName']} stands twice"
        if problem:
            wrong.append(f"line {line}: {problem}")
            continue
        seen.add(row["FileName"])
        rows.append(row)
    if wrong:
        complain(counts, f"msppodcast: {len(wrong)} lines cannot be read: {some(wrong)}", labels)
    return rows


def _problem(row: dict[str, str]) -> str:
    if row["EmoClass"] not in tuple(LETTERS):
        return f"{row['EmoClass']!r} is none of {LETTERS}"
    for column in DIMENSIONS:
        try:
            value = number(row[column])
        except ValueError:
            return f"{column} {row[column]!r} is no number"
        if value is not None and not SCALE[0] <= value <= SCALE[1]:
            return f"{column} {value} lies outside 1-7"
    return ""


def _build(
    row: dict[str, str], audio: Path, transcripts: Path | None, votes: dict[str, list[Vote]]
) -> Utterance:
    file, stem = row["FileName"], row["FileName"].rsplit(".", 1)[0]
    text = _text(transcripts / f"{stem}.txt") if transcripts else None
    speaker, gender = row["SpkrID"].strip(), row["Gender"].strip().lower()
    return Utterance(
        key=make_key("msppodcast", stem),
        corpus="msppodcast",
        audio=str(audio / file),
        recording="_".join(stem.split("_")[:2]),
        speaker=None if speaker.lower() in ("", "unknown") else speaker,
        session=row["Split_Set"],
        language="en",
        gender=gender if gender in ("female", "male") else None,
        text=text,
        text_source="human" if text else "none",
        label=row["EmoClass"],
        votes=tuple(votes.get(file, ())),
        valence=number(row["EmoVal"]),
        arousal=number(row["EmoAct"]),
        dominance=number(row["EmoDom"]),
        scale=SCALE,
        licence="MSP-Podcast licence (UT Dallas)",
    )


def _text(path: Path) -> str | None:
    return (path.read_text("utf-8", errors="replace").strip() or None) if path.is_file() else None


def _votes(folder: Path) -> dict[str, list[Vote]]:
    """{file: votes} of labels_detailed: JSON {file: {worker: {EmoClass_Major}}}, or CSV with such columns, or CSV with
    one column of "worker; primary; secondary; A:..; V:..; D:..;"."""
    path = _find(folder, "labels_detailed.csv", "labels_detailed.json")
    votes: dict[str, list[Vote]] = {}
    if path is None:
        return votes
    if path.suffix == ".json":
        for file, workers in json.loads(path.read_text("utf-8")).items():
            votes[file] = [
                Vote(_letter(rating["EmoClass_Major"]), worker) for worker, rating in workers.items()
            ]
        return votes
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        worker = next((i for i, name in enumerate(header) if WORKER.search(name)), None)
        major = header.index("EmoClass_Major") if "EmoClass_Major" in header else None
        for row in reader:
            if len(row) < 2:
                continue
            if major is not None:
                vote = Vote(_letter(row[major]), row[worker] if worker is not None else None)
            else:
                fields = [field.strip() for field in row[1].split(";")]
                if len(fields) < 2:
                    continue
                vote = Vote(_letter(fields[1]), fields[0])
            votes.setdefault(row[0], []).append(vote)
    return votes


def _letter(word: str) -> str:
    return VOTES.get(word.strip().lower(), "O")
