"""Corpora whose labels lie in tables: MSP-Podcast, CREMA-D, MELD, FESC, on trees of their layout."""

import csv
import gzip
import json
import shutil
from collections import Counter

import pytest

from shards.audio import load
from shards.corpora import cremad, fesc, meld, msppodcast, read
from shards.errors import UserError
from shards.utterance import Vote

MSP = [
    "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set",
    "MSP-PODCAST_0001_0008.wav,N,2.333333,4.000000,3.0,127,Male,Test1",
    "MSP-PODCAST_0001_0019.wav,A,5.2,2.0,5.0,Unknown,Unknown,Train",
    "MSP-PODCAST_0023_0001.wav,X,,4.0,4.0,9,Female,Development",
]


def msp_tree(plant, lines=MSP, name="labels_consensus.csv"):
    root = plant(f"Audios/{line.split(',')[0]}" for line in lines[1:])
    for folder in ("Labels", "Transcripts"):
        (root / folder).mkdir(exist_ok=True)
    (root / "Labels" / name).write_text("\n".join(lines) + "\n")
    (root / "Transcripts" / "MSP-PODCAST_0001_0008.txt").write_text("and then I left\n")
    return root


@pytest.mark.parametrize("name", ["labels_consensus.csv", "labels_concensus.csv"])
def test_msppodcast(plant, name):
    first, second, third = read("msppodcast", msp_tree(plant, name=name))
    assert (first.key, first.label, first.session) == ("msppodcast-MSP-PODCAST_0001_0008", "N", "Test1")
    assert (first.valence, first.arousal, first.dominance, first.scale) == (4.0, 2.333333, 3.0, (1.0, 7.0))
    assert (first.speaker, first.gender, first.text, first.recording) == (
        "127",
        "male",
        "and then I left",
        "MSP-PODCAST_0001",
    )
    assert (second.speaker, second.gender, second.text) == (None, None, None)
    assert (third.arousal, third.valence) == (None, 4.0)
    assert len(load(second)) == 1600


DETAILED = {
    "labels_detailed.csv": "FileName,Detail\nMSP-PODCAST_0001_0008.wav,WORKER01; Happy; Amused,Excited; A:4; V:5; D:3;\n".replace(
        "Amused,Excited", "Amused"
    )
    + 'MSP-PODCAST_0001_0008.wav,"WORKER02; Other-Bored; Sad,Bored; A:4; V:5; D:3;"\n',
    "wide/labels_detailed.csv": "FileName,Worker_ID,EmoClass_Major,EmoAct\n"
    "MSP-PODCAST_0001_0008.wav,WORKER01,Happy,4\nMSP-PODCAST_0001_0008.wav,WORKER02,Other-Bored,4\n",
    "labels_detailed.json": json.dumps(
        {
            "MSP-PODCAST_0001_0008.wav": {
                "WORKER01": {"EmoClass_Major": "Happy", "EmoAct": 4},
                "WORKER02": {"EmoClass_Major": "Other-Bored", "EmoAct": 4},
            }
        }
    ),
}


@pytest.mark.parametrize("name", DETAILED)
def test_msppodcast_votes(plant, name):
    root = msp_tree(plant)
    (root / "Labels" / name.split("/")[-1]).write_text(DETAILED[name])
    first, second, _ = read("msppodcast", root)
    assert first.votes == (Vote("H", "WORKER01"), Vote("O", "WORKER02")) and second.votes == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("MSP-PODCAST_0009_0001.wav,Q,1,1,1,1,Male,Train", "line 5: 'Q' is none of"),
        ("MSP-PODCAST_0009_0001.wav,A,1,x,1,1,Male,Train", "line 5: EmoVal 'x' is no number"),
        ("MSP-PODCAST_0009_0001.wav,A,1,8.0,1,1,Male,Train", "line 5: EmoVal 8.0 lies outside 1-7"),
        ("MSP-PODCAST_0001_0008.wav,A,1,1,1,1,Male,Train", "line 5: MSP-PODCAST_0001_0008.wav stands twice"),
        ("MSP-PODCAST_0009_0001.wav,A,1", "line 5 has fewer fields"),
    ],
)
def test_msppodcast_one_wrong_line(plant, line, message):
    root = msp_tree(plant, [*MSP, line])
    with pytest.raises(UserError, match=message):
        read("msppodcast", root)
    if "fields" not in message:
        with pytest.warns(UserWarning, match=message):
            assert len(list(read("msppodcast", root, counts="warn"))) == 3


def test_msppodcast_is_held_against_the_release_that_it_resembles(plant, monkeypatch):
    root = msp_tree(plant)
    assert len(list(read("msppodcast", root))) == 3, "nothing is known of so small a release"
    sizes = {"Train": 1, "Development": 1, "Test1": 1}
    monkeypatch.setitem(msppodcast.RELEASES, "9.0", sizes)
    assert len(list(read("msppodcast", root))) == 3
    for other, differs in (("Test1", 7), ("Development", 0)):
        monkeypatch.setitem(msppodcast.RELEASES, "9.0", sizes | {other: differs})
        with pytest.raises(UserError, match=rf"msppodcast 9.0.*{other}: expected {differs}, found 1"):
            read("msppodcast", root)
        with pytest.warns(UserWarning, match="is not as published"):
            assert len(list(read("msppodcast", root, counts="warn"))) == 3
    near = {"Train": 100, "Development": 100, "Test1": 100}
    assert list(msppodcast._resembled({"Train": 98, "Development": 98, "Test1": 98})) == []
    monkeypatch.setitem(msppodcast.RELEASES, "9.0", near)
    assert list(msppodcast._resembled({"Train": 98, "Development": 98, "Test1": 98})) == ["9.0"]
    assert list(msppodcast._resembled({"Train": 98, "Development": 98, "Test1": 97})) == []


def test_msppodcast_sizes_and_missing_files(plant):
    assert sum(msppodcast.RELEASES["1.6"].values()) == 50362
    assert sum(msppodcast.RELEASES["1.11"].values()) == 151654 - 2347
    assert sum(msppodcast.RELEASES["2.0"].values()) == 267905 - 3200
    root = msp_tree(plant)
    with pytest.raises(UserError, match="Train: expected 169190, found 1"):
        read("msppodcast", root, release="2.0")
    with pytest.raises(UserError, match=r"1\.6, 1\.11, 2\.0"):
        read("msppodcast", root, release="3.0")
    (root / "Audios" / "MSP-PODCAST_0001_0019.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 3 audio files are missing: MSP-PODCAST_0001_0019\.wav"):
        read("msppodcast", root)
    assert len(list(read("msppodcast", root, counts="ignore"))) == 2


def cremad_real(corpora, plant):
    """The real tables with a small file for every clip."""
    source = corpora / "cremad_metadata"
    with open(source / "SentenceFilenames.csv") as file:
        clips = [row["Filename"] for row in csv.DictReader(file)]
    root = plant(f"AudioWAV/{clip}.wav" for clip in clips)
    (root / "processedResults").mkdir()
    shutil.copy(source / "VideoDemographics.csv", root)
    shutil.copy(source / "summaryTable.csv", root / "processedResults")
    with gzip.open(source / "tabulatedVotes.csv.gz") as packed:
        (root / "processedResults" / "tabulatedVotes.csv").write_bytes(packed.read())
    return root


@pytest.mark.slow
def test_cremad_with_the_real_tables(corpora, plant):
    root = cremad_real(corpora, plant)
    by_channel = {
        heard: {u.recording: u for u in read("cremad", root, heard=heard)} for heard in cremad.CHANNELS
    }
    voice = by_channel["voice"]
    assert len(voice) == 7442 and len({u.speaker for u in voice.values()}) == 91
    assert Counter({u.speaker: u.gender for u in voice.values()}.values()) == {"male": 48, "female": 43}
    first = voice["1001_IEO_HAP_HI"]  # the table: A 2, H 6, N 2 of 10
    assert Counter(vote.label for vote in first.votes) == {"ANG": 2, "HAP": 6, "NEU": 2}
    assert (first.label, first.text, first.age, first.extra["level"]) == (
        "HAP",
        "It's eleven o'clock",
        51,
        "HI",
    )
    assert voice["1001_IEO_HAP_LO"].extra["majority"] == "NEU"
    assert by_channel["face"]["1001_IEO_HAP_LO"].extra["majority"] == "HAP"
    agree = sum(v.label == u.label for u in voice.values() for v in u.votes) / sum(
        len(u.votes) for u in voice.values()
    )
    assert 0.395 < agree < 0.405
    # An independent reading of the summary: its majority is the mode of the votes.
    for u in list(voice.values())[::40]:
        counts = Counter(vote.label for vote in u.votes)
        assert set(u.extra["majority"].split(":")) == {
            label for label, n in counts.items() if n == max(counts.values())
        }
    (root / "AudioWAV" / "1001_IEO_ANG_HI.wav").unlink()
    with pytest.raises(UserError, match="ANG: expected 1271, found 1270"):
        read("cremad", root)


def test_cremad_responses_carry_raters(plant):
    root = plant(["AudioWAV/1001_IEO_ANG_HI.wav", "AudioWAV/1002_WSI_SAD_XX.wav"])
    columns = '"","localid","pos","queryType","clipName","respEmo"\n'
    rows = [
        '"1",7,1,1,"1001_IEO_ANG_HI","A"',
        '"2",7,2,2,"1001_IEO_ANG_HI","H"',
        '"3",9,1,1,"1001_IEO_ANG_HI","D"',
    ]
    (root / "finishedResponses.csv").write_text(columns + "\n".join(rows) + "\n")
    first, second = read("cremad", root, counts="ignore")
    assert first.votes == (Vote("ANG", "7"), Vote("DIS", "9")) and second.votes == ()
    assert (first.gender, first.age) == (None, None)
    assert next(read("cremad", root, counts="ignore", heard="face")).votes == (Vote("HAP", "7"),)
    with pytest.raises(UserError, match="heard is 'ear'"):
        read("cremad", root, heard="ear")
    (root / "finishedResponses.csv").write_text(columns + '"1",7,1,1,"1001_IEO_ANG_HI","Q"\n')
    with pytest.raises(UserError, match="line 2: 'Q' is none of"):
        read("cremad", root, counts="ignore")


def test_cremad_refuses_lfs_pointers(plant):
    root = plant(["AudioWAV/1001_IEO_ANG_HI.wav"])
    (root / "AudioWAV/1001_IEO_ANG_HI.wav").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )
    with pytest.raises(UserError, match="git lfs pull"):
        read("cremad", root)


def meld_tree(plant, suffix=".wav", absent=frozenset(), few=False):
    """The whole of MELD in names and labels; clips of one split lie in a folder of their own name."""
    rows = {}
    for split, counts in meld.PUBLISHED.items():
        labels = [label for label, n in counts.items() for _ in range(n)]
        # Ten utterances a dialogue; the published numbers of the two broken clips exist.
        rows[split] = [(n // 10, n % 10, label) for n, label in enumerate(labels)]
    names = [
        f"{meld.FOLDERS[split]}/dia{d}_utt{u}{suffix}"
        for split, items in rows.items()
        for d, u, _ in items
        if f"{split}_dia{d}_utt{u}" not in absent and not (few and d)
    ]
    root = plant(names)
    for split, items in rows.items():
        with open(root / f"{split}_sent_emo.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                [
                    "Sr No.",
                    "Utterance",
                    "Speaker",
                    "Emotion",
                    "Sentiment",
                    "Dialogue_ID",
                    "Utterance_ID",
                    "Season",
                    "Episode",
                    "StartTime",
                    "EndTime",
                ]
            )
            for n, (d, u, label) in enumerate(items):
                who = ("Joey", "Monica", "All", "Waiter")[n % 4]
                writer.writerow(
                    [
                        n + 1,
                        'He said, "no"',
                        who,
                        label,
                        "neutral",
                        d,
                        u,
                        8,
                        21,
                        "00:16:16,059",
                        "00:16:21,731",
                    ]
                )
    return root


@pytest.mark.slow
def test_meld(plant):
    root = meld_tree(plant, absent={"train_dia125_utt3"})
    plant(["output_repeated_splits_test/final_videos_testdia0_utt0.wav"])
    utterances = list(read("meld", root))
    assert len(utterances) == 13708 - 1  # the broken clip's absence is no error
    first = utterances[0]
    assert (first.key, first.session, first.recording) == ("meld-train_dia0_utt0", "train", "train_dia0")
    assert (first.text, first.speaker, first.gender) == ('He said, "no"', "Joey", "male")
    assert utterances[2].speaker is None and (utterances[3].speaker, utterances[3].gender) == ("Waiter", None)
    assert len({u.key for u in utterances}) == len(utterances) and len(load(first)) == 1600
    (root / meld.FOLDERS["dev"] / "dia7_utt3.wav").unlink()
    with pytest.raises(UserError, match="1 audio files are missing: dia7_utt3"):
        read("meld", root)
    text = (root / "test_sent_emo.csv").read_text().replace(",anger,", ",angry,", 1)
    (root / "test_sent_emo.csv").write_text(text)
    (root / meld.FOLDERS["dev"] / "dia7_utt3.wav").write_bytes(b"")
    with pytest.raises(UserError, match="line 2: 'angry'"):
        read("meld", root)


def test_meld_of_mp4_only_names_the_command(plant):
    with pytest.raises(UserError, match="MP4 only") as caught:
        read("meld", meld_tree(plant, ".mp4", few=True))
    assert "ffmpeg" in caught.value.hint


def test_fesc_from_a_table_and_from_split_files(plant):
    root = plant(["JAKA/JAKA_01.wav", "JAKA/JAKA_02.wav", "wav/tuva-3.wav"])
    (root / "labels.csv").write_text(
        "file,label,text\nJAKA_01.wav,1,hei\n/other/JAKA_02.wav,tenderness,\ntuva-3.wav,4,\n"
    )
    utterances = list(read("fesc", root, counts="ignore"))
    assert [(u.speaker, u.label, u.text) for u in utterances] == [
        ("JAKA", "anger", "hei"),
        ("JAKA", "tenderness", None),
        ("TUVA", "sadness", None),
    ]
    assert [u.extra["code"] for u in utterances] == ["1", "5", "4"] and len(load(utterances[0])) == 1600
    (root / "labels.csv").unlink()
    part = {
        "a": {"file_path": "/m/JAKA_01.wav", "label": "1"},
        "b": {"file_path": "/m/tuva-3.wav", "label": "4"},
    }
    for split in ("train", "test"):  # the same file in two splits of two folds
        (root / "TIRE").mkdir(exist_ok=True)
        (root / "TIRE" / f"{split}.json").write_text(json.dumps(part))
    assert [(u.speaker, u.label) for u in read("fesc", root, counts="ignore")] == [
        ("JAKA", "anger"),
        ("TUVA", "sadness"),
    ]
    part["b"]["label"] = "6"
    (root / "TIRE" / "train.json").write_text(json.dumps(part))
    with pytest.raises(UserError, match="'6' is no label"):
        read("fesc", root)


def test_fesc_is_counted_as_far_as_it_is_published(plant, monkeypatch):
    named = [f"{speaker}_{i}" for speaker in fesc.SPEAKERS for i in range(3)]
    root = plant([f"{name}.wav" for name in named])
    table = root / "labels.csv"
    lines = [f"{name}.wav,{1 + i % 5}" for i, name in enumerate(named)]
    table.write_text("\n".join(["file,label", *lines]))
    assert len(list(read("fesc", root))) == 27
    table.write_text("\n".join(["file,label", *(line for line in lines if "TUVA" not in line)]))
    with pytest.raises(UserError, match="1 of 9 speakers are missing: TUVA"):
        read("fesc", root)
    table.unlink()
    part = {name: {"file_path": f"{name}.wav", "label": str(1 + i % 5)} for i, name in enumerate(named)}
    (root / "train.json").write_text(json.dumps(part))
    with pytest.raises(
        UserError, match="22 utterances of four classes, the published splits have more than 2798"
    ):
        read("fesc", root)
    monkeypatch.setattr(fesc, "LEAST", 21)
    assert len(list(read("fesc", root))) == 27


def test_fesc_mistakes(plant):
    root = plant(["a/x_01.wav"])
    (root / "labels.csv").write_text("file,label\nx_01.wav,1\n")
    with pytest.raises(UserError, match="the speaker of x_01 is unknown"):
        read("fesc", root)
    (root / "labels.csv").write_text("file,label\nTUVA_9.wav,1\n")
    with pytest.raises(UserError, match="1 audio files are missing: TUVA_9"):
        read("fesc", root)
