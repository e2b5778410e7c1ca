"""Tables of one's own: manifest, audiofolder, audformat."""

import datetime
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.audio import load
from shards.corpora import read
from shards.corpora._rows import Mapper
from shards.errors import UserError
from shards.utterance import KEY_PATTERN, Vote, make_key

ROWS = [
    {
        "path": "a/one.wav",
        "emotion": "angry",
        "speaker": "7",
        "V": 2.0,
        "start": None,
        "end": None,
        "votes": "angry|angry|sad",
    },
    {
        "path": "a/long.wav",
        "emotion": "sad",
        "speaker": "8",
        "V": None,
        "start": 0.0,
        "end": 0.05,
        "votes": None,
    },
    {
        "path": "a/long.wav",
        "emotion": None,
        "speaker": None,
        "V": 6.5,
        "start": 0.05,
        "end": 0.1,
        "votes": None,
    },
]
COLUMNS = {"audio": "path", "label": "emotion", "valence": "V"}
DEFAULTS = {"language": "de", "scale": [1, 7]}


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [
            mark.join(rows[0]),
            *(mark.join("" if v is None else str(v) for v in row.values()) for row in rows),
        ]
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.tsv", "manifest.jsonl", "manifest.parquet"])
def test_four_kinds_of_table_say_the_same(plant, name):
    root = plant(["a/one.wav", "a/long.wav"])
    write(root / name, ROWS)
    utterances = list(read("manifest", root, columns=COLUMNS, defaults=DEFAULTS, corpus="mine"))
    assert utterances == list(
        read("manifest", root / name, columns=COLUMNS, defaults=DEFAULTS, corpus="mine")
    )
    first, second, third = utterances
    assert (first.key, second.key, third.key) == ("mine-a-one", "mine-a-long-0", "mine-a-long-50")
    assert (first.label, first.speaker, first.valence, first.language) == ("angry", "7", 2.0, "de")
    assert first.votes == (Vote("angry"), Vote("angry"), Vote("sad")) and first.scale == (1.0, 7.0)
    assert (second.valence, third.label, third.speaker) == (None, None, None)
    assert second.recording == third.recording == "a/long"
    assert [len(load(u)) for u in utterances] == [1600, 800, 800]


def test_extra_text_source_and_urls(plant):
    root = plant([])
    row = {
        "audio": "s3://bucket/x.wav",
        "text": "hi",
        "text_source": "asr:whisper",
        "room": 3,
        "scale": "1-5",
        "arousal": 5,
    }
    row["votes"] = [{"label": "sad", "rater": 4}]
    write(
        root / "t.jsonl",
        [row, {"audio": "s3://bucket/y.wav", "text": "ho", "votes": {"sad": 2}, "room": None}],
    )
    first, second = read("manifest", root / "t.jsonl")
    assert (first.audio, first.corpus, first.text_source) == ("s3://bucket/x.wav", "t", "asr:whisper")
    assert (first.arousal, first.scale, first.votes) == (5.0, (1.0, 5.0), (Vote("sad", "4"),))
    assert first.extra == {"room": 3} and second.extra == {"room": None}
    assert (second.text_source, second.votes) == ("human", (Vote("sad"), Vote("sad")))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"file": "a.wav"}], {}, "no audio in column 'audio'; the columns are file"),
        ([{"audio": "a.wav", "valence": "high"}], {}, "line 2"),
        (
            [{"audio": "a.wav", "valence": "8"}],
            {"defaults": {"scale": [1, 7]}},
            "valence 8.0 lies outside its scale",
        ),
        ([{"audio": "a.wav", "valence": "3"}], {}, "valence 3.0 lies outside its scale None"),
        ([{"audio": "a.wav", "start": "2", "end": "1"}], {}, "start 2.0 is not before end 1.0"),
        ([{"audio": "a.wav", "key": "a b"}], {}, "key 'a b' is not of the form"),
        ([{"audio": "a.wav"}, {"audio": "a.wav"}], {}, "1 keys stand twice: .*line 2 and .*line 3"),
        ([{"audio": "a.wav"}, {"audio": "b.wav"}], {}, "1 audio files are missing: .*b.wav"),
        ([{"audio": "a.wav", "label": "joy"}], {"labels": ["happy"]}, "'joy' is outside the vocabulary"),
        ([{"audio": "a.wav", "label": "joy"}], {"expected": {"joy": 2}}, "joy: expected 2, found 1"),
        ([{"audio": "a.wav"}], {"columns": {"lable": "x"}}, "no field 'lable'"),
        ([{"audio": "a.wav"}], {"defaults": {"lang": "x"}}, "no field 'lang'"),
    ],
)
def test_mistakes_name_their_line(plant, rows, options, message):
    root = plant(["a.wav"])
    write(root / "manifest.csv", rows)
    with pytest.raises(UserError, match=message):
        read("manifest", root, **options)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.jsonl", b'{"audio": "a.wav"}\n{"audio": \n', "line 2"),
        ("t.jsonl", b"[1]\n", "not a JSON object"),
        ("t.parquet", b"PAR1 not really", "not a readable Parquet"),
        ("t.csv", b"audio,label\na.wav\n", "line 2 has fewer fields"),
        ("t.csv", b"audio,label\n\xff\xfe,x\n", "not a readable table"),
        ("t.csv", b"audio,label\n", "no rows"),
        ("t.xls", b"", "no kind of table"),
    ],
)
def test_broken_tables(plant, name, data, message):
    root = plant(["a.wav"])
    (root / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read("manifest", root / name)


@given(st.text(max_size=120), st.text("abc-_/. \u00e9", max_size=60), st.none() | st.floats(0, 1e4))
def test_any_path_gets_a_valid_key(name, folder, start):
    assert KEY_PATTERN.fullmatch(make_key("corpus", name))
    row = {"audio": f"{folder}x/a.wav", "start": start}
    utterance = Mapper("c", Path("/base")).utterance(row, "here")
    assert KEY_PATTERN.fullmatch(utterance.key)


def test_audiofolder_with_metadata(plant):
    root = plant(["data/train/x/1.wav", "data/test/2.wav"])
    (root / "data/train/metadata.csv").write_text(
        "file_name,emotion,transcription,speaker_id\nx/1.wav,joy,hello,3\n"
    )
    (root / "data/test/metadata.jsonl").write_text(
        '{"file_name": "2.wav", "emotion": null, "transcription": null}\n'
    )
    test, train = sorted(read("audiofolder", root, corpus="hub"), key=lambda u: u.key)
    assert (train.key, train.label, train.text, train.speaker) == ("hub-data-train-x-1", "joy", "hello", "3")
    assert (train.extra["split"], test.extra["split"], test.label) == ("train", "test", None)
    assert len(load(train)) == len(load(test)) == 1600


def test_audiofolder_by_folders(plant):
    root = plant(["train/happy/1.wav", "train/sad/1.wav", "test/sad/.hidden.wav", "test/sad/2.wav"])
    utterances = {u.key: u for u in read("audiofolder", root, corpus="f")}
    assert {key: (u.label, u.extra["split"]) for key, u in utterances.items()} == {
        "f-train-happy-1": ("happy", "train"),
        "f-train-sad-1": ("sad", "train"),
        "f-test-sad-2": ("sad", "test"),
    }
    flat = plant(["only.wav"])
    for path in sorted(flat.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
    with pytest.raises(UserError, match="without folders of labels"):
        read("audiofolder", flat)
    (flat / "metadata.csv").write_text("name,label\nonly.wav,x\n")
    with pytest.raises(UserError, match="needs file_name"):
        read("audiofolder", flat)


HEADER = """\
name: mydb
source: internal
usage: research
languages: [deu]
license: CC0-1.0
media:
  microphone: {type: audio, format: wav, channels: 1, sampling_rate: 16000}
raters:
  gold: {type: human}
  r1: {type: human}
schemes:
  emotion:
    dtype: str
    labels:
      anger: {}
      fear: {}
  speaker:
    dtype: int
    labels:
      3: {gender: male, age: 31}
      8: {gender: female, age: 34}
  valence: {dtype: float, minimum: -1, maximum: 1}
  transcription: {dtype: str, labels: words}
misc_tables:
  words:
    levels: {id: str}
    columns:
      words: {}
tables:
  emotion:
    type: filewise
    columns:
      emotion: {scheme_id: emotion, rater_id: gold}
      emotion.r1: {scheme_id: emotion, rater_id: r1}
      valence: {scheme_id: valence}
      confidence: {}
  files:
    type: filewise
    columns:
      speaker: {scheme_id: speaker}
  parts:
    type: segmented
    columns:
      emotion: {scheme_id: emotion}
"""


def audformat_tree(plant, header=HEADER):
    root = plant(["wav/03a.wav", "wav/08b.wav"])
    (root / "db.yaml").write_text(header)
    (root / "db.emotion.csv").write_text(
        "file,emotion,emotion.r1,valence,confidence\nwav/03a.wav,anger,fear,-0.5,0.9\nwav/08b.wav,fear,,,\n"
    )
    (root / "db.files.csv").write_text("file,speaker\nwav/03a.wav,3\nwav/08b.wav,8\n")
    (root / "db.parts.csv").write_text(
        "file,start,end,emotion\nwav/03a.wav,0 days,0 days 00:00:00.040000,anger\nwav/03a.wav,0 days 00:00:00.04,,fear\n"
    )
    return root


def test_audformat(plant):
    first, second = read("audformat", audformat_tree(plant))
    assert (first.key, first.label, first.speaker, first.gender, first.age) == (
        "mydb-wav-03a",
        "anger",
        "3",
        "male",
        31.0,
    )
    assert (first.valence, first.scale, first.language, first.licence) == (-0.5, (-1.0, 1.0), "de", "CC0-1.0")
    assert first.votes == (Vote("fear", "r1"),) and second.votes == () and second.valence is None
    assert first.extra == {"confidence": "0.9"} and (second.gender, second.label) == ("female", "fear")
    assert len(load(second)) == 1600


def test_audformat_segments(plant):
    first, second = read("audformat", audformat_tree(plant), table="parts")
    assert (first.start, first.end, first.label, first.speaker) == (None, 0.04, "anger", "3")
    assert (second.start, second.end, second.label, second.key) == (0.04, None, "fear", "mydb-wav-03a-40")
    assert [len(load(u)) for u in (first, second)] == [640, 960]


def test_audformat_parquet_and_refused_pickle(plant):
    root = audformat_tree(plant)
    (root / "db.parts.csv").unlink()
    rows = [
        {
            "file": "wav/03a.wav",
            "start": datetime.timedelta(0),
            "end": datetime.timedelta(seconds=0.04),
            "emotion": "anger",
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "db.parts.parquet")
    (only,) = read("audformat", root, table="parts")
    assert (only.end, only.label) == (0.04, "anger")
    (root / "db.parts.parquet").rename(root / "db.parts.pkl")
    with pytest.raises(UserError, match="pickled"):
        read("audformat", root, table="parts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "emotions"}, "no table 'emotions'"),
        ({"columns": {"label": "mood"}}, "no column 'mood'"),
        ({"labels": ["fear"]}, "'anger' is outside the vocabulary"),
    ],
)
def test_audformat_mistakes(plant, options, message):
    with pytest.raises(UserError, match=message):
        read("audformat", audformat_tree(plant), **options)
    with pytest.raises(UserError, match=r"(?s)tag.*line 2, column"):
        read("audformat", audformat_tree(plant, HEADER.replace("internal", "!!python/name:os.system")))


def test_audformat_dates_stay_text_and_broken_headers_are_named(plant):
    root = audformat_tree(plant)
    text = (root / "db.yaml").read_text()
    dated = text.replace("3: {gender: male, age: 31}", "3: {gender: male, age: 31, recorded: 2020-01-31}")
    assert dated != text
    (root / "db.yaml").write_text(dated)
    from shards.corpora.audformat import _header

    facts = _header(root / "db.yaml")["schemes"]["speaker"]["labels"]
    assert facts[3]["recorded"] == "2020-01-31"
    for broken in ("a: [1, 2", "a: &x [*x]\ntables: {}", "a: !!python/object:os.system x", "\xff"):
        (root / "db.yaml").write_bytes(broken.encode("latin-1"))
        with pytest.raises(UserError, match="header cannot be read"):
            read("audformat", root)
