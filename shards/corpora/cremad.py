"""CREMA-D: English, 91 actors, 12 sentences, 6 emotions, 4 levels, 7442 utterances with crowd votes.

Cao, Cooper, Keutmann, Gur, Nenkova, Verma, "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Trans.
Affective Computing 5(4), 2014. Licence: ODbL 1.0 (database), DbCL 1.0 (contents).

Layout: the original repository, `AudioWAV/*.wav`, `VideoDemographics.csv`, `processedResults/tabulatedVotes.csv` and
`summaryTable.csv`, `finishedResponses.csv`; the tables may also lie beside AudioWAV, and be .gz.
Names: 1001_IEO_ANG_HI is actor, sentence, intended emotion, level (LO, MD, HI, XX unspecified). The label is the
INTENDED emotion; what raters heard is in `votes`, in the same vocabulary. Votes come with rater ids from
finishedResponses where it is there, else without from tabulatedVotes. `heard=` chooses whose votes: "voice" (audio
alone, default), "face" or "multimodal". `extra`: level, sentence, majority (of that channel, "ANG:DIS" for a tie), race,
ethnicity. Traps: the audio is Git LFS, a plain download holds text pointers of 130 bytes (refused here);
1076_MTI_SAD_XX has no signal; intended and heard emotion agree in 40 % of the voice-only ratings.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import (
    audio_files,
    complain,
    corpus_root,
    first_existing,
    need_columns,
    number,
    read_named,
    rows_of,
    some,
)
from shards.errors import UserError
from shards.utterance import Utterance, Vote, make_key

LABELS = {"A": "ANG", "D": "DIS", "F": "FEA", "H": "HAP", "N": "NEU", "S": "SAD"}
PUBLISHED = {"whole corpus": {label: 1087 if label == "NEU" else 1271 for label in LABELS.values()}}
SENTENCES = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
CHANNELS = {"voice": ("1", "VoiceVote"), "face": ("2", "FaceVote"), "multimodal": ("3", "MultiModalVote")}
NAME = re.compile(rf"(1\d{{3}})_({'|'.join(SENTENCES)})_({'|'.join(LABELS.values())})_(LO|MD|HI|XX)")


def read(root: str, counts: str = "strict", heard: str = "voice") -> Iterator[Utterance]:
    """Utterances of CREMA-D in order of key.

    Args:
        root: The repository's folder.
        counts: See `shards.corpora`.
        heard: Whose votes: "voice", "face" or "multimodal".
    """
    folder = corpus_root(root, "cremad")
    if heard not in CHANNELS:
        raise UserError(f"cremad: heard is {heard!r}", hint=f"use one of {', '.join(CHANNELS)}")
    audio = first_existing(folder, "AudioWAV", "AudioMP3") or folder
    _refuse_pointers(audio)
    digit, column = CHANNELS[heard]
    actors = _actors(folder)
    votes = _responses(folder, digit, counts) or _tabulated(folder, digit)
    summary = _table(folder, "summaryTable.csv", "FileName", column)
    majority = {
        row["FileName"]: ":".join(LABELS[letter] for letter in row[column].split(":")) for row in summary
    }

    def build(stem: str, path: Path, match: re.Match, row: Mapping[str, str]) -> Utterance:
        actor, sentence, label, level = match.groups()
        person = actors.get(actor, {})
        return Utterance(
            key=make_key("cremad", stem),
            corpus="cremad",
            audio=str(path),
            recording=stem,
            speaker=actor,
            language="en",
            gender=person.get("Sex", "").lower() or None,
            age=number(person.get("Age")),
            text=SENTENCES[sentence],
            text_source="human",
            label=label,
            votes=tuple(votes.get(stem, ())),
            licence="ODbL 1.0, DbCL 1.0",
            extra={
                "level": level,
                "sentence": sentence,
                "majority": majority.get(stem),
                "race": person.get("Race"),
                "ethnicity": person.get("Ethnicity"),
            },
        )

    return read_named(audio, "cremad", NAME, build, PUBLISHED, counts)


def _refuse_pointers(audio: Path) -> None:
    """A repository without its LFS objects holds small text files under .wav; one look tells."""
    path = next(iter(audio_files(audio, "cremad").values()))
    with open(path, "rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise UserError(
                "cremad: the audio files are Git LFS pointers, not audio",
                where=str(path),
                hint="type `git lfs pull` in the repository",
            )


def _table(folder: Path, name: str, *columns: str) -> list[dict[str, str]]:
    """Rows of one of the corpus's tables, [] where it is not there."""
    homes = ("processedResults/", "")
    path = first_existing(folder, *(f"{home}{name}{zipped}" for home in homes for zipped in ("", ".gz")))
    if path is None:
        return []
    rows = []
    for line, row in rows_of(path):
        need_columns(row, columns, path)
        letters = ":".join(
            row[column] for column in columns if column.endswith("Vote") or column == "respEmo"
        )
        if any(letter not in LABELS for letter in letters.split(":") if letter):
            raise UserError(
                f"line {line}: {letters!r} is none of {', '.join(LABELS)}", where=str(path), hint="mend it"
            )
        rows.append(row)
    return rows


def _actors(folder: Path) -> dict[str, dict[str, str]]:
    return {row["ActorID"]: row for row in _table(folder, "VideoDemographics.csv", "ActorID", "Age", "Sex")}


def _responses(folder: Path, digit: str, counts: str) -> dict[str, list[Vote]]:
    """{clip: votes} with raters, of finishedResponses.csv."""
    votes: dict[str, list[Vote]] = {}
    rows = _table(folder, "finishedResponses.csv", "localid", "queryType", "clipName", "respEmo")
    empty = []
    for row in rows:
        if row["queryType"].strip() != digit:
            continue
        if not row["respEmo"]:
            empty.append(row["clipName"])
            continue
        stem = row["clipName"].split(".")[0]
        votes.setdefault(stem, []).append(Vote(LABELS[row["respEmo"]], row["localid"]))
    if empty:
        complain(counts, f"cremad: {len(empty)} responses have no emotion: {some(empty)}", folder)
    return votes


def _tabulated(folder: Path, digit: str) -> dict[str, list[Vote]]:
    """{clip: votes} without raters, of tabulatedVotes.csv, whose row ids begin with the channel's digit."""
    rows = _table(folder, "tabulatedVotes.csv", "", "fileName", *LABELS)
    return {
        row["fileName"]: [Vote(label) for letter, label in LABELS.items() for _ in range(int(row[letter]))]
        for row in rows
        if row[""].startswith(digit)
    }
