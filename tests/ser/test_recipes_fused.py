"""The recipes of the large fused teacher and its ladder: tiny runs whole, open and full resolve and have their sizes."""

import json

import numpy as np

from ser.recipe import load
from tests.whole import run_here

LADDER = ("hubert", "distilhubert", "conv-large", "conv-small")
ROWS = ["text", "speech", "prosody", "fused", "gated", *LADDER, *(f"{name}-alone" for name in LADDER)]


def test_tiny_runs_whole(tmp_path):
    """300 utterances, one seed: every row of the table exists, with its size, work and speed."""
    places = [
        f"data.path={tmp_path / 'data'}",
        f"data.corpora.0.root={tmp_path / 'corpus'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    recipe = load("fused/tiny", places, "ci")
    run_here(recipe)
    report = json.loads((recipe.directory / "report.json").read_text())
    assert report["order"] == ROWS and not report["incomplete"]
    for name in ROWS:
        told = report["models"][name]
        scores = told["scores"]["labels"]["pooled"]
        assert np.isfinite(scores["ua"]["value"]) and np.isfinite(scores["ccc"]["value"])
        assert told["parameters"] > 0 and told["speed"]["macs"] > 0 and told["speed"]["factor"] > 0
    assert report["models"]["fused"]["inputs"] == ["prosody", "text", "waveform"]
    for name in LADDER:
        assert set(report["models"][name]["inputs"]) <= {"waveform", "mel"}, "students hear audio alone"
    page = (recipe.directory / "report.html").read_text()
    for axis in ("parameters", "MACs a second of speech", "real-time factor"):
        assert f"UA against {axis}" in page


def test_the_ladder_goes_down():
    recipe = load("fused/tiny")
    assert [name for name, entry in recipe.models.items() if entry.role == "student"] == list(LADDER)
    for name in LADDER:
        student, alone = recipe.models[name], recipe.models[f"{name}-alone"]
        assert student.model == alone.model and student.target_sources == ("fused", "text")
        assert alone.target_sources == ()
        assert student.train.steps == alone.train.steps
