"""MELD: English, dialogues of the series Friends, 7 emotions and 3 sentiments, 13,708 utterances.

Poria et al., "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations", ACL 2019.
Licence: GPL-3.0 for the repository with its annotations; the clips are of a commercial series.

Layout: the original, `{train,dev,test}_sent_emo.csv` (beside the clips or in data/MELD) and the clips
`train_splits/dia0_utt0.*`, `dev_splits_complete`, `output_repeated_splits_test` (or the folders train, dev, test).
The clips are MP4, which libsndfile does not read: extract .wav beside them first; the error names the command.
Names: dialogue and utterance number, which restart in each split; keys are `meld-train_dia0_utt0`.
`session`: the split; `recording`: split and dialogue; `extra`: sentiment, season, episode, series_start, series_end.
Traps: the six main speakers are in all splits, so the official split is not speaker-independent; "All" and roles such
as "Waiter" are no single speaker (All is null here); laughter of the audience is in the audio; train dia125_utt3 and
dev dia110_utt7 are broken or absent in the release, so their absence is no error; `final_videos_test*` are duplicates.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from shards.corpora._common import (
    SUFFIXES,
    check_counts,
    check_mode,
    complain,
    corpus_root,
    first_existing,
    need_columns,
    rows_of,
    some,
)
from shards.errors import UserError
from shards.utterance import Utterance, make_key

LABELS: tuple[str, ...] = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
PUBLISHED = {
    "train": dict(zip(LABELS, (1109, 271, 268, 1743, 4710, 683, 1205), strict=True)),
    "dev": dict(zip(LABELS, (153, 22, 40, 163, 470, 111, 150), strict=True)),
    "test": dict(zip(LABELS, (345, 68, 50, 402, 1256, 208, 281), strict=True)),
}
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
BROKEN = {"train_dia125_utt3", "dev_dia110_utt7"}
GENDERS = {
    "Joey": "male",
    "Ross": "male",
    "Chandler": "male",
    "Rachel": "female",
    "Phoebe": "female",
    "Monica": "female",
}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
CLIP = re.compile(r"dia\d+_utt\d+")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of MELD in order of split and label file; see the module for the layout."""
    folder = corpus_root(root, "meld")
    check_mode(counts)
    utterances: list[Utterance] = []
    for split in FOLDERS:
        utterances += _split(folder, split, counts)
    return iter(utterances)


def _split(folder: Path, split: str, counts: str) -> list[Utterance]:
    name = f"{split}_sent_emo.csv"
    table = first_existing(folder, name, f"data/MELD/{name}", f"{split}/{name}")
    clips = first_existing(folder, FOLDERS[split], f"{split}/{FOLDERS[split]}", split)
    if table is None or clips is None:
        what = name if table is None else f"folder {FOLDERS[split]}"
        raise UserError(
            f"meld: no {what}", where=str(folder), hint="unpack the release there, tables beside the clips"
        )
    audio, movies = _clips(clips)
    found: Counter[str] = Counter()
    utterances, lost, wrong = [], [], []
    for line, row in rows_of(table):
        need_columns(row, COLUMNS, table)
        if row["Emotion"] not in LABELS:
            wrong.append(f"line {line}: {row['Emotion']!r}")
            continue
        found[row["Emotion"]] += 1
        clip = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        if clip in audio:
            utterances.append(_build(split, clip, audio[clip], row))
        elif f"{split}_{clip}" not in BROKEN:
            lost.append(clip)
    if wrong:
        complain(counts, f"meld: {len(wrong)} labels are none of {', '.join(LABELS)}: {some(wrong)}", table)
    check_counts("meld", found, {split: PUBLISHED[split]}, counts, table)
    if lost and movies:
        raise UserError(
            f"meld: {len(lost)} clips are MP4 only, which cannot be read: {some(lost)}",
            where=str(clips),
            hint='in that folder: for f in *.mp4; do ffmpeg -i "$f" -vn -ac 1 -ar 16000 "${f%.mp4}.wav"; done',
        )
    if lost:
        complain(counts, f"meld: {len(lost)} audio files are missing: {some(lost)}", clips)
    return utterances


def _clips(folder: Path) -> tuple[dict[str, Path], bool]:
    """{dia_utt: audio file} of one folder, and whether MP4 lies there."""
    paths = sorted(path for path in folder.iterdir() if CLIP.fullmatch(path.stem))
    audio = {path.stem: path for path in paths if path.suffix.lower() in SUFFIXES}
    return audio, any(path.suffix.lower() == ".mp4" for path in paths)


def _build(split: str, clip: str, path: Path, row: dict[str, str]) -> Utterance:
    speaker, text = row["Speaker"].strip(), row["Utterance"].strip()
    return Utterance(
        key=make_key("meld", f"{split}_{clip}"),
        corpus="meld",
        audio=str(path),
        recording=f"{split}_dia{row['Dialogue_ID']}",
        speaker=None if speaker.lower() in ("", "all") else speaker,
        session=split,
        language="en",
        gender=GENDERS.get(speaker),
        text=text or None,
        text_source="human" if text else "none",
        label=row["Emotion"],
        licence="GPL-3.0 (annotations); clips of a commercial series",
        extra={
            "sentiment": row["Sentiment"],
            "season": row.get("Season"),
            "episode": row.get("Episode"),
            "series_start": row.get("StartTime"),
            "series_end": row.get("EndTime"),
        },
    )
