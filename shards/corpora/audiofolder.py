"""Hugging Face's audiofolder layout: folders of audio with metadata.csv, .jsonl or .parquet, or folders named as labels.

With metadata (in the folder or in each split's): the column `file_name` is the path from the metadata's folder; `label`,
`emotion` or `labels` the label, `text`, `transcription`, `transcript` or `sentence` the text; other names as in `manifest`.
Without: the folder that holds a file is its label, the one above its split. Splits (train, validation, dev, test) go
to `extra["split"]`, never into folds by themselves: the layout knows no speakers, so say who speaks, where the names
do not: a protocol by speaker refuses utterances without one.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shards.corpora._common import SUFFIXES, audio_files, check_mode, corpus_root
from shards.corpora._rows import Mapper, finish, relative_to
from shards.corpora.manifest import table_rows
from shards.errors import UserError
from shards.utterance import Utterance

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
GUESSES = {
    "audio": ("file_name", "file", "path"),
    "label": ("label", "emotion", "labels"),
    "text": ("text", "transcription", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id"),
}


def read(
    root: str | os.PathLike,
    counts: str = "strict",
    corpus: str | None = None,
    columns: Mapping[str, str] | None = None,
    defaults: Mapping[str, object] | None = None,
    labels: Sequence[str] = (),
    expected: Mapping[str, int] | None = None,
) -> Iterator[Utterance]:
    """Utterances of an audiofolder; the options are `manifest`'s, `columns` going before the guesses."""
    check_mode(counts)
    folder = corpus_root(root, "audiofolder")
    name = corpus or folder.resolve().name
    rows = list(_metadata(folder)) or list(_by_folder(folder))
    names = {name for _, row in rows for name in row}
    guessed = {field: column for field, tried in GUESSES.items() if (column := _first(tried, names))}
    mapper = Mapper(name, folder, {**guessed, **(columns or {})}, defaults or {}, tuple(labels))
    pairs = ((place, mapper.utterance(row, place)) for place, row in rows)
    return iter(finish(name, pairs, counts, folder, expected))


def _first(tried: Sequence[str], names: set[str]) -> str | None:
    return next((column for column in tried if column in names), None)


def _metadata(folder: Path) -> Iterator[tuple[str, dict]]:
    for path in sorted(path for name in METADATA for path in folder.rglob(name)):
        for place, row in table_rows(path):
            if not isinstance(row.get("file_name"), str):
                raise UserError(
                    "metadata needs file_name in every row",
                    where=place,
                    hint=f"the columns are {', '.join(map(str, row))}",
                )
            name = relative_to(path.parent, folder, row["file_name"])
            split = next((part for part in name.split("/")[:-1] if part.lower() in SPLITS), None)
            yield place, {"split": split, **row, "file_name": name}


def _by_folder(folder: Path) -> Iterator[tuple[str, dict]]:
    """Labels from folders; one stem may occur in several, so each is searched alone."""
    homes = sorted({path for path, _, files in os.walk(folder) if files and Path(path) != folder})
    for home in homes:
        parts = Path(home).relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        names = sorted(name for name in os.listdir(home) if not name.startswith("."))
        for path in (Path(home, name) for name in names):
            if path.is_file() and path.suffix.lower() in SUFFIXES:
                split = next((part for part in parts[:-1] if part.lower() in SPLITS), None)
                row = {"file_name": path.relative_to(folder).as_posix(), "label": parts[-1], "split": split}
                yield str(path), row
    if not homes:
        audio_files(folder, "audiofolder")  # says what is missing
        raise UserError(
            "audio without metadata and without folders of labels",
            where=str(folder),
            hint="write metadata.csv with the columns file_name and label",
        )
