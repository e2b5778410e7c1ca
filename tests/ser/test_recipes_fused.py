"""The recipes of the large fused teacher and its ladder: tiny runs whole, open and full resolve and have their sizes."""

import json

import numpy as np
import pytest

from ser.capacity import GIB, on_meta, plan, states
from ser.models.config import parse_config
from ser.models.shapes import SHAPES
from ser.recipe import load
from shards.errors import UserError
from tests.whole import run_here

LADDER = ("hubert", "distilhubert", "conv-large", "conv-small")
ROWS = ["text", "speech", "prosody", "fused", "gated", *LADDER, *(f"{name}-alone" for name in LADDER)]


@pytest.mark.slow
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


# What the hub's checkpoints have, without their poolers (BERT) and heads.
PUBLISHED = {
    "facebook/hubert-base-ls960": 94_371_712,
    "facebook/hubert-large-ll60k": 315_438_720,
    "facebook/hubert-xlarge-ll60k": 962_497_408,
    "facebook/wav2vec2-base": 94_371_712,
    "microsoft/wavlm-large": 315_453_120,
    "ntu-spml/distilhubert": 23_491_968,
    "google-bert/bert-base-uncased": 109_482_240 - 590_592,
    "bert-base-uncased": 109_482_240 - 590_592,
    "distilbert-base-uncased": 66_362_880,
    "google-bert/bert-large-uncased": 335_141_888 - 1_049_600,
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_known_shapes_have_the_published_parameters(name):
    kind = "linguistic" if "bert" in SHAPES[name]["model_type"].removeprefix("hu") else "acoustic"
    model = on_meta(parse_config({"kind": kind, "name": name, "freeze": "none"}), 4, True)
    assert sum(p.numel() for p in model.encoder.parameters()) == PUBLISHED[name]
    # but for SpecAugment's embedding, one vector
    assert sum(p.numel() for p in model.parameters() if not p.is_meta) <= 1280


@pytest.mark.parametrize(("variant", "teacher"), [(None, 1_313_744_478), ("wavlm", 666_564_000)])
def test_full_is_planned_without_weights(variant, teacher, monkeypatch, tmp_path):
    """The teacher, unfrozen, in bf16 under ZeRO-3 over 8 GPUs; the ladder's sizes."""
    monkeypatch.setenv("SER_CORPORA", str(tmp_path))
    recipe = load("fused/full", variant=variant)
    needs = {need.name: need for need in plan(recipe, 8)}
    fused = needs["fused"]
    assert fused.parameters == pytest.approx(teacher, rel=1e-4)
    assert recipe.models["fused"].train.zero_stage == 3 and recipe.models["fused"].train.precision == "bf16"
    assert fused.training == pytest.approx((2 * fused.parameters + 14 * fused.trainable) / 8, rel=1e-6)
    assert fused.training < 3 * GIB
    assert needs["hubert"].parameters == pytest.approx(94.4e6, rel=1e-3)
    assert needs["distilhubert"].parameters == pytest.approx(23.5e6, rel=1e-3)
    assert needs["conv-large"].parameters == pytest.approx(3.0e6, rel=0.02)
    assert needs["conv-small"].parameters == pytest.approx(72e3, rel=0.02)
    hubs = {part.name for e in recipe.models.values() if (part := e.model) and getattr(part, "name", None)}
    assert hubs <= set(recipe.allow_unknown)


@pytest.mark.parametrize(
    ("stage", "trained"),
    [(0, 16 * 80 + 2 * 20), (1, 4 * 80 + 12 * 10 + 2 * 20), (2, 2 * 80 + 14 * 10 + 2 * 20), (3, 16 * 10 + 5)],
)
def test_states_follow_the_stage(stage, trained):
    """80 trained and 20 frozen parameters over 8 GPUs."""
    assert states(100, 80, stage, 8) == trained


def test_an_unknown_name_says_so():
    with pytest.raises(UserError, match="not known without a network"):
        on_meta(parse_config({"kind": "acoustic", "name": "somebody/else"}), 4, True)


def test_open_resolves_with_its_rows(monkeypatch, tmp_path):
    monkeypatch.setenv("SER_CORPORA", str(tmp_path))
    for variant in (None, "ci"):
        recipe = load("fused/open", variant=variant)
        assert list(recipe.models) == [
            "prosody",
            "speech",
            "fused",
            "product",
            *LADDER,
            *(f"{n}-alone" for n in LADDER),
        ]


@pytest.mark.slow
def test_one_fold_of_open_end_to_end(corpora, monkeypatch, tmp_path):
    monkeypatch.setenv("SER_CORPORA", str(corpora))
    recipe = load("fused/open", [f"data.path={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"], "ci")
    run_here(recipe)
    report = json.loads((recipe.directory / "report.json").read_text())
    assert report["order"] == list(recipe.models) and not report["incomplete"]
