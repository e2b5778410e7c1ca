"""The registry: names, options, folders, and EmoBox's fold lists."""

import pytest

from shards.corpora import READERS, read
from shards.corpora.emobox import folds
from shards.errors import UserError
from shards.utterance import make_key


def test_unknown_reader_names_the_nearest():
    with pytest.raises(UserError) as caught:
        read("emo-db", "x")
    assert "emodb" in caught.value.hint


def test_unknown_option_names_the_nearest(tmp_path):
    with pytest.raises(UserError) as caught:
        read("emodb", tmp_path, count="warn")
    assert "no option 'count'" in str(caught.value) and "counts" in caught.value.hint


@pytest.mark.parametrize("name", sorted(set(READERS) - {"spokenaffect"}))
def test_missing_folder(name, tmp_path):
    with pytest.raises(UserError) as caught:
        list(read(name, str(tmp_path / "nowhere")))
    assert "nowhere" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("name", sorted(set(READERS) - {"spokenaffect"}))
def test_empty_folder(name, tmp_path):
    with pytest.raises(UserError) as caught:
        list(read(name, str(tmp_path)))
    assert caught.value.where and caught.value.hint


@pytest.mark.parametrize("name", ["emodb", "savee", "iemocap", "manifest", "meld"])
def test_wrong_mode(name, tmp_path):
    with pytest.raises(UserError, match="counts is 'lax'"):
        read(name, tmp_path, counts="lax")


@pytest.mark.parametrize(("name", "number"), [("emodb", 5), ("ravdess", 6), ("urdu", 1), ("tess", 1)])
def test_real_folds_name_real_utterances(corpora, name, number):
    parts = folds(corpora / "emobox" / name)
    assert list(parts) == list(range(1, number + 1))
    keys = {u.key for u in read(name, corpora / name)}
    named = {make_key(name, stem) for part in parts.values() for stem in part}
    if name == "tess":
        assert named & keys  # the subset
    else:
        assert named <= keys and (number == 1 or named == keys)


def test_real_folds_of_emodb_share_all_speakers_and_ravdess_none(corpora):
    """The fact that a protocol has to find by itself."""
    for name, shared in (("emodb", 10), ("ravdess", 0)):
        speaker = {u.recording: u.speaker for u in read(name, corpora / name)}
        for part in folds(corpora / "emobox" / name).values():
            test = {speaker[stem] for stem in part}
            train = {who for stem, who in speaker.items() if stem not in part}
            assert len(test & train) == shared


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "not complete"),
        ({1: "a", 3: "b"}, "not complete"),
        ({1: "a\nb", 2: "b\nc"}, "b is in the test part of fold 1 and again in fold 2"),
        ({1: "a", 2: " \n"}, "empty"),
    ],
)
def test_broken_folds(tmp_path, files, message):
    for number, text in files.items():
        (tmp_path / f"test_fold_{number}.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        folds(tmp_path)
