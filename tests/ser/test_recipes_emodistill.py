"""EmoDistill's recipes: the whole grid runs on a small SpokenAffect and ends in one table."""

import pytest

from ser.recipe import load
from tests.ser.run_here import run_here

TEACHERS = ["linguistic", "prosodic"]
GRID = {
    f"{what}{who}": {(loss, teacher) for loss in losses for teacher in teachers}
    for what, losses in {"logits": ["kl"], "embeddings": ["embedding"], "both": ["kl", "embedding"]}.items()
    for who, teachers in {"_l": ["linguistic"], "_p": ["prosodic"], "": TEACHERS}.items()
}
GRID["emodistill"] = GRID.pop("both")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    folder = tmp_path_factory.mktemp("emodistill")
    places = [f"data.path={folder}/data", f"data.corpora.0.root={folder}/corpus", f"run_dir={folder}/run"]
    return load("emodistill/tiny", places, "test")


def test_the_grid_is_whole():
    """Ten students that differ in their terms alone: every subset of levels by every subset of teachers."""
    models = load("emodistill/tiny").models
    assert [n for n, m in models.items() if m.role == "teacher"] == TEACHERS
    for name, wanted in GRID.items():
        student, alone = models[name], models["alone"]
        terms = [(t.loss, t.teacher) for t in student.objective if t.loss != "cross_entropy"]
        assert set(terms) == wanted and len(terms) == len(wanted)
        assert student.model == alone.model and student.train == alone.train
    assert models["alone"].target_sources == ()


@pytest.mark.slow
def test_tiny_runs_whole(recipe):
    report = run_here(recipe)
    assert report["order"] == [*TEACHERS, "alone", *GRID] or set(report["order"]) == {
        *TEACHERS,
        "alone",
        *GRID,
    }
    assert not report["incomplete"]
