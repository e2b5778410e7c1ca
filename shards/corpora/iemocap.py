"""IEMOCAP: English, 5 dyadic sessions of two actors each, scripted and improvised, 10,039 utterances.

Busso et al., "IEMOCAP: Interactive emotional dyadic motion capture database", Language Resources and Evaluation 42,
2008. Licence: USC's own, for research, by signed form.

Layout: the original, `Session1/dialog/EmoEvaluation/*.txt`, `dialog/transcriptions/*.txt`, `sentences/wav/<dialog>/*.wav`.
Names: Ses01F_script02_1_M003 is session 1, F wears the markers, dialog, and M speaks; so the speaker is Ses01M.
Labels are the release's codes (majority of the raters; xxx = no majority). Valence, arousal (activation) and dominance
are means on 1-5. `votes`: every rater's categories, several where a rater gave several; `extra`: style (improvised,
scripted), dialog_start, dialog_end, self_label (the actor's own view of it), and raw means that lie outside 1-5.
Traps: the usual four classes merge exc into hap (a protocol's work); scripted dialogs repeat the same lines in all
sessions, so text leaks over session folds; hidden "._" files fill the archive; a missing dominance rating was
averaged as 0, so some means lie below 1: those are null here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from shards.corpora._common import (
    check_counts,
    check_mode,
    complain,
    corpus_root,
    keep_present,
    label_counts,
    some,
)
from shards.errors import UserError
from shards.utterance import Utterance, Vote, make_key

PUBLISHED = {
    "whole corpus": {
        "neu": 1708,
        "fru": 1849,
        "ang": 1103,
        "sad": 1084,
        "exc": 1041,
        "hap": 595,
        "sur": 107,
        "fea": 40,
        "oth": 3,
        "dis": 2,
        "xxx": 2507,
    }
}
VOTES = {
    "neutral": "neu",
    "neutral state": "neu",
    "frustration": "fru",
    "anger": "ang",
    "sadness": "sad",
    "excited": "exc",
    "excitement": "exc",
    "happiness": "hap",
    "surprise": "sur",
    "fear": "fea",
    "other": "oth",
    "disgust": "dis",
}
SCALE = (1.0, 5.0)
HEAD = re.compile(r"\[([\d.]+) - ([\d.]+)\]\s+(\S+)\s+(\S+)\s+\[([\d.]+), ([\d.]+), ([\d.]+)\]\s*")
NAME = re.compile(r"(Ses0[1-5])[FM]_(impro|script)\w*_([FM])\d+")
RATING = re.compile(r"C-([A-Z]\w*):\s*(.*)")
TURN = re.compile(r"(\S+) \[[\d. -]+\]:\s*(.*)")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of IEMOCAP in order of key; see the module for the layout."""
    folder = corpus_root(root, "iemocap", "give the folder that holds Session1 to Session5")
    check_mode(counts)
    utterances = []
    for evaluation in sorted(folder.glob("Session[1-5]/dialog/EmoEvaluation/*.txt")):
        if not evaluation.name.startswith("."):
            utterances += _dialog(evaluation, counts)
    if not utterances:
        raise UserError(
            "iemocap: no Session1/dialog/EmoEvaluation/*.txt",
            where=str(folder),
            hint="give the folder that holds Session1 to Session5",
        )
    check_counts("iemocap", label_counts(utterances), PUBLISHED, counts, folder)
    utterances = keep_present("iemocap", utterances, counts, folder)
    return iter(sorted(utterances, key=lambda utterance: utterance.key))


def _dialog(evaluation: Path, counts: str) -> list[Utterance]:
    """One evaluation file: a head line for each turn, then its raters' lines."""
    session = evaluation.parents[2]
    texts = _transcript(session / "dialog" / "transcriptions" / evaluation.name)
    turns: list[tuple[re.Match, list[Vote], list[str]]] = []
    wrong = []
    for line_number, line in enumerate(evaluation.read_text("utf-8", errors="replace").splitlines(), start=1):
        line = line.strip()
        if line.startswith("[") and not line.startswith("[START"):
            head = HEAD.fullmatch(line)
            if head is None or not NAME.fullmatch(head[3]) or head[4] not in PUBLISHED["whole corpus"]:
                wrong.append(f"line {line_number}: {line!r}")
                continue
            turns.append((head, [], []))
        elif turns and (rating := RATING.fullmatch(line)):
            rater, rest = rating.groups()
            words = [word.strip().lower() for word in rest.split("(")[0].split(";") if word.strip()]
            unknown = [word for word in words if word not in VOTES]
            if unknown:
                wrong.append(f"line {line_number}: {some(unknown)} is no category")
            words = [VOTES[word] for word in words if word in VOTES]
            if rater[0] in "FM":  # the actors' own view
                turns[-1][2].extend(words)
            else:
                turns[-1][1].extend(Vote(word, rater) for word in words)
    if wrong:
        complain(counts, f"iemocap: {len(wrong)} lines cannot be read: {some(wrong)}", evaluation)
    return [_turn(session, evaluation.stem, texts, *turn) for turn in turns]


def _turn(
    session: Path, dialog: str, texts: dict[str, str], head: re.Match, votes: list[Vote], own: list[str]
) -> Utterance:
    name = head[3]
    parts = NAME.fullmatch(name)
    assert parts, name  # checked while reading
    number, style, speaker = parts.groups()
    means = dict(zip(("valence", "arousal", "dominance"), map(float, head.group(5, 6, 7)), strict=True))
    inside = {field: mean for field, mean in means.items() if SCALE[0] <= mean <= SCALE[1]}
    text = texts.get(name)
    return Utterance(
        key=make_key("iemocap", name),
        corpus="iemocap",
        audio=str(session / "sentences" / "wav" / dialog / f"{name}.wav"),
        recording=dialog,
        speaker=number + speaker,
        session=number,
        language="en",
        gender="female" if speaker == "F" else "male",
        text=text,
        text_source="human" if text else "none",
        label=head[4],
        votes=tuple(votes),
        **inside,
        scale=SCALE,
        licence="USC IEMOCAP licence, research only",
        extra={
            "style": "improvised" if style == "impro" else "scripted",
            "dialog_start": float(head[1]),
            "dialog_end": float(head[2]),
            "self_label": own[0] if own else None,
            **{f"{field}_raw": mean for field, mean in means.items() if field not in inside},
        },
    )


def _transcript(path: Path) -> dict[str, str]:
    """{turn: text}; lines of unsegmented talk ("M: ...") and empty texts are left out."""
    if not path.is_file():
        return {}
    matches = map(TURN.fullmatch, path.read_text("utf-8", errors="replace").splitlines())
    return {match[1]: match[2].strip() for match in matches if match and match[2].strip()}
