"""Guarantee 1 for models: test and dev against everything that the model and its teachers have heard."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser.exposure import Exposure, called, check_student, closed, of_rows, overlap, tuning, who_heard
from ser.protocol import folds, load_protocol
from shards.errors import UserError
from tests.ser.small_dataset import grid, packed

SETS = st.frozensets(st.sampled_from(["c/a", "c/b", "d/recording:x", "d/key:y", "e/*"]))
EXPOSURES = st.builds(
    Exposure, SETS, SETS, st.lists(st.sampled_from(["h1", "h2"]), unique=True).map(sorted).map(tuple)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [{**row, "recording": f"r{i // 2}"} for i, row in enumerate(grid())]
    rows += [
        {"speaker": None, "label": "a", "recording": "lone"},
        {"speaker": None, "label": None, "recording": "r99"},
    ]
    return packed(tmp_path_factory.mktemp("exposure"), rows)


@pytest.fixture(scope="module")
def made(data):
    values = {
        "name": "toy",
        "classes": {"a": ["a"], "b": ["b"], "c": ["c"]},
        "subset": {"gender": ["female", "male"]},
        "folds": {"kind": "leave-one-out", "by": "session"},
        "dev": {"by": "session", "count": 1},
    }
    return folds(load_protocol(values), data)


def heard(data, fold, **changes):
    parts = {"fit": of_rows(data, fold.train), "select": of_rows(data, fold.dev), **changes}
    return Exposure(**parts)


@given(EXPOSURES, EXPOSURES, EXPOSURES)
def test_union_is_a_union_and_json_gives_it_back(a, b, c):
    assert a.union(b).union(c) == a.union(b, c) == c.union(a, b)
    assert closed(a, {"t": b}).fit == a.fit | b.fit and closed(a, {}) == a.union()
    again = Exposure.from_json(json.loads(json.dumps(a.to_json())))
    assert again == a and Exposure.from_json(json.dumps(a.to_json())) == a


@pytest.mark.parametrize(
    "bad", [{}, {"schema": 1, "fit": []}, {"schema": 2, "fit": [], "select": [], "unknown": []}]
)
def test_a_damaged_exposure_is_not_an_empty_one(bad):
    with pytest.raises(UserError, match="not an exposure"):
        Exposure.from_json(bad)
    with pytest.raises(UserError, match="not an exposure"):
        Exposure.from_json("{")


def test_rows_become_speakers_or_recordings(data):
    everyone = of_rows(data, np.arange(len(data)))
    assert everyone == {*(f"toy/s{i}" for i in range(6)), "toy/recording:lone", "toy/recording:r99"}
    assert of_rows(data, np.array([], dtype=np.int64)) == frozenset()


def test_a_clean_fold_passes_and_names_the_shared_dev_set(data, made):
    fold = made[0]
    teacher = heard(data, fold)
    found = check_student(
        data, fold.test, fold.dev, heard(data, fold), {"teacher": teacher}, "STRICT", fold=fold.name
    )
    assert [f.kind for f in found] == ["shared dev"] and found[0].level == "note"


def test_a_teacher_of_another_fold_is_refused_by_name(data, made):
    """The set-up of a released multilingual code: the teacher of split 2 teaches the student that is tested on split 1."""
    fold = made[0]
    teachers = {"teacher-en": heard(data, made[1])}
    with pytest.raises(UserError) as error:
        check_student(
            data, fold.test, fold.dev, heard(data, fold), teachers, "STRICT", fold="session-0", model="kd"
        )
    text = str(error.value)
    assert (
        "teacher-en" in text
        and "session-0" in text
        and "toy/s0" in text
        and "toy/s1" in text
        and "kd" in text
    )
    found = check_student(data, fold.test, fold.dev, heard(data, fold), teachers, "LEGACY", fold="session-0")
    assert {"toy/s0", "toy/s1"} <= {item for f in found if f.level == "leak" for item in f.items}


def test_exposure_is_found_through_a_chain_of_teachers(data, made):
    fold = made[0]
    grandparent = Exposure(fit=frozenset({"toy/s0"}))
    parent = closed(heard(data, fold), {"grandparent": grandparent})
    with pytest.raises(UserError, match="parent was fitted on 1 test entry of fold f: toy/s0"):
        check_student(data, fold.test, fold.dev, heard(data, fold), {"parent": parent}, "STRICT", fold="f")


@pytest.mark.parametrize("part", ["fit", "select"])
def test_own_test_speakers_are_refused(data, made, part):
    fold = made[0]
    own = heard(data, fold, **{part: of_rows(data, fold.test)})
    with pytest.raises(UserError, match=r"student was .* test entries of fold f: toy/s0, toy/s1"):
        check_student(data, fold.test, fold.dev, own, {}, "STRICT", fold="f")


def test_a_teacher_fitted_on_dev_is_refused(data, made):
    fold = made[0]
    teacher = heard(data, fold, fit=of_rows(data, np.concatenate([fold.train, fold.dev])))
    with pytest.raises(UserError, match="teacher was fitted on the dev set that chooses student"):
        check_student(data, fold.test, fold.dev, heard(data, fold), {"teacher": teacher}, "STRICT")


@pytest.mark.parametrize("entry", ["toy/s0", "toy/*", "toy/recording:r0"])
def test_speaker_recording_key_and_whole_corpus_overlap(data, made, entry):
    assert overlap(data, made[0].test, frozenset({entry})) == (entry,)
    key = f"toy/key:{data.keys(made[0].test[:1])[0]}"
    assert overlap(data, made[0].test, frozenset({key, "toy/s4", "other/*"})) == (key,)


def test_unknown_hub_models_are_refused_unless_the_recipe_names_them(data, made):
    fold = made[0]
    teacher = heard(data, fold, unknown=("hub/large",))
    args = (data, fold.test, fold.dev, heard(data, fold), {"big": teacher})
    with pytest.raises(UserError, match="hub/large are unknown") as error:
        check_student(*args, "STRICT")
    assert "allow_unknown: [hub/large]" in error.value.hint
    found = check_student(*args, "STRICT", ["hub/large"])
    (unknown,) = [f for f in found if f.kind == "unknown"]
    assert unknown.level == "note" and unknown.items == ("hub/large",) and "big" in unknown.text
    assert [f.level for f in check_student(*args, "LEGACY") if f.kind == "unknown"] == ["leak"]


def test_how_hyper_parameters_were_chosen(data, made):
    tests = {f.name: of_rows(data, f.test) for f in made}
    devs = {f.name: of_rows(data, f.dev) for f in made}
    assert tuning({}, tests) == "untuned"
    assert tuning(devs, tests) == "nested"
    assert tuning(dict.fromkeys(tests, frozenset({"other/z"})), tests) == "outside"
    assert tuning(dict.fromkeys(tests, devs[made[0].name]), tests) == "non-nested"
    # Choosing once for all folds on one fold's dev set: the check of the fold that tests those speakers refuses it.
    chosen = devs[made[0].name]
    fold = made[1]
    own = heard(data, fold, select=of_rows(data, fold.dev) | chosen)
    with pytest.raises(UserError, match="non-nested"):
        check_student(data, fold.test, fold.dev, own, {}, "STRICT", fold=fold.name)


def test_who_heard(data, made):
    exposures = {
        "a": heard(data, made[0]),
        "b": Exposure(fit=frozenset({"toy/*"}), select=frozenset({"toy/s0"})),
        "c": Exposure(unknown=("hub",)),
        "d": Exposure(fit=frozenset({"other/s0"})),
    }
    assert who_heard("toy/s0", exposures) == {"b": "fit+select", "c": "unknown: hub"}
    assert who_heard("toy/s2", exposures)["a"] == "select"


def test_a_fold_is_called_what_it_is():
    assert [called(name) for name in ("fold-1", "session-1", "")] == ["fold-1", "fold session-1", "the fold"]
