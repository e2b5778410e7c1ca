"""IEMOCAP's evaluation files: labels, votes and means of every turn, published counts, and what is wrong by line."""

import pytest

from shards.audio import load
from shards.corpora import iemocap, read
from shards.errors import UserError
from shards.utterance import Vote

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


def turn(name, label="neu", means="2.5000, 2.0000, 2.5000", votes=("C-E2:\tNeutral;\t()",)):
    return f"[6.2901 - 8.2357]\t{name}\t{label}\t[{means}]\n" + "\n".join(
        [*votes, "A-E3:\tval 3; act 2; dom  2;\t()", "", ""]
    )


def iemocap_tree(plant, dialogs):
    """dialogs: {"Ses01F_impro01": ([turn texts], [transcript lines])}."""
    for dialog, (turns, lines) in dialogs.items():
        session = f"Session{dialog[4]}"
        names = [text.split("\t")[1] for text in turns]
        root = plant(f"{session}/sentences/wav/{dialog}/{name}.wav" for name in names)
        home = root / session / "dialog"
        for folder in ("EmoEvaluation/Categorical", "transcriptions"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "EmoEvaluation" / f"{dialog}.txt").write_text(HEADER + "".join(turns))
        (home / "EmoEvaluation" / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07")
        (home / "EmoEvaluation" / "Categorical" / f"{dialog}_e2_cat.txt").write_text("x :Neutral; ()\n")
        (home / "transcriptions" / f"{dialog}.txt").write_text("\n".join(lines))
    return root


IMPRO = (
    [
        turn("Ses01F_impro01_F000"),
        turn(
            "Ses01F_impro01_M000",
            "xxx",
            "1.5000, 4.0000, 0.5000",
            (
                "C-E2:\tAnger; Frustration;\t(shouts; loud)",
                "C-E3:\tExcited;\t()",
                "C-E4:\tNeutral state;\t()",
                "C-M1:\tAnger;\t()",
            ),
        ),
    ],
    [
        "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.",
        "M: (laughs)",
        "Ses01F_impro01_FXX0 [001.0-002.0]: Oh.",
    ],
)


SCRIPT = ([turn("Ses05M_script01_1b_F003", "exc")], [])


def test_iemocap(plant):
    root = iemocap_tree(plant, {"Ses01F_impro01": IMPRO, "Ses05M_script01_1b": SCRIPT})
    first, second, third = read("iemocap", root, counts="ignore")
    assert (first.speaker, first.session, first.gender, first.label) == ("Ses01F", "Ses01", "female", "neu")
    assert (first.text, first.text_source, first.recording) == ("Excuse me.", "human", "Ses01F_impro01")
    assert (first.valence, first.arousal, first.dominance, first.scale) == (2.5, 2.0, 2.5, (1.0, 5.0))
    assert first.votes == (Vote("neu", "E2"),) and first.extra["style"] == "improvised"
    assert (second.speaker, second.gender, second.text, second.label) == ("Ses01M", "male", None, "xxx")
    assert second.votes == (Vote("ang", "E2"), Vote("fru", "E2"), Vote("exc", "E3"), Vote("neu", "E4"))
    assert second.extra["self_label"] == "ang"
    assert second.dominance is None and second.extra["dominance_raw"] == 0.5  # a missing rating averaged as 0
    assert (third.speaker, third.session, third.extra["style"]) == ("Ses05F", "Ses05", "scripted")
    assert len(load(third)) == 1600


def test_iemocap_published_counts(plant):
    assert sum(iemocap.PUBLISHED["whole corpus"].values()) == 10039
    root = iemocap_tree(plant, {"Ses01F_impro01": IMPRO})
    with pytest.raises(
        UserError, match=r"ang: expected 1103, found 0.*neu: expected 1708, found 1.*expected 10039, found 2"
    ):
        read("iemocap", root)


def test_iemocap_whole_by_counts(plant):
    """10,039 turns with the published labels pass; one label changed does not, and is named."""
    labels = [label for label, n in iemocap.PUBLISHED["whole corpus"].items() for _ in range(n)]
    chunks = [labels[i::10] for i in range(10)]

    def tree(chunks):
        for i, chunk in enumerate(chunks):
            dialog = f"Ses0{i // 2 + 1}{'FM'[i % 2]}_impro01"
            home = root / f"Session{i // 2 + 1}" / "dialog" / "EmoEvaluation"
            home.mkdir(parents=True, exist_ok=True)
            turns = [turn(f"{dialog}_{'FM'[i % 2]}{n:03}", label) for n, label in enumerate(chunk)]
            (home / f"{dialog}.txt").write_text("".join(turns))

    root = plant([])
    tree(chunks)
    with pytest.raises(UserError, match="10039 audio files are missing"):
        read("iemocap", root)  # labels are complete, so the counts pass
    chunks[0][0] = "dis"
    tree(chunks)
    with pytest.raises(UserError, match="dis: expected 2, found 3; neu: expected 1708, found 1707"):
        read("iemocap", root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (turn("Ses01F_impro01_F001", "joy"), "1 lines cannot be read: line 7"),
        (turn("Ses01F_impro01_F001", "neu", "2.5, 2.0"), "1 lines cannot be read: line 7"),
        (turn("Ses01F_impro01_F001", votes=("C-E2:\tBored;\t()",)), "line 8: bored is no category"),
    ],
)
def test_iemocap_one_wrong_line(plant, line, message):
    root = iemocap_tree(plant, {"Ses01F_impro01": ([IMPRO[0][0], line], [])})
    with pytest.raises(UserError, match=message):
        read("iemocap", root)
