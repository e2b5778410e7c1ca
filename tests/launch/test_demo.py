"""The demo, cut down to what a test may take: every row, comparison and ceiling of it is in its report, once and for all."""

import json

import pytest

from ser.recipe import load
from tests.whole import places, run_here

pytestmark = pytest.mark.slow
TRAINED = ("text", "prosody", "student", "baseline", "permuted")


def test_the_demo_makes_its_whole_report_and_then_nothing(tmp_path):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    small = [
        *places(tmp_path),
        "data.corpora.0.generate.utterances=300",
        "protocol={extends: spokenaffect, labelled: 120}",
        "seeds=[0]",
        "views.count=1",
        *(f"models.{name}.train.{key}" for name in TRAINED for key in ("steps=8", "evaluate_every=8", "slot_seconds=32")),
    ]  # fmt: skip
    recipe = load("demo", small)
    lines = run_here(recipe)
    assert any(line.made for line in lines)
    report = json.loads((tmp_path / "run/report.json").read_text())
    demo = load("demo")
    assert report["order"] == list(demo.models) and not report["incomplete"]
    assert {"text", "prosody", "fused", "student", "baseline", "permuted"} == set(report["order"])
    references = {"labels", *demo.report.references}
    assert references == {"labels", "clean"}
    for name in report["order"]:
        scores = report["models"][name]["scores"]
        assert set(scores) == references
        for each in scores.values():
            told = each["pooled"]["ua"]
            assert 0 <= told["low"] <= told["value"] <= told["high"] <= 1, "24 test voices give an interval"
    # each comparison of the recipe, against both sets of labels, with a result
    wanted = [
        (row.system, row.reference, against) for row in demo.report.compare for against in ("labels", "clean")
    ]
    told = report["comparisons"]
    assert [(row["system"], row["reference"], row["against"]) for row in told] == wanted and len(wanted) == 8
    assert all(row["result"] is not None and not row["reason"] for row in told)
    for against, fusion in (("labels", 0.81), ("clean", 0.95)):
        ceilings = report["ceilings"][against]
        assert set(ceilings) == {"text", "prosody", "fusion"}
        assert ceilings["fusion"]["ua"] == pytest.approx(fusion, abs=0.005)
        assert ceilings["text"]["ua"] < ceilings["fusion"]["ua"] > ceilings["prosody"]["ua"]
    page = (tmp_path / "run/report.html").read_text()
    assert all(name in page for name in report["order"])
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and "report" not in p.name}
    again = run_here(recipe)
    assert [line for line in again if line.made and line.stage not in ("evaluate", "report")] == []
    assert {p: p.stat().st_mtime_ns for p in stamps if p.suffix != ".json"} == {
        p: stamp for p, stamp in stamps.items() if p.suffix != ".json"
    }
