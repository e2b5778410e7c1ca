"""The recipes of Oliveira 2023: layer study with its figure, fusion, and the parameter counts of the real models."""

import pytest

from ser.recipe import load
from tests.ser.run_here import run_here

PROBES = [*(f"layer{k}" for k in range(7)), "weighted"]
CUT = ["first1", "first2", "first4", "first6"]
ROWS = ["distilbert", "distilbert_asr", "encoder", *PROBES, *CUT, "distilhubert", "fusion", "fusion_asr"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    folder = tmp_path_factory.mktemp("oliveira")
    places = [f"data.path={folder}/data", f"data.corpora.0.root={folder}/corpus", f"run_dir={folder}/run"]
    return load("oliveira2023/tiny", places, "test")


@pytest.mark.slow
def test_tiny_runs_whole(recipe):
    report = run_here(recipe)
    assert report["order"] == ROWS and not report["incomplete"]
