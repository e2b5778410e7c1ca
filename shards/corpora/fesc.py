"""FESC, the Finnish Emotional Speech Corpus: 9 speakers, 5 emotions.

Airas and Alku, "Emotions in vowel segments of continuous speech: analysis of the glottal flow using the normalised
amplitude quotient", Phonetica 63, 2006; used as FESC by Bijoy et al., Interspeech 2025 (arXiv:2506.08717).
Licence: none published; the corpus has no public download and is had from its owners.

Layouts, since no public release fixes one:
  * `labels.tsv` or `labels.csv` with the columns file and label, and optionally speaker, gender, age, text;
  * split files as Bijoy et al. used them: any `*.json` of {id: {"file_path": ..., "label": "1"}}, in folders named
    after the held-out speaker; the same file in several splits is read once.
Paths in the tables may be of another machine: the file name is looked up below root.
Labels: 1 anger, 2 happiness, 3 neutral, 4 sadness, 5 tenderness, or these words. That 5 is tenderness follows from
the five emotions of the paper, Bijoy et al. only drop it: not verified. Speakers are the nine codes below, looked for
in the file's path where no column gives them.
What is published is asserted: the nine speakers, and of Bijoy et al.'s splits that the largest training set alone has
2,798 utterances of the first four labels (a table may cut the recordings otherwise). No other count is published: neither
the corpus's size nor counts per label or speaker.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.corpora._common import (
    audio_files,
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
from shards.utterance import Utterance, make_key

LABELS = {"1": "anger", "2": "happiness", "3": "neutral", "4": "sadness", "5": "tenderness"}
LEAST = 2798  # utterances of the four classes in Bijoy et al.'s largest training set, one speaker or more left out
SPEAKERS = ("ANRO", "JAKA", "JARA", "MIKO", "PEKO", "RIGR", "TIPE", "TIRE", "TUVA")
SPEAKER = re.compile("|".join(SPEAKERS), re.IGNORECASE)


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of FESC in order of key; see the module for layouts and for what `counts` rules besides missing files."""
    folder = corpus_root(root, "fesc")
    check_mode(counts)
    files = audio_files(folder, "fesc")
    utterances, lost = {}, []
    for where, row in _rows(folder):
        stem = PurePosixPath(str(row["file"]).replace("\\", "/")).stem
        if stem not in files:
            lost.append(row["file"])
            continue
        utterance = _build(stem, files[stem].relative_to(folder), folder, where, row)
        before = utterances.setdefault(utterance.key, utterance)
        if before.label != utterance.label:
            raise UserError(
                f"fesc: {stem} is called {before.label} and {utterance.label}",
                where=where,
                hint="mend one of the tables",
            )
    if lost:
        complain(counts, f"fesc: {len(lost)} audio files are missing: {some(lost)}", folder)
    found = [utterances[key] for key in sorted(utterances)]
    silent = sorted(set(SPEAKERS) - {utterance.speaker for utterance in found})
    if silent:
        complain(
            counts, f"fesc: {len(silent)} of {len(SPEAKERS)} speakers are missing: {some(silent, 9)}", folder
        )
    four = sum(utterance.label != LABELS["5"] for utterance in found)
    if _table(folder) is None and four <= LEAST:
        complain(
            counts,
            f"fesc: {four} utterances of four classes, the published splits have more than {LEAST}",
            folder,
        )
    return iter(found)


def _table(folder: Path) -> Path | None:
    return first_existing(folder, "labels.tsv", "labels.csv")


def _rows(folder: Path) -> Iterator[tuple[str, dict]]:
    """(place, row) of the table, or of every split file."""
    table = _table(folder)
    if table is not None:
        for line, row in rows_of(table, "\t" if table.suffix == ".tsv" else ","):
            need_columns(row, ("file", "label"), table)
            yield f"{table}, line {line}", row
        return
    splits = sorted(folder.rglob("*.json"))
    if not splits:
        raise UserError(
            "fesc: neither labels.tsv nor split files (*.json)",
            where=str(folder),
            hint="write labels.tsv with the columns file, label and speaker",
        )
    for path in splits:
        try:
            rows = json.loads(path.read_text("utf-8"))
            for name, row in rows.items():
                yield f"{path}, {name}", {"file": row["file_path"], "label": row["label"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"fesc: not a split file: {error!r}", where=str(path), hint="move it away"
            ) from error


def _build(stem: str, path: Path, folder: Path, where: str, row: dict) -> Utterance:
    code = str(row["label"]).strip()
    label = LABELS.get(code, code)
    if label not in LABELS.values():
        raise UserError(
            f"fesc: {code!r} is no label", where=where, hint=f"use 1-5 or {', '.join(LABELS.values())}"
        )
    named = (
        SPEAKER.search(row.get("speaker") or "") or SPEAKER.search(stem) or SPEAKER.search(str(path.parent))
    )
    if named is None:
        raise UserError(
            f"fesc: the speaker of {stem} is unknown",
            where=where,
            hint=f"add a column speaker with one of {', '.join(SPEAKERS)}",
        )
    text = row.get("text") or None
    return Utterance(
        key=make_key("fesc", stem),
        corpus="fesc",
        audio=str(folder / path),
        recording=stem,
        speaker=named[0].upper(),
        language="fi",
        gender=row.get("gender") or None,
        age=number(row.get("age")),
        text=text,
        text_source="human" if text else "none",
        label=label,
        licence="none published",
        extra={"code": next(code for code, word in LABELS.items() if word == label)},
    )
