"""Guarantee 1 for splits: disjoint speakers, sessions and recordings, refused by name; determinism; what is reported."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.protocol import folds, inspect, labels, load_protocol
from shards.errors import UserError
from tests.ser.small_dataset import grid, number, packed

CLASSES = {"a": ["a"], "b": ["b"], "c": ["c"]}


LOSO = {"kind": "leave-one-out", "by": "speaker"}


def protocol(**changes):
    values = {
        "name": "toy",
        "classes": CLASSES,
        "folds": LOSO,
        "dev": {"by": "speaker", "count": 1},
        **changes,
    }
    return load_protocol(values)


def who(data, rows):
    return {data.speakers[c].split("/")[1] for c in np.unique(data.speaker[rows]) if c >= 0}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("toy"), grid())


def test_leave_one_speaker_out_with_the_next_speaker_as_dev(toy):
    made = folds(protocol(), toy)
    assert [f.name for f in made] == [f"speaker-toy-s{i}" for i in range(6)]
    for i, fold in enumerate(made):
        assert who(toy, fold.test) == {f"s{i}"} and who(toy, fold.dev) == {f"s{(i + 1) % 6}"}
        assert len(who(toy, fold.train)) == 4
        for rows in (fold.train, fold.dev, fold.test, fold.labelled):
            assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
        assert np.array_equal(fold.labelled, fold.train)
    every = np.sort(np.concatenate([f.test for f in made]))
    assert np.array_equal(every, np.arange(len(toy)))
    again = folds(protocol(), toy)
    assert all(
        np.array_equal(a.train, b.train) and a.name == b.name for a, b in zip(made, again, strict=True)
    )


def test_leave_one_session_out(toy):
    session = protocol(folds={"kind": "leave-one-out", "by": "session"}, dev={"by": "session", "count": 1})
    made = folds(session, toy)
    assert [f.name for f in made] == ["session-toy-0", "session-toy-1", "session-toy-2"]
    assert who(toy, made[0].test) == {"s0", "s1"} and who(toy, made[0].dev) == {"s2", "s3"}
    mixed = protocol(folds={"kind": "leave-one-out", "by": "session"})
    with pytest.raises(UserError, match="1 session in both train and dev: toy/1"):
        folds(mixed, toy)


@pytest.mark.parametrize("balance", ["classes", "gender", "none"])
def test_k_fold_by_speaker(toy, balance):
    made = folds(
        protocol(folds={"kind": "k-fold", "by": "speaker", "k": 3, "balance": balance}, dev={"by": "fold"}),
        toy,
    )
    assert sorted(s for f in made for s in who(toy, f.test)) == [f"s{i}" for i in range(6)]
    for i, fold in enumerate(made):
        assert np.array_equal(fold.dev, made[(i + 1) % 3].test)
        if balance == "gender":
            assert {int(s[1]) % 2 for s in who(toy, fold.test)} == {0, 1}


def test_k_fold_gives_every_fold_every_class_where_it_can(tmp_path):
    """Speakers of very unequal size, nearly one class each, as in URDU."""
    rng = np.random.default_rng(0)
    rows = []
    for s in range(15):
        main = "abc"[s % 3]
        rows += [
            {"speaker": f"s{s:02d}", "label": main if rng.random() < 0.9 else "abc"[rng.integers(3)]}
            for _ in range(int(rng.integers(2, 20)))
        ]
    data = packed(tmp_path, rows)
    made = folds(protocol(folds={"kind": "k-fold", "by": "speaker", "k": 4}, dev={"by": "fold"}), data)
    truth = labels(protocol(), data)
    for fold in made:
        assert set(truth.classes[fold.test]) == {0, 1, 2}


def test_listed_groups_fixed_values_and_what_is_missing(toy):
    listed = protocol(folds={"kind": "groups", "by": "speaker", "groups": [["s0", "s1"], ["toy/s4"]]})
    made = folds(listed, toy)
    assert [who(toy, f.test) for f in made] == [{"s0", "s1"}, {"s4"}]
    assert who(toy, made[0].dev) == {"s2"} and who(toy, made[1].dev) == {"s5"}
    fixed = {"kind": "fixed", "by": "session", "train": ["0"], "dev": ["1"], "test": ["2"]}
    (fold,) = folds(protocol(folds=fixed, dev=None), toy)
    assert (who(toy, fold.train), who(toy, fold.dev), who(toy, fold.test)) == (
        {"s0", "s1"},
        {"s2", "s3"},
        {"s4", "s5"},
    )
    with pytest.raises(UserError, match="speaker 's9' is in no utterance") as error:
        folds(protocol(folds={"kind": "groups", "by": "speaker", "groups": [["s9"]]}), toy)
    assert "toy/s0" in error.value.hint
    with pytest.raises(UserError, match="7 folds by speaker need 7"):
        folds(protocol(folds={"kind": "k-fold", "by": "speaker", "k": 7}), toy)


def test_speaker_in_two_splits_is_refused_by_name_and_shown_under_legacy(tmp_path):
    rows = grid(speakers=4)
    for i, row in enumerate(rows):
        row["extra"] = {"split": ["train", "dev", "test"][min(int(row["speaker"][1]), 2)]}
        if i == 0:
            row["extra"] = {"split": "test"}  # one utterance of s0
    data = packed(tmp_path, rows)
    fixed = {"kind": "fixed", "by": "official", "train": ["train"], "dev": ["dev"], "test": ["test"]}
    with pytest.raises(UserError) as error:
        folds(protocol(folds=fixed, dev=None), data)
    assert "1 speaker in both train and test: toy/s0" in error.value.what and "fixed" in error.value.where
    legacy = protocol(folds=fixed, dev=None, strictness="LEGACY")
    found = [f for f in inspect(legacy, data, folds(legacy, data)) if f.level == "leak"]
    assert [(f.kind, f.items) for f in found] == [("speakers", ("toy/s0",))]


def test_a_recording_in_two_splits_is_refused_unless_excluded(tmp_path):
    """Two speakers of a dialogue: leaving one out leaves the other on the same recording."""
    rows = [{**row, "recording": f"dialogue{row['session']}"} for row in grid()]
    data = packed(tmp_path, rows)
    with pytest.raises(UserError, match="recording in both train and test: toy/dialogue0"):
        folds(protocol(dev={"by": "session", "count": 1}), data)
    apart = protocol(dev={"by": "session", "count": 1}, folds={**LOSO, "exclude": ["recording"]})
    made = folds(apart, data)
    assert who(data, made[0].test) == {"s0"} and who(data, made[0].dev) == {"s2", "s3"}
    assert who(data, made[0].train) == {"s4", "s5"}


def test_unlabelled_speech_trains_but_never_of_a_test_or_dev_speaker(tmp_path):
    rows = [
        *grid(),
        *({"speaker": f"s{s}", "label": None} for s in range(6)),
        {"speaker": "s9", "label": None},
    ]
    data = packed(tmp_path, rows)
    for fold in folds(protocol(), data):
        assert not who(data, fold.train) & (who(data, fold.test) | who(data, fold.dev))
        assert "s9" in who(data, fold.train)
        assert len(fold.train) == len(fold.labelled) + 5
        truth = labels(protocol(), data)
        assert (truth.classes[np.concatenate([fold.dev, fold.test])] >= 0).all()


def test_labelled_share_count_and_list(tmp_path, toy):
    full = folds(protocol(), toy)
    for wanted in (0.5, 10):
        made = folds(protocol(labelled=wanted), toy)
        larger = folds(protocol(labelled=0.8 if wanted == 0.5 else 15), toy)
        for fold, whole, more in zip(made, full, larger, strict=True):
            assert np.array_equal(fold.train, whole.train) and np.array_equal(fold.test, whole.test)
            assert set(fold.labelled) < set(more.labelled) < set(whole.labelled)
    assert all(len(f.labelled) == 10 for f in folds(protocol(labelled=10), toy))
    # A share shows a key in all folds or in none.
    half = folds(protocol(labelled=0.5), toy)
    shown, hidden = set(), set()
    for fold in half:
        shown |= set(fold.labelled)
        hidden |= set(fold.train) - set(fold.labelled)
    assert not shown & hidden
    names = tmp_path / "keys.txt"
    names.write_text("\n".join(toy.keys()[:20]))
    for fold in folds(protocol(labelled=str(names)), toy):
        assert set(fold.labelled) == set(fold.train) & set(range(20))
    names.write_text("nobody\n")
    with pytest.raises(UserError, match="1 key not in the data: nobody"):
        folds(protocol(labelled=str(names)), toy)
    with pytest.raises(UserError, match="asks for 500 labels, a fold has 24"):
        folds(protocol(labelled=500), toy)
    assert all(np.array_equal(f.labelled, f.train) for f in folds(protocol(labelled=1), toy))


def test_random_folds_and_dev_on_test_are_legacy(toy):
    drawn = protocol(
        strictness="LEGACY", folds={"kind": "random", "k": 4}, dev={"by": "utterance", "share": 0.2}
    )
    made = folds(drawn, toy)
    assert np.array_equal(np.sort(np.concatenate([f.test for f in made])), np.arange(len(toy)))
    assert {f.kind for f in inspect(drawn, toy, made) if f.level == "leak"} == {"speakers"}
    peek = protocol(strictness="LEGACY", dev={"by": "test"}, checkpoint="best-test")
    for fold in folds(peek, toy):
        assert np.array_equal(fold.dev, fold.test) and len(who(toy, fold.train)) == 5


def test_what_is_reported(tmp_path):
    rows = grid(speakers=4, repeats=1, text="the same words")
    rows[0]["same"], rows[5]["same"] = 77, 77  # s0 and s1 share a file
    rows[11]["label"] = "b"  # s3 never says c
    rows.append({"speaker": None, "label": None, "text": "other words"})
    data = packed(tmp_path, rows)
    toy = protocol()
    found = inspect(toy, data, folds(toy, data))
    kinds = {f.kind for f in found}
    assert {"texts", "audio", "empty classes", "unknown speakers", "text says nothing"} <= kinds
    assert all(f.level == "note" for f in found)
    (empty,) = [f for f in found if f.kind == "empty classes" and f.fold == "speaker-toy-s3"]
    assert empty.items == ("c",) and "test" in empty.text
    audio = [f for f in found if f.kind == "audio" and f.fold == "speaker-toy-s0"]
    assert len(audio) == 1 and "1 of 3" in audio[0].text


def test_a_speaker_that_decides_the_class_is_reported(tmp_path):
    rows = [{"speaker": f"s{s}", "label": "abc"[s % 3]} for s in range(9) for _ in range(5)]
    data = packed(tmp_path, rows)
    by = protocol(folds={"kind": "k-fold", "by": "speaker", "k": 3}, dev={"by": "fold"})
    kinds = {f.kind for f in inspect(by, data, folds(by, data))}
    assert "speaker confound" in kinds


def test_empty_splits_and_missing_speakers_are_errors(tmp_path):
    data = packed(tmp_path, [*grid(speakers=2), {"speaker": None, "label": "a"}])
    with pytest.raises(UserError, match="1 labelled utterances have no speaker"):
        folds(protocol(), data)
    two = packed(tmp_path / "two", grid(speakers=2))
    with pytest.raises(UserError, match="the dev set of fold speaker-toy-s0 has no labelled utterance"):
        folds(protocol(), two)
    assert len(folds(protocol(dev=None, checkpoint="last"), two)) == 2
    one = packed(tmp_path / "one", grid(speakers=1))
    with pytest.raises(UserError, match="needs 2 of speaker"):
        folds(protocol(), one)


class Memory:
    """The attributes of a dataset that folds read, in memory, for many small random cases."""

    def __init__(self, speaker, label):
        count = len(speaker)
        self.alive, self.key_hash = np.ones(count, bool), np.arange(count, dtype=np.uint64) * 7919
        self.speakers = sorted({f"toy/s{s}" for s in speaker})
        self.speaker = np.array([self.speakers.index(f"toy/s{s}") for s in speaker], np.int32)
        self.labels, self.label = [f"toy/{x}" for x in "abc"], np.array(label, np.int32)
        self.corpora, self.corpus = ["toy"], np.zeros(count, np.int32)
        self.recordings, self.recording = (
            [f"toy/r{i}" for i in range(count)],
            np.arange(count, dtype=np.int32),
        )

    def __len__(self):
        return len(self.alive)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(-1, 2)), min_size=4, max_size=60),
    st.sampled_from(
        [
            LOSO,
            {"kind": "k-fold", "by": "speaker", "k": 2},
            {"kind": "k-fold", "by": "speaker", "k": 3, "balance": "none"},
        ]
    ),
    st.sampled_from(
        [{"by": "fold"}, {"by": "speaker", "count": 1}, {"by": "speaker", "share": 0.3, "rotate": False}]
    ),
)
def test_splits_never_share_a_speaker_and_cover_the_labels(rows, kind, dev):
    data = Memory([s for s, _ in rows], [label for _, label in rows])
    toy = protocol(folds=kind, dev=dev)
    try:
        made = folds(toy, data)
    except UserError:
        return
    for fold in made:
        assert not who(data, fold.train) & who(data, fold.test)
        assert not who(data, fold.train) & who(data, fold.dev)
        assert not who(data, fold.dev) & who(data, fold.test)
        assert set(fold.labelled) <= set(fold.train)
    tested = np.sort(np.concatenate([f.test for f in made]))
    assert np.array_equal(tested, np.flatnonzero(data.label >= 0))


def test_row_numbers_go_back_to_the_list(toy):
    assert sorted(number(toy)) == list(range(len(toy)))
