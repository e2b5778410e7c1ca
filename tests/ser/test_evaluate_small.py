"""Evaluations of runs with few speakers, one fold, unfinished trainings, damaged predictions, or dimensions alone."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from ser.evaluate import evaluate
from ser.finish import write_predictions
from ser.job import Job, directory
from ser.results import collect
from shards.errors import UserError
from tests.ser import fake_run
from tests.ser.second_reading import Second, posteriors


@pytest.fixture
def small(tmp_path):
    """A quick run: one fold by groups of speakers, five test speakers."""
    models = {
        "student": {"role": "student", "model": fake_run.CONV, "objective": fake_run.LABELS[:1], "train": fake_run.TRAIN},
        "baseline": {"role": "baseline", "model": fake_run.CONV, "objective": fake_run.LABELS[:1], "train": fake_run.TRAIN},
    }  # fmt: skip
    folds = {
        "kind": "fixed", "by": "speaker", "train": ["s00", "s01"], "dev": ["s02"], "test": ["s03", "s04", "s05", "s06", "s07"],
    }  # fmt: skip
    compare = {"compare": [{"system": "student", "reference": "baseline"}]}
    return fake_run.make(
        tmp_path, speakers=8, dims=False, models=models, seeds=[0, 1], report=compare, targets=False,
        protocol={"folds": folds, "dev": None},
    )  # fmt: skip


def test_few_speakers_and_one_fold_and_no_dimensions(small):
    report = evaluate(small)
    score = report["models"]["student"]["scores"]["labels"]["pooled"]
    assert (
        score["ua"]["low"] is None and score["ua"]["reason"] == "5 test speakers, fewer than 8: no interval"
    )
    assert not any(name.startswith("ccc") for name in score)
    found = report["comparisons"][0]["result"]
    assert found["low"] is None and 0 < found["p"] <= 1 and found["folds"]["folds"] == 1
    assert set(report["data"]["corpora"][0]["splits"]) == {"train", "train with label", "dev", "test"}


def test_unanswered_utterances_count_as_wrong(small):
    job = Job("fixed", "student", 0)
    whole = evaluate(small)["models"]["student"]["scores"]["labels"]["pooled"]["wa"]["each_seed"][0]
    test = small.folds["fixed"].test
    state = np.ones(len(test), np.uint8)
    state[:4], state[4:9] = 2, 3
    fake_run.finish(small, job, state)
    rows = [
        row
        for row in pq.read_table(directory(small.recipe, job) / "predictions.parquet").to_pylist()
        if row["split"] == "test"
    ]
    right = [
        row["state"] == 1 and np.argmax(row["logits"]) == small.labels.classes[row["row"]] for row in rows
    ]
    model = evaluate(small)["models"]["student"]
    assert model["unanswered"] == {"no_input": 4, "unreadable": 5, "of": len(test)}
    assert model["scores"]["labels"]["pooled"]["wa"]["each_seed"][0] == pytest.approx(np.mean(right))
    assert np.mean(right) < whole
    assert sum(model["scores"]["labels"]["confusion"]["unanswered"]) == 9


def test_unfinished_trainings_are_named_and_never_read(small):
    shutil.rmtree(directory(small.recipe, Job("fixed", "student", 1)))
    (directory(small.recipe, Job("fixed", "baseline", 0)) / "job.json").write_text('{"of": "another recipe"}')
    report = evaluate(small)
    assert report["models"]["student"]["seeds"] == [0]
    assert report["models"]["student"]["missing"] == ["fixed student seed 1"]
    assert report["models"]["baseline"]["seeds"] == [1]
    (directory(small.recipe, Job("fixed", "baseline", 1)) / "DONE").unlink()
    report = evaluate(small)
    assert list(report["incomplete"]) == ["baseline"] and report["order"] == ["student"]
    assert report["comparisons"][0]["result"] is None
    assert report["comparisons"][0]["reason"] == "not finished: baseline"
    (directory(small.recipe, Job("fixed", "student", 0)) / "DONE").unlink()
    with pytest.raises(UserError, match="no model of this recipe is finished"):
        evaluate(small)


@pytest.mark.parametrize("damage", ["lost", "twice"])
def test_every_utterance_once_or_refused(small, damage):
    path = directory(small.recipe, Job("fixed", "student", 0)) / "predictions.parquet"
    table = pq.read_table(path)
    last = len(table) - 1
    rows = list(range(last)) if damage == "lost" else [*range(last), last - 1]
    write_predictions(path, table.take(rows))
    with pytest.raises(UserError, match="not every utterance once"):
        collect(small)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"compare": [{"system": "studnet", "reference": "baseline"}]}, "studnet"),
        (
            {"compare": [{"system": "student", "reference": "baseline", "metric": "ece"}]},
            "'ece' cannot be compared",
        ),
    ],
)
def test_wrong_comparisons_are_refused(small, change, match):
    config = small.recipe.report.model_validate(change)
    small.recipe = small.recipe.model_copy(update={"report": config})
    with pytest.raises(UserError, match=match):
        evaluate(small)


def test_signs_and_ceilings_of_the_generated_corpus(tmp_path):
    models = {
        "student": {
            "role": "student",
            "model": fake_run.CONV,
            "objective": fake_run.LABELS,
            "train": fake_run.TRAIN,
        }
    }
    data = fake_run.rows(20, 4, True, licence="synthetic speech (espeak-ng), free of rights")
    folds = {"kind": "fixed", "by": "official", "train": ["train"], "dev": ["dev"], "test": ["test"]}
    config = {
        "ceilings": True, "references": {"clean": "extra.clean_label"},
        "compare": [{"system": "student", "reference": "student", "metric": "valence_sign"}],
    }  # fmt: skip
    setting = fake_run.make(
        tmp_path, data=data, models=models, seeds=[0], report=config, corpus="spokenaffect", targets=False,
        protocol={"folds": folds, "dev": None},
    )  # fmt: skip
    report = evaluate(setting)
    assert report["data"]["synthetic"] == ["spokenaffect"] and report["data"]["restricted"] == []
    heard = stats.norm.cdf(1 / 0.6)
    assert report["ceilings"]["clean"]["fusion"] == pytest.approx(
        {"valence_sign": 1, "arousal_sign": heard, "ua": heard}
    )
    assert report["ceilings"]["labels"]["text"]["ua"] == pytest.approx(0.8 * 0.5 + 0.2 / 4)
    second = Second(setting, data)
    rows = second.answers("student", 0, folds=["fixed"])
    p = posteriors(rows)
    for against, key in (("labels", "label"), ("clean", "clean")):
        found = report["models"]["student"]["scores"][against]["signs"]
        happy_or_calm = np.isin([row[key] for row in rows], ["happy", "calm"])
        assert found["valence_sign"]["value"] == pytest.approx(
            np.mean((p[:, 1] + p[:, 3] > 0.5) == happy_or_calm)
        )
        aroused = np.isin([row[key] for row in rows], ["angry", "happy"])
        assert found["arousal_sign"]["value"] == pytest.approx(np.mean((p[:, 0] + p[:, 1] > 0.5) == aroused))
    assert report["comparisons"][0]["result"]["difference"] == 0
    assert report["models"]["student"]["source"] == "fusion"


def test_dimensions_alone(tmp_path):
    """A protocol without classes: CCC is the headline, nothing asks for posteriors."""
    models = {
        name: {
            "role": role,
            "model": fake_run.CONV,
            "objective": fake_run.LABELS[1:],
            "train": fake_run.TRAIN,
        }
        for name, role in (("student", "student"), ("baseline", "baseline"))
    }
    report = {"compare": [{"system": "student", "reference": "baseline", "metric": "ccc"}]}
    setting = fake_run.make(
        tmp_path, models=models, seeds=[0], report=report, targets=False, repeats=3,
        protocol={"classes": {}, "select_metric": "ccc"},
    )  # fmt: skip
    report = evaluate(setting)
    assert report["headline"] == "ccc" and report["classes"] == []
    student = report["models"]["student"]
    assert set(student["scores"]["labels"]["pooled"]) == {
        "ccc",
        "ccc_valence",
        "ccc_arousal",
        "ccc_dominance",
    }
    assert student["scores"]["labels"]["confusion"] is None and student["calibration"] is None
    assert report["comparisons"][0]["result"]["difference"] > 0
