"""Systems of several models: put together row by row, scored as one, refused where a group has no model."""

from typing import Any

import numpy as np
import pytest

from ser import metrics, scoring
from ser.evaluate import evaluate
from ser.report import write_page
from ser.results import collect, voices
from shards.errors import UserError
from tests.ser import fake_run

pytestmark = pytest.mark.slow

PARTS = {"en": "student", "fi": "baseline", "fr": "prosody"}


def report_config(parts: dict[str, str] = PARTS, **more: Any) -> dict[str, Any]:
    return {
        "composites": {"Mixed": {"by": "language", "models": parts}},
        "compare": [{"system": "Mixed", "reference": "baseline"}],
        "groups": ["language"],
        "group_metrics": ["wa"],
        **more,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fake_run.make(tmp_path_factory.mktemp("mixed"), speakers=24, report=report_config())


def test_each_row_is_answered_by_the_model_of_its_group(made):
    report = evaluate(made)
    models, _ = collect(made)
    mixed = report["models"]["Mixed"]
    assert mixed["seeds"] == [0], "seeds that all parts have: the teacher has one"
    test = models["student"].test
    language = np.array([made.dataset.languages[c] for c in made.dataset.language[test.rows]])
    decided = np.select([language == k for k in PARTS], [models[m].test.decided[0] for m in PARTS.values()])  # pyright: ignore
    truth = made.labels.classes[test.rows]
    pooled = mixed["scores"]["labels"]["pooled"]
    assert pooled["wa"]["value"] == pytest.approx((decided == truth).mean(), abs=1e-12)
    assert pooled["ua"]["value"] == pytest.approx(metrics.ua(truth, decided, 4), abs=1e-12)
    speakers = voices(made, test.rows)
    from ser import intervals

    own = intervals.interval("ua", truth, decided[None], speakers, classes=4).to_dict()
    assert {k: pooled["ua"][k] for k in ("low", "high")} == pytest.approx(
        {k: own[k] for k in ("low", "high")}
    )
    for group, part in PARTS.items():
        told = {
            n: report["models"][n]["scores"]["labels"]["groups"]["language"]["wa"][group]
            for n in ("Mixed", part)
        }
        assert told["Mixed"]["count"] == told[part]["count"] > 0
        inside = language == group
        assert told["Mixed"]["value"] == pytest.approx((decided == truth)[inside].mean(), abs=1e-12)
    (row, *_) = report["comparisons"]
    assert row["system"] == "Mixed" and row["result"]["values"][0] == pytest.approx(pooled["ua"]["value"])
    assert mixed["parameters"] == sum(report["models"][m]["parameters"] for m in PARTS.values())
    assert mixed["licences"]["own"] == ["CC BY-NC-SA 4.0"] and mixed["licences"]["restricted"]
    page = write_page(report, made.recipe.directory / "mixed.html").read_text()
    assert "for each language its own model: student, baseline, prosody" in page and "WA by language" in page
    assert scoring.MINIMUM_IN_GROUP and '<th scope="col" class="n">fi</th>' in page


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            report_config({"en": "student", "fi": "baseline"}),
            r"Mixed has no model for \d+ test utterances of language fr",
        ),
        (
            report_config({**PARTS, "fr": "nobody"}),
            r"report.composites.Mixed names nobody, no model of this recipe",
        ),
        (
            report_config(composites={"student": {"models": PARTS}}, compare=[]),
            r"student has the name of a model",
        ),
        (report_config(group_metrics=["accuracy"]), r"report.group_metrics: no metric accuracy"),
        (report_config(compare=[{"system": "Mixt", "reference": "baseline"}]), r"names 'Mixt', no model"),
    ],
)
def test_composites_that_do_not_fit_are_refused(made, config, message):
    from dataclasses import replace

    from ser.recipe import ReportConfig

    recipe = made.recipe.model_copy(update={"report": ReportConfig.model_validate(config)})
    with pytest.raises(UserError, match=message):
        evaluate(replace(made, recipe=recipe))
