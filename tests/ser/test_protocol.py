"""The protocol file and the truth it gives: mapping, votes, scales, subset, refusals."""

import numpy as np
import pytest
import yaml

from ser.protocol import PROTOCOLS, Protocol, folds, labels, load_protocol
from ser.report.page import protocol_lines
from shards.errors import UserError
from shards.utterance import Vote
from tests.ser.small_dataset import grid, number, packed

TOY = {
    "name": "toy",
    "classes": {"x": ["a"], "y": ["b", "c"]},
    "folds": {"kind": "leave-one-out", "by": "speaker"},
    "dev": {"by": "speaker", "count": 1},
}


def by_number(dataset, values):
    return dict(zip(number(dataset), values, strict=True))


def test_every_protocol_file_loads_and_is_strict_unless_named():
    found = {path.stem: load_protocol(path.stem) for path in PROTOCOLS.glob("*.yaml")}
    assert {"spokenaffect", "emodb-loso", "emodb-emobox", "ravdess-6fold", "urdu", "nemo", "cremad"} <= set(
        found
    )
    assert {"iemocap-5fold", "iemocap-10fold", "msp-podcast"} <= set(found)
    for name, protocol in found.items():
        assert protocol.name == name and protocol.about
        legacy = name == "emodb-random" or name.endswith("-legacy")
        assert protocol.strictness == ("LEGACY" if legacy else "STRICT")
    assert found["iemocap-10fold"].classes["happy"] == ["hap", "exc"]
    assert len(found["ravdess-6fold"].folds.groups) == 6


ANSWERS = ("strictness", "folds", "dev", "checkpoint", "select_metric", "subset", "pool")


def written(name: str) -> dict:
    """What a protocol file and those that it extends write down, defaults left out."""
    values = yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())
    below = written(values.pop("extends")) if "extends" in values else {}
    return below | values


@pytest.mark.parametrize("name", sorted(path.stem for path in PROTOCOLS.glob("*.yaml")))
def test_every_protocol_file_answers_every_question(name):
    """Classes and merges, folds, who is dev, which epoch, which metric, improvised or all, pooled or mean; nothing by default."""
    said, protocol = written(name), load_protocol(name)
    silent = {"strictness"} if protocol.strictness == "STRICT" else set()
    silent |= {"dev"} if protocol.folds.dev else set()  # listed with the folds
    assert [key for key in ANSWERS if key not in said and key not in silent] == []
    assert said.get("classes") or said.get("dimensions")
    answers = dict(protocol_lines({**REPORT, "protocol": protocol.model_dump(mode="json")}))
    for question in ("Protocol", "Strictness", "Speech", "Test sets", "Dev set", "Checkpoint", "Headline"):
        assert answers[question], question
    assert answers["Protocol"].startswith(name) and protocol.strictness in answers["Strictness"]
    merged = [f"{c} (= {', '.join(own)})" for c, own in protocol.classes.items() if own != [c]]
    assert all(text in answers["Classes"] for text in merged)
    on_test = protocol.dev is not None and protocol.dev.by == "test"
    assert ("on the test set" in answers["Checkpoint"]) == on_test


REPORT = {
    "folds": [{}], "views": {"count": 0}, "headline": "ua", "classes": ["any"], "dimensions": [], "recipe": {"seeds": [0]},
}  # fmt: skip


def test_legacy_files_are_their_strict_partners_but_for_what_is_flawed():
    names = [path.stem.removesuffix("-legacy") for path in PROTOCOLS.glob("*-legacy.yaml")]
    partners = {path.stem for path in PROTOCOLS.glob("*.yaml") if "extends:" not in path.read_text()}
    # theirs are emodb-random and mtkd2025-legacy
    assert partners - {*names, "spokenaffect-legacy"} == {"emodb-loso", "mtkd2025-open"}
    for name in set(names) - {"spokenaffect"}:  # two folds instead of one
        strict, legacy = load_protocol(name), load_protocol(f"{name}-legacy")
        assert (strict.strictness, legacy.strictness) == ("STRICT", "LEGACY")
        for key in ("corpora", "classes", "ignored", "dimensions", "subset", "select_metric", "pool"):
            assert getattr(strict, key) == getattr(legacy, key), (name, key)
        assert (strict.folds, strict.dev, strict.checkpoint) != (legacy.folds, legacy.dev, legacy.checkpoint)
    spoken = dict(protocol_lines({**REPORT, "protocol": load_protocol(IMPROVISED).model_dump(mode="json")}))
    assert spoken["Speech"] == "of iemocap only extra.style = improvised"


IMPROVISED = {"extends": "iemocap-5fold", "subset": {"extra.style": "improvised"}}


def test_mistakes_in_the_file_are_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'classes'"):
        load_protocol({**TOY, "clases": {}})
    with pytest.raises(UserError, match="did you mean 'emodb-loso'"):
        load_protocol("emodb-losso")
    path = tmp_path / "broken.yaml"
    path.write_text("classes: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_protocol(path)
    wrong = [
        ({"classes": {"x": ["a"], "y": ["a"]}}, "stands under 'x' and under 'y'"),
        ({"classes": {}}, "classes, dimensions or both"),
        ({"ignored": ["a"]}, "stands under"),
        ({"dev": None}, "needs `dev`"),
        ({"folds": {"kind": "k-fold"}}, "needs `k`"),
        ({"folds": {"kind": "leave-one-out", "k": 3}}, "says nothing"),
        ({"dev": {"by": "speaker", "count": 1, "share": 0.1}}, "one of them"),
        ({"folds": {"kind": "random", "k": 3}}, "only strictness LEGACY"),
        ({"checkpoint": "best-test"}, "only strictness LEGACY"),
        ({"dev": {"by": "test"}}, "only strictness LEGACY"),
        ({"dev": {"by": "utterance", "share": 0.1}}, "only strictness LEGACY"),
        ({"strictness": "LEGACY", "checkpoint": "best-test"}, "needs `dev: {by: test}`"),
        ({"labelled": -1}, "above 0"),
        ({"folds": {"kind": "groups", "groups": [["s1"], ["s1"]]}}, "listed twice"),
        ({"scales": {"toy": [3, 1]}}, "lowest"),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            load_protocol({**TOY, **change})


def test_extends_changes_only_what_it_names():
    changed = load_protocol({"extends": "iemocap-5fold", "subset": {"extra.style": "improvised"}})
    assert changed.subset and changed.classes == load_protocol("iemocap-5fold").classes
    assert changed.name == "iemocap-5fold-changed"
    other = load_protocol(
        {"extends": "emodb-loso", "name": "two", "classes": {"n": ["neutral"], "a": ["anger"]}}
    )
    assert list(other.classes) == ["n", "a"]


def test_labels_map_merge_ignore_and_refuse(tmp_path):
    rows = [
        {"speaker": "s1", "label": "a"},
        {"speaker": "s1", "label": "b"},
        {"speaker": "s2", "label": "c"},
        {"speaker": "s2", "label": None},
        {"speaker": "s2", "label": "odd"},
        {"speaker": "t1", "label": "a", "corpus": "other"},
    ]
    data = packed(tmp_path, rows)
    with pytest.raises(UserError, match=r"neither in a class nor ignored: toy/odd") as error:
        labels(load_protocol(TOY), data)
    assert "ignored: [odd]" in error.value.hint
    found = labels(load_protocol({**TOY, "ignored": ["odd"]}), data)
    assert by_number(data, found.classes) == {0: 0, 1: 1, 2: 1, 3: -1, 4: -1, 5: 0}
    assert by_number(data, found.scope)[4] == np.False_ and by_number(data, found.scope)[3]
    kept = labels(load_protocol({**TOY, "ignored": ["odd"], "ignored_rows": "unlabelled"}), data)
    assert kept.scope.all() and not by_number(data, kept.known)[4]
    # A label may mean another thing in another corpus.
    own = {"x": ["a"], "y": ["b", "c", "other/a"]}
    assert (
        by_number(data, labels(load_protocol({**TOY, "classes": own, "ignored": ["odd"]}), data).classes)[5]
        == 1
    )
    one = labels(load_protocol({**TOY, "corpora": ["other"]}), data)
    assert one.scope.sum() == 1 and one.names == ("x", "y") and one.soft is None
    with pytest.raises(UserError, match="no corpus emodb"):
        labels(load_protocol({**TOY, "corpora": ["emodb"]}), data)


def test_labels_from_extra_and_the_subset(tmp_path):
    rows = [
        {"speaker": "s1", "label": "a", "extra": {"clean": "b", "scripted": False, "n": 1}},
        {"speaker": "s2", "label": "a", "extra": {"clean": "a", "scripted": True, "n": 0}},
        {"speaker": "s3", "label": "a", "extra": {"clean": None, "scripted": False}},
    ]
    data = packed(tmp_path, rows)
    found = labels(load_protocol({**TOY, "label_from": "extra.clean"}), data)
    assert by_number(data, found.classes) == {0: 1, 1: 0, 2: -1}
    spoken = labels(load_protocol({**TOY, "subset": {"extra.scripted": False}}), data)
    assert by_number(data, spoken.scope) == {0: True, 1: False, 2: True}
    # False is not 0, and a list means any of its values.
    assert not by_number(data, labels(load_protocol({**TOY, "subset": {"extra.n": [1, None]}}), data).scope)[
        1
    ]
    with pytest.raises(UserError, match="no utterance is left"):
        labels(load_protocol({**TOY, "subset": {"extra.n": False}}), data)


def test_votes_give_majority_and_distribution(tmp_path):
    def cast(text):
        return tuple(Vote(v) for v in text)

    rows = [
        {"speaker": "s1", "label": "a", "votes": cast("aab")},
        {"speaker": "s2", "label": "a", "votes": cast("bcz")},
        {"speaker": "s3", "label": "a", "votes": cast("ab")},
        {"speaker": "s4", "label": "a", "votes": cast("zz")},
        {"speaker": "s5", "label": "b"},
    ]
    data = packed(tmp_path, rows)
    voted = {**TOY, "label_from": "votes", "ignored": ["z"]}
    found = labels(load_protocol(voted), data)
    assert by_number(data, found.classes) == {0: 0, 1: 1, 2: -1, 3: -1, 4: -1}
    soft = by_number(data, found.soft.tolist())
    assert soft[0] == pytest.approx([2 / 3, 1 / 3]) and soft[1] == [0, 1] and soft[2] == [0.5, 0.5]
    assert soft[3] == soft[4] == [0, 0]
    both = labels(load_protocol({**TOY, "soft_from": "votes", "ignored": ["z"]}), data)
    assert by_number(data, both.classes)[2] == 0 and by_number(data, both.soft.tolist())[2] == [0.5, 0.5]
    with pytest.raises(UserError, match="toy/z"):
        labels(load_protocol({**TOY, "label_from": "votes"}), data)


def test_dimensions_go_from_the_native_scale_to_0_1(tmp_path):
    rows = [
        {"speaker": "s1", "label": "a", "valence": 1.0, "arousal": 4.0, "scale": (1, 7)},
        {"speaker": "s2", "label": "b", "valence": 5.0, "scale": (1, 5), "corpus": "other"},
        {"speaker": "s3", "label": "b"},
    ]
    data = packed(tmp_path, rows)
    rated = {**TOY, "dimensions": ["valence", "arousal"]}
    found = by_number(data, labels(load_protocol(rated), data).dimensions)
    assert found[0] == pytest.approx([0, 0.5, np.nan], nan_ok=True)
    assert found[1] == pytest.approx([1, np.nan, np.nan], nan_ok=True)
    assert np.isnan(found[2]).all()
    wide = by_number(data, labels(load_protocol({**rated, "scales": {"other": [0, 10]}}), data).dimensions)
    assert wide[1][0] == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"outside its scale 2\.\.3"):
        labels(load_protocol({**rated, "scales": {"toy": [2, 3]}}), data)


def test_withdrawn_utterances_have_no_truth_and_no_fold(tmp_path):
    from shards.withdraw import withdraw

    data = packed(tmp_path, grid())
    data = withdraw(data.url, speaker="toy/s3") or type(data).open(data.url)
    data = type(data).open(str(tmp_path / "data"))
    assert (~data.alive).sum() == 6
    found = labels(load_protocol(TOY), data)
    assert (found.classes[~data.alive] == -1).all() and not found.scope[~data.alive].any()
    made = folds(load_protocol(TOY), data)
    assert "speaker-s3" not in [fold.name for fold in made] and len(made) == 5
    for fold in made:
        assert data.alive[np.concatenate([fold.train, fold.dev, fold.test])].all()


def test_protocols_are_values():
    one, two = load_protocol("emodb-loso"), load_protocol("emodb-loso")
    assert one == two and Protocol.model_validate(one.model_dump(mode="json")) == one
