"""EmoDistill's recipes: the whole grid runs on a small SpokenAffect and ends in one table; the full one is as written."""

import pytest

from ser.capacity import plan
from ser.protocol import load_protocol
from ser.recipe import load
from tests.whole import places, report_of

TEACHERS = ["linguistic", "prosodic"]
LEVELS = {"logits": ["kl"], "embeddings": ["embedding"], "both": ["kl", "embedding"]}
WHO = {"_l": ["linguistic"], "_p": ["prosodic"], "": TEACHERS}
NAMES = {(what, who): f"{what}{who}" for what in LEVELS for who in WHO} | {("both", ""): "emodistill"}
STUDENTS = list(NAMES.values())


@pytest.fixture(autouse=True)
def corpora_by_path(monkeypatch, tmp_path):
    monkeypatch.setenv("IEMOCAP", str(tmp_path))
    monkeypatch.setenv("SER_CORPORA", str(tmp_path))


@pytest.mark.parametrize("name", ["tiny", "open", "full"])
def test_the_grid_is_whole(name):
    """Ten students that differ in their terms alone: every subset of levels by every subset of teachers."""
    models = load(f"emodistill/{name}").models
    assert [n for n, m in models.items() if m.role == "teacher"] == TEACHERS
    assert list(models) == [*TEACHERS, "alone", *STUDENTS]
    for (what, who), student in NAMES.items():
        wanted = {(loss, teacher) for loss in LEVELS[what] for teacher in WHO[who]}
        terms = [(t.loss, t.teacher) for t in models[student].objective if t.loss != "cross_entropy"]
        assert set(terms) == wanted and len(terms) == len(wanted)
        assert models[student].model == models["alone"].model
        assert models[student].train == models["alone"].train
    assert models["alone"].target_sources == ()


def test_every_fold_has_its_own_teachers_and_legacy_says_so():
    """Five folds by session, ten by speaker; the best epoch on the test fold is LEGACY's alone."""
    protocols = {
        v: load("emodistill/full", variant=v).protocol for v in (None, "speakers", "improvised", "legacy")
    }
    read = {variant: load_protocol(protocol) for variant, protocol in protocols.items()}
    assert [read[v].folds.by for v in read] == ["session", "speaker", "session", "session"]
    assert [read[v].strictness for v in read] == ["STRICT", "STRICT", "STRICT", "LEGACY"]
    assert read["improvised"].subset == {"extra.style": "improvised"}
    assert read["legacy"].dev.by == "test" and read["legacy"].checkpoint == "best-test"
    subsets = load("emodistill/full").report.subsets
    assert subsets["improvised"] == {"extra.style": "improvised"} and "scripted" in subsets


def test_the_full_models_have_the_papers_sizes():
    """HuBERT-base 94.4 M with 4.2 M of convolutions frozen, BERT-base 108.9 M without its pooler."""
    counted = {size.name: size for size in plan(load("emodistill/full"))}
    assert round(counted["emodistill"].backbone / 1e6, 2) == 94.37
    assert round(counted["emodistill"].backbone_trainable / 1e6, 2) == 90.17
    assert round(counted["linguistic"].backbone / 1e6, 1) == 108.9


@pytest.mark.slow
def test_tiny_runs_whole(tmp_path):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    report = report_of(load("emodistill/tiny", places(tmp_path), "test"))
    assert set(report["order"]) == {*TEACHERS, "alone", *STUDENTS} and not report["incomplete"]
    scores = report["models"]["emodistill"]["scores"]["labels"]
    halves = [scores["subsets"][name]["utterances"] for name in ("frames 1 and 2", "frames 3 and 4")]
    assert sum(halves) == report["test"]["utterances"] == 60
    # no text of SpokenAffect is in two splits, so no row of the repeated ones can have a score
    assert scores["subsets"]["lines of training"] == {"utterances": 0, "speakers": 0, "pooled": {}}
    assert scores["subsets"]["new lines"]["pooled"] == scores["pooled"]
    assert [row["repeated"] for row in report["repeated"]] == [0] * 5
    page = (tmp_path / "run" / "report.html").read_text()
    for title in ("What the student is taught, and by whom", "Lines that training has read", "both teachers"):
        assert title in page
