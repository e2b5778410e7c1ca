"""What the readers share: finding audio, reading label tables, and saying exactly what differs from the published corpus.

Guarantees: hidden files ("._x.wav" of macOS archives) are never audio; two files of one name are refused, not merged;
order is by name, whatever the file system does.
"""

import csv
import gzip
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from shards.errors import UserError
from shards.utterance import Utterance

SUFFIXES = (".wav", ".flac", ".aiff", ".aif", ".mp3", ".ogg", ".opus")
MODES = ("strict", "warn", "ignore")
WAY_OUT = 'counts: warn reads what is there, counts: ignore says nothing; in Python read(..., counts="warn")'


def corpus_root(root: str | os.PathLike, corpus: str, hint: str = "") -> Path:
    """The corpus's folder, or a UserError that says what was expected there."""
    path = Path(root)
    if not path.is_dir():
        what = f"{corpus}: the folder does not exist" if not path.exists() else f"{corpus}: not a folder"
        raise UserError(what, where=str(path), hint=hint or "give the folder that holds the corpus")
    return path


def check_mode(counts: str) -> None:
    if counts not in MODES:
        raise UserError(f"counts is {counts!r}", hint=f"use one of {', '.join(MODES)}")


def complain(counts: str, what: str, where: str | Path, hint: str = WAY_OUT) -> None:
    """Raises, warns or keeps silent, as `counts` says."""
    check_mode(counts)
    if counts == "strict":
        raise UserError(what, where=str(where), hint=hint)
    if counts == "warn":
        warnings.warn(f"{what} ({where})", stacklevel=3)


def some(names: Iterable[object], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + rest


def audio_files(root: Path, corpus: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """All audio below root as {stem: path}, sorted by stem.

    Raises:
        UserError: There is none, or two files have one stem (a mirror that holds the corpus twice, or at two rates).
    """
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if name.startswith(".") or suffix.lower() not in suffixes:
                continue
            path = Path(folder, name)
            if stem in found:
                raise UserError(
                    f"{corpus}: two audio files are called {stem}",
                    where=f"{found[stem]} and {path}",
                    hint="point root at one copy of the corpus",
                )
            found[stem] = path
    if not found:
        raise UserError(
            f"{corpus}: no audio file below the folder",
            where=str(root),
            hint=f"expected {', '.join(suffixes)}; give the folder that holds the unpacked corpus",
        )
    return dict(sorted(found.items()))


def rows_of(
    path: Path, delimiter: str = ",", encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a table with a header. Tab-separated files have no quoting: nEMO's texts hold bare quotes."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding=encoding, newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"line {reader.line_num} has {'more' if None in row else 'fewer'} fields than the header",
                        where=str(path),
                        hint="mend the line, or fetch the file again",
                    )
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
        raise UserError(
            f"not a readable table: {error}", where=str(path), hint="fetch the file again"
        ) from error


def need_columns(row: Mapping[str, object], names: Iterable[str], path: Path) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(
            f"the table has no column {some(missing)}",
            where=str(path),
            hint=f"its columns are {', '.join(map(str, row))}",
        )


def first_existing(root: Path, *names: str) -> Path | None:
    """The first of these relative paths that exists below root."""
    return next((root / name for name in names if (root / name).exists()), None)


def number(text: str | None) -> float | None:
    """A float, or None for an empty cell or "Unknown"; a wrong cell raises ValueError."""
    text = (text or "").strip()
    return None if text.lower() in ("", "unknown", "nan", "none", "n/a") else float(text)


def check_counts(
    corpus: str,
    found: Mapping[str, int],
    known: Mapping[str, Mapping[str, int]],
    counts: str,
    where: str | Path,
) -> str | None:
    """Compares counts per label with the published ones.

    Args:
        found: Label to number of utterances.
        known: Name of a release or subset to its published counts. Empty: nothing is asserted.
        counts: "strict", "warn" or "ignore".

    Returns:
        The name of the release that fits, or None.
    """
    check_mode(counts)
    found = {label: n for label, n in found.items() if n}
    for name, expected in known.items():
        if dict(expected) == found:
            return name
    if known:
        nearest = min(known, key=lambda name: _distance(found, known[name]))
        expected = known[nearest]
        differ = [
            f"{label}: expected {expected.get(label, 0)}, found {found.get(label, 0)}"
            for label in sorted(set(expected) | set(found))
            if expected.get(label, 0) != found.get(label, 0)
        ]
        total = f"all: expected {sum(expected.values())}, found {sum(found.values())}"
        complain(counts, f"{corpus} is not as published ({nearest}): {'; '.join(differ)}; {total}", where)
    return None


def _distance(found: Mapping[str, int], expected: Mapping[str, int]) -> int:
    return sum(abs(expected.get(label, 0) - found.get(label, 0)) for label in set(expected) | set(found))


def label_counts(utterances: Iterable[Utterance]) -> Counter[str]:
    return Counter(utterance.label or "(none)" for utterance in utterances)


def labels_table(root: Path) -> dict[str, dict[str, str]]:
    """{file: row} of a `labels.tsv` beside an audio folder, or {} where the corpus lies in its original layout."""
    path = root / "labels.tsv"
    if not path.is_file():
        return {}
    table: dict[str, dict[str, str]] = {}
    for line, row in rows_of(path, "\t"):
        need_columns(row, ("file",), path)
        if row["file"] in table:
            raise UserError(
                f"line {line}: {row['file']} stands twice", where=str(path), hint="remove one line"
            )
        table[row["file"]] = row
    return table


Builder = Callable[[str, Path, re.Match, Mapping[str, str]], Utterance | None]


def read_named(
    root: Path,
    corpus: str,
    pattern: re.Pattern[str],
    build: Builder,
    known: Mapping[str, Mapping[str, int]],
    counts: str,
) -> Iterator[Utterance]:
    """Reads a corpus whose file names carry the labels.

    Args:
        root: Folder with the audio, at any depth.
        pattern: What a stem of this corpus looks like.
        build: (stem, path, match, row of labels.tsv or {}) to an Utterance, or None to leave the file out.
        known: Published counts per label, see `check_counts`.
        counts: "strict", "warn" or "ignore".

    Raises:
        UserError: A file of another name, a line of labels.tsv that contradicts a file name, or wrong counts.
    """
    check_mode(counts)
    table, utterances, strange = labels_table(root), [], []
    for stem, path in audio_files(root, corpus).items():
        match = pattern.fullmatch(stem)
        if match is None:
            strange.append(path)
            continue
        utterance = build(stem, path, match, table.get(stem, {}))
        if utterance is not None:
            utterances.append(utterance)
    if strange:
        complain(
            counts, f"{corpus}: {len(strange)} audio files have a name of no utterance: {some(strange)}", root
        )
    if table:
        _check_table(root, corpus, table, utterances, counts)
    check_counts(corpus, label_counts(utterances), known, counts, root)
    return iter(sorted(utterances, key=lambda utterance: utterance.key))


def _check_table(
    root: Path, corpus: str, table: Mapping[str, Mapping[str, str]], utterances: list[Utterance], counts: str
) -> None:
    """labels.tsv must hold one line a file and agree with the file names."""
    wrong, seen = [], set()
    for utterance in utterances:
        stem = utterance.recording
        seen.add(stem)
        row = table.get(stem)
        if row is None:
            wrong.append(f"{stem} has audio and no line")
            continue
        own = utterance.extra.get("code", utterance.label)
        for column, value in (("emotion_native", own), ("speaker", utterance.speaker)):
            if column in row and row[column] != value:
                wrong.append(f"{stem}: {column} is {row[column]!r}, the file name says {value!r}")
    wrong += [f"{name} has a line and no audio" for name in table if name not in seen]
    if wrong:
        complain(
            counts, f"{corpus}: {len(wrong)} lines do not fit the audio: {some(wrong)}", root / "labels.tsv"
        )


def keep_present(corpus: str, utterances: list[Utterance], counts: str, where: Path) -> list[Utterance]:
    """Drops utterances whose audio file is absent, after complaining about them by name."""
    lost = [
        utterance
        for utterance in utterances
        if "://" not in utterance.audio and not os.path.isfile(utterance.audio)
    ]
    if lost:
        complain(
            counts, f"{corpus}: {len(lost)} audio files are missing: {some(u.audio for u in lost)}", where
        )
        gone = {utterance.key for utterance in lost}
        utterances = [utterance for utterance in utterances if utterance.key not in gone]
    return utterances
