"""Grids, depth figures and subsets of the report: from the same answers as the plain rows, refused where they name nobody."""

from types import SimpleNamespace

import numpy as np
import pytest

from ser import scoring, subsets
from ser.layout import Depth, Grid, Trained, check_layout
from ser.report import layout
from ser.results import System
from shards.corpora.spokenaffect.corpus import mishear
from shards.errors import UserError


def score(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "reason": ""}


def report(**asked) -> dict:
    def model(value: float, count: int) -> dict:
        scores = {"labels": {"pooled": {"ua": score(value), "ccc_arousal": score(value / 2)}}}
        return {"scores": scores, "trainable": count, "parameters": 2 * count}

    return {
        "recipe": {"report": asked}, "order": ["a", "b"], "headline": "ua", "test": {"references": {"labels": {}}},
        "models": {"a": model(0.5, 100), "b": model(0.25, 1000)},
    }  # fmt: skip


def test_a_grid_shows_every_cell_and_marks_the_best():
    grid = Grid(title="T", metrics=["ua"], rows={"one": {"x": "a"}, "two": {"x": "b", "y": "a"}})
    (table,) = layout.grid_tables(report(grids=[grid.model_dump()]))
    assert table["columns"] == ["x", "y"] == grid.columns
    shown = [
        [(c["model"], [(v["value"], v["best"]) for v in c["values"]]) for c in row["cells"]]
        for row in table["rows"]
    ]
    assert shown == [[("a", [("50.0", True)]), ("", [])], [("b", [("25.0", False)]), ("a", [("50.0", True)])]]


def test_a_depth_figure_reads_its_numbers_aloud():
    asked = Depth(title="T", metrics=["ccc_arousal"], series={"probe": {0: "b", 3: "a"}}, levels={"sum": "a"})
    (shown,) = layout.depth_figures(report(depths=[asked.model_dump(mode="json")]))
    assert "probe, CCC arousal: 0 0.12, 3 0.25" in shown["figure"]["alt"]
    assert "sum, CCC arousal 0.25" in shown["figure"]["alt"]
    assert [(row["series"], row["depth"]) for row in shown["rows"]] == [
        ("probe", "0"),
        ("probe", "3"),
        ("sum", "all"),
    ]


def test_trained_shares_are_of_what_is_trained_and_of_all():
    shown = layout.trained(report(trained=Trained(reference="b", models=["a"], metric="ua").model_dump()))
    assert [(row["trained"], row["share"]) for row in shown["rows"]] == [
        ("1,000", "100.0 / 50.0"),
        ("100", "10.0 / 5.0"),
    ]
    assert layout.trained(report()) is None


def test_names_that_are_none_are_refused():
    def recipe(**asked):
        empty = {"grids": [], "depths": [], "trained": None}
        return SimpleNamespace(name="r", models={"a": 1}, report=SimpleNamespace(**{**empty, **asked}))

    check_layout(recipe(grids=[Grid(title="T", rows={"r": {"c": "a"}})]), scoring.COMPARABLE)
    for asked in (
        {"grids": [Grid(title="T", rows={"r": {"c": "b"}})]},
        {"depths": [Depth(title="T", series={"s": {1: "a"}}, levels={"l": "b"})]},
        {"trained": Trained(reference="a", models=["b"])},
    ):
        with pytest.raises(UserError, match="'b' is no model"):
            check_layout(recipe(**asked), scoring.COMPARABLE)
    with pytest.raises(UserError, match="no metric"):
        check_layout(
            recipe(grids=[Grid(title="T", metrics=["bleu"], rows={"r": {"c": "a"}})]), scoring.COMPARABLE
        )


class Table:
    """A dataset of four utterances, two folds."""

    TEXT = ("Hello  there", "hello THERE", "new", None)
    STYLE = ("improvised", "scripted", "scripted", None)

    def fields(self, columns, rows=None):
        import json

        import pyarrow as pa

        rows = range(4) if rows is None else rows
        values = {"text": self.TEXT, "extra": [json.dumps({"style": s}) for s in self.STYLE]}
        return pa.table({c: [values[c][r] for r in rows] for c in columns})


def setting(**asked):
    folds = {"f": SimpleNamespace(train=np.array([0])), "g": SimpleNamespace(train=np.array([2]))}
    recipe = SimpleNamespace(report=SimpleNamespace(subsets=asked))
    return SimpleNamespace(dataset=Table(), folds=folds, recipe=recipe)


def system() -> System:
    p = np.full((1, 4, 2), 0.5)
    return System(
        np.array([1, 2, 0, 3]),
        np.array([0, 0, 1, 1]),
        p,
        np.zeros((1, 4), np.int64),
        None,
        np.ones((1, 4), np.uint8),
    )


def test_a_line_is_repeated_where_its_own_fold_has_read_it():
    """Case and blanks do not matter; a line that only another fold's training has is new; no text is no line."""
    assert subsets.repeats(setting(), system()).tolist() == [True, False, False, False]


def test_subsets_are_masks_over_the_rows():
    where = setting(
        a={"extra.style": "scripted"}, b={"extra.style": ["scripted", "improvised"], "repeated_text": False}
    )
    found = subsets.masks(where, system())
    assert found["a"].tolist() == [True, True, False, False]
    assert found["b"].tolist() == [False, True, True, False]
    counted = subsets.repetition(where, system(), found)
    assert [(r["fold"], r["subset"], r["utterances"], r["repeated"]) for r in counted[:2]] == [
        ("f", "all", 2, 1),
        ("f", "a", 2, 1),
    ]
    with pytest.raises(UserError, match="no test utterance has a extra"):
        subsets.masks(setting(a={"extra.tone": "x"}), system())
    with pytest.raises(UserError, match="true or false"):
        subsets.masks(setting(a={"repeated_text": "yes"}), system())


def test_a_simulated_recogniser_errs_as_often_as_it_says():
    text = "The garden was horrible today"
    heard = [mishear(f"k{i}", text, "en", 0.2).split() for i in range(400)]
    wrong = np.mean([a != b for words in heard for a, b in zip(words, text.split(), strict=True)])
    # a word replaced by itself is right; two of five words are in the lexicon of 18
    assert abs(wrong - 0.2) < 0.03
    assert (
        mishear("k1", text, "en", 0.2) == mishear("k1", text, "en", 0.2)
        and mishear("k", text, "en", 0.0) == text
    )
