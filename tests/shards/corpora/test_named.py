"""Corpora whose file names carry the labels: real ones where they are, trees of the same names where not."""

import csv
import itertools
from collections import Counter

import pytest
import soundfile

from shards.audio import load
from shards.corpora import cafe, emodb, nemo, ravdess, read, savee, tess, urdu
from shards.errors import UserError
from shards.utterance import make_key

REAL = {"emodb": 535, "ravdess": 1440, "urdu": 400, "tess": 168, "nemo": 1240}


def labels_rows(folder):
    with open(folder / "labels.tsv", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


@pytest.mark.parametrize("name", REAL)
def test_real_corpora_say_what_their_label_tables_say(corpora, name):
    """Independent: labels.tsv was derived by others, the readers go by file names."""
    utterances = list(read(name, corpora / name))
    rows = labels_rows(corpora / name)
    assert len(utterances) == REAL[name] == len(rows)
    assert [u.key for u in utterances] == sorted(make_key(name, stem) for stem in rows)
    common: dict[str, set] = {}
    for u in utterances:
        row = rows[u.key.removeprefix(f"{name}-")]
        assert (u.speaker, u.language, u.gender) == (row["speaker"], row["language"], row["gender"])
        assert u.text == (row.get("transcript") or None)
        assert u.age == (float(row["age"]) if "age" in row else None)
        assert u.duration == pytest.approx(float(row["duration_s"]))
        common.setdefault(row["emotion"], set()).add(u.label)
        if "recognised_pct" in row:
            assert u.extra["recognised_pct"] == float(row["recognised_pct"])
    assert all(len(own) == 1 for own in common.values())  # one own label behind each common name
    assert len(set.union(*common.values())) == len(common)


@pytest.mark.parametrize("name", REAL)
def test_durations_in_the_table_are_those_of_the_audio(corpora, name):
    for u in itertools.islice(read(name, corpora / name), 0, None, 50):
        info = soundfile.info(u.audio)
        assert u.duration == pytest.approx(info.frames / info.samplerate, abs=2e-3)
        assert len(load(u)) == info.frames


def test_speakers_of_the_real_corpora(corpora):
    speakers = {name: {u.speaker: u.gender for u in read(name, corpora / name)} for name in REAL}
    assert {name: len(who) for name, who in speakers.items()} == {
        "emodb": 10,
        "ravdess": 24,
        "urdu": 29,
        "tess": 2,
        "nemo": 9,
    }
    assert Counter(speakers["urdu"].values()) == {"male": 18, "female": 11}
    assert Counter(speakers["ravdess"].values()) == {"male": 12, "female": 12}


def test_emodb_reads_the_perception_test_as_the_original_has_it(corpora, plant):
    """erkennung.txt in the original layout gives what labels.tsv gives."""
    mirror = {u.key: u for u in read("emodb", corpora / "emodb")}
    root = plant(f"wav/{key.removeprefix('emodb-')}.wav" for key in mirror)
    (root / "erkennung.txt").write_bytes((corpora / "emodb" / "erkennung.txt").read_bytes())
    for u in read("emodb", root):
        assert u.extra == mirror[u.key].extra and u.text == mirror[u.key].text


def names_of_ravdess():
    for emotion, intensity, statement, take, actor in itertools.product(
        range(1, 9), (1, 2), (1, 2), (1, 2), range(1, 25)
    ):
        if (emotion, intensity) != (1, 2):
            stem = f"03-01-{emotion:02}-{intensity:02}-{statement:02}-{take:02}-{actor:02}"
            yield f"Audio_Speech_Actors_01-24/Actor_{actor:02}/{stem}.wav"


def names_of_tess():
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrst" for b in "aeiouyhklm"]
    for speaker, word, label in itertools.product(("OAF", "YAF"), words, tess.LABELS):
        yield f"{speaker}_{label}/{speaker}_{word}_{label}.wav"


def names_of_cafe():
    folders = dict(
        zip("CDJNPST", ("Col\u00e8re", "D\u00e9go\u00fbt", "Joie", "Neutre", "Peur", "Surprise", "Tristesse"))
    )
    for actor, code, intensity, sentence in itertools.product(range(1, 13), "CDJNPST", "12", "123456"):
        if code == "N" and intensity == "2":
            continue
        home = folders[code] if code == "N" else f"{folders[code]}/{'Faible' if intensity == '1' else 'Fort'}"
        yield f"CaFE_48k/{home}/{actor:02}-{code}-{intensity}-{sentence}.wav"


def names_of_savee():
    for speaker, code in itertools.product(savee.SPEAKERS, savee.LABELS):
        for number in range(1, 31 if code == "n" else 16):
            yield f"AudioData/{speaker}/{code}{number:02}.wav"


def names_of_urdu():
    for code, folder in zip("AHNS", ("Angry", "Happy", "Neutral", "Sad")):
        for number in range(1, 101):
            yield f"{folder}/SM{1 + number % 3}_F{number}_{code}{number:03}.wav"


def names_of_emodb():
    for code, label in emodb.LABELS.items():
        stems = itertools.product(emodb.SPEAKERS, emodb.SENTENCES, (code,), "abcdef")
        for stem in itertools.islice(stems, emodb.PUBLISHED["whole corpus"][label]):
            yield f"wav/{''.join(stem)}.wav"


TREES = {
    "ravdess": (names_of_ravdess, ravdess),
    "tess": (names_of_tess, tess),
    "cafe": (names_of_cafe, cafe),
    "savee": (names_of_savee, savee),
    "urdu": (names_of_urdu, urdu),
    "emodb": (names_of_emodb, emodb),
}


@pytest.mark.parametrize("name", TREES)
def test_original_layouts_and_what_a_missing_file_says(plant, name):
    make, module = TREES[name]
    names, published = list(make()), module.PUBLISHED["whole corpus"]
    root = plant(names)
    utterances = list(read(name, str(root)))
    assert len(utterances) == len({u.key for u in utterances}) == len(names)
    assert Counter(u.label for u in utterances) == published
    assert all(u.speaker and u.language and u.gender and u.licence for u in utterances)
    assert len(load(utterances[0])) == 1600

    gone = utterances[-1]
    (root / gone.audio).unlink()
    with pytest.raises(UserError) as caught:
        read(name, root)
    message = str(caught.value)
    assert f"{gone.label}: expected {published[gone.label]}, found {published[gone.label] - 1}" in message
    assert "counts" in caught.value.hint
    with pytest.warns(UserWarning, match="not as published"):
        assert gone.key not in {u.key for u in read(name, root, counts="warn")}
    assert gone.key not in {u.key for u in read(name, root, counts="ignore")}


@pytest.mark.parametrize(
    ("name", "good", "stray"),
    [
        ("emodb", "wav/03a01Fa.wav", "wav/03a01Xa.wav"),
        ("ravdess", "03-01-08-01-01-01-01.wav", "03-01-09-01-01-01-01.wav"),
        ("urdu", "Angry/SM1_F1_A001.wav", "Angry/SM1_F1_B001.wav"),
        ("savee", "AudioData/DC/a01.wav", "AudioData/DC/x01.wav"),
        ("cafe", "Joie/Fort/01-J-2-1.wav", "Joie/Fort/01-J-3-1.wav"),
    ],
)
def test_a_label_outside_the_vocabulary(plant, name, good, stray):
    root = plant([good, stray])
    with pytest.raises(
        UserError, match="1 audio files have a name of no utterance: .*" + stray.split("/")[-1]
    ):
        read(name, root)
    assert len(list(read(name, root, counts="ignore"))) == 1


def test_ravdess_leaves_song_and_video_and_hidden_files_out(plant):
    good = "Actor_01/03-01-01-01-01-01-01.wav"
    more = [
        "Actor_01/03-02-01-01-01-01-01.wav",
        "Actor_01/01-01-01-01-01-01-01.wav",
        "Actor_01/._03-01-02-01-01-01-01.wav",
    ]
    root = plant([good, *more])
    with pytest.raises(UserError, match="all: expected 1440, found 1"):
        read("ravdess", root)
    assert [u.recording for u in read("ravdess", root, counts="ignore")] == ["03-01-01-01-01-01-01"]


def test_two_copies_are_refused(plant):
    root = plant(["Angry/SM1_F3_A003.wav", "copy/SM1_F3_A003.wav"])
    with pytest.raises(UserError, match="two audio files are called SM1_F3_A003"):
        read("urdu", root)


def test_tess_mends_the_original_misspelling_and_knows_its_subset(plant):
    names = [
        name
        for name in names_of_tess()
        if name.split("_")[2] in {f"a{x}" for x in "aeiouyhklm"} | {"ba", "be"}
    ]
    assert len(names) == 168
    wrong = names.index("OAF_neutral/OAF_aa_neutral.wav")
    names[wrong] = "OAF_neutral/OA_aa_neutral.wav"
    utterances = {u.key: u for u in read("tess", plant(names))}
    mended = utterances["tess-OAF_aa_neutral"]
    assert (mended.speaker, mended.text, mended.age) == ("OAF", "Say the word aa", 64)


def test_savee_in_the_flat_layout_gives_the_same_keys(plant):
    flat = [f"{name.split('/')[1]}_{name.split('/')[2]}" for name in names_of_savee()]
    root = plant(flat)
    assert [u.key for u in read("savee", root)][:2] == ["savee-DC_a01", "savee-DC_a02"]
    (root / "DCa01.wav").write_bytes(b"")
    with pytest.raises(UserError, match="savee-DC_a01 is there twice"):
        read("savee", root)


def tiny_nemo(root, rows):
    """A nEMO tree of one sentence a cell with its data.tsv."""
    lines = ["file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage"]
    lines += [f'{s}_{e}_{n}.wav\t{e}\tTo "jest" {n}.\tto jest {n}\t        {s}\tmale\t23' for s, e, n in rows]
    (root / "data.tsv").write_text("\n".join(lines) + "\n", "utf-8")


def test_nemo_in_its_own_layout(plant):
    counts = nemo.PUBLISHED["whole corpus"]
    speakers = list(nemo.SPEAKERS)
    rows = [(speakers[i % 9], label, i // 9 + 1) for label, n in counts.items() for i in range(n)]
    root = plant(f"samples/{s}_{e}_{n}.wav" for s, e, n in rows)
    tiny_nemo(root, rows)
    utterances = list(read("nemo", root))
    assert len(utterances) == 4481 and utterances[0].text == 'To "jest" 1.'
    tiny_nemo(root, [("WR0", "fear", 1), *rows[1:]])
    text = (root / "data.tsv").read_text("utf-8").replace("WR0_fear_1.wav\tfear", "WR0_fear_1.wav\tanger", 1)
    (root / "data.tsv").write_text(text, "utf-8")
    with pytest.raises(UserError, match="line 2: WR0_fear_1 is said to be WR0, anger"):
        read("nemo", root)


def table_of_urdu(root):
    stems = [path.stem for path in sorted((root / "audio").glob("*.wav"))]
    lines = ["file\tlanguage\tspeaker\tgender\temotion_native\temotion\tduration_s"]
    return lines + [f"{s}\tur\t{s.split('_')[0]}\tmale\t{s.split('_')[2][0]}\tx\t2.0" for s in stems]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:5], lines[5].replace("\tA\t", "\tS\t"), *lines[6:]], "emotion_native is 'S'"),
        (lambda lines: [*lines[:5], lines[5].replace("\tSM", "\tSF", 1), *lines[6:]], "speaker is 'SF"),
        (lambda lines: lines[:-1], "has audio and no line"),
        (lambda lines: [*lines, lines[-1].replace("_F", "_F9", 1)], "has a line and no audio"),
        (lambda lines: [*lines, lines[-1]], "stands twice"),
        (lambda lines: [*lines[:9], lines[9].rsplit("\t", 1)[0], *lines[10:]], "line 10 has fewer fields"),
    ],
)
def test_one_wrong_line_of_a_label_table_is_named(plant, change, message):
    root = plant(f"audio/{name.split('/')[1]}" for name in names_of_urdu())
    lines = table_of_urdu(root)
    (root / "labels.tsv").write_text("\n".join(lines) + "\n")
    assert len(list(read("urdu", root))) == 400
    (root / "labels.tsv").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(UserError, match=message):
        read("urdu", root)


def test_no_two_names_share_a_key():
    """Keys of a whole corpus are unique ignoring case, since make_key changes none of these names."""
    for name, (make, _) in TREES.items():
        stems = [
            f"{x.split('/')[-2]}_{x.split('/')[-1]}" if name == "savee" else x.split("/")[-1] for x in make()
        ]
        keys = {make_key(name, stem.removesuffix(".wav")).lower() for stem in stems}
        assert len(keys) == len(stems)
