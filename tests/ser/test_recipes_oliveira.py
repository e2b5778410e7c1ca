"""The recipes of Oliveira 2023: layer study with its figure, fusion, and the parameter counts of the real models."""

import json

import numpy as np
import pytest

from ser.capacity import plan
from ser.recipe import load
from tests.whole import places, report_of

PROBES = [*(f"layer{k}" for k in range(7)), "weighted"]
CUT = ["first1", "first2", "first4", "first6"]
ROWS = ["distilbert", "distilbert_asr", *PROBES, *CUT, "distilhubert", "fusion", "fusion_asr"]


@pytest.fixture(autouse=True)
def corpora_by_path(monkeypatch, tmp_path):
    for name in ("MSP_PODCAST", "MSP_PODCAST_ASR", "SER_CORPORA"):
        monkeypatch.setenv(name, str(tmp_path))


def millions(count: int, digits: int = 1) -> float:
    return round(count / 1e6, digits)


@pytest.mark.slow
def test_the_trained_share_is_the_papers():
    """The counts of the papers' reconstruction: 61.8 M of 315.4 M (or of the 311.2 M that are trained of it)."""
    counted = {size.name: size for size in plan(load("oliveira2023/full"))}
    fusion, large = counted["fusion"], counted["first24"]
    assert millions(large.backbone) == 315.4 and millions(large.backbone_trainable) == 311.2
    assert millions(fusion.backbone) == 89.9 and millions(fusion.backbone_trainable) == 61.8
    assert round(100 * fusion.backbone_trainable / large.backbone, 1) == 19.6
    assert round(100 * fusion.backbone_trainable / large.backbone_trainable, 1) == 19.9
    assert millions(counted["distilhubert"].backbone, 2) == 23.49
    assert millions(counted["distilbert"].backbone, 2) == 66.36
    assert millions(counted["hubert_base"].backbone, 2) == 94.37
    # a frozen encoder is counted, and nothing of it is trained
    assert millions(counted["layer12"].parameters) == 315.7 and millions(counted["layer12"].trainable) == 0.3


@pytest.mark.slow
def test_the_other_shares_of_the_reconstruction():
    """Both fully trained 89.9 M; convolutions frozen 85.7 M; text encoder frozen 19.3 M: none of them is 20 %."""
    base = "models.fusion.model.components"
    whole = [f"{base}.audio.freeze=none", f"{base}.text.freeze=none"]
    for overrides, wanted in (
        (whole, 89.9), (whole[1:], 85.7), ([f"{base}.text.freeze=encoder"], 19.3),
    ):  # fmt: skip
        counted = {size.name: size for size in plan(load("oliveira2023/full", overrides))}
        assert millions(counted["fusion"].backbone_trainable) == wanted


def test_every_variant_resolves():
    full = load("oliveira2023/full")
    assert [n for n in full.models if n.startswith("layer")] == [f"layer{k}" for k in range(25)]
    assert set(full.report.depths[0].series["cut and fine-tuned"]) == {2, 4, 6, 8, 12, 16, 20, 24}
    asr = load("oliveira2023/full", variant="asr")
    assert asr.data.corpora[0].transcripts.source == "asr:openai/whisper-small"
    assert asr.models["fusion_asr"].model.components["text"].text_from == "asr:openai/whisper-small"
    assert [n for n, m in load("oliveira2023/tiny").models.items() if m.role != "encoder"] == ROWS
    assert load("oliveira2023/open").report.depths[0].metrics == ["ccc_arousal", "ua"]


@pytest.mark.slow
def test_tiny_runs_whole(tmp_path):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    report = report_of(load("oliveira2023/tiny", places(tmp_path), "test"))
    assert report["order"] == ROWS and not report["incomplete"]
    models = report["models"]
    # one set of weights a dimension over the seven states
    shares = models["weighted"]["layer_shares"]
    assert list(shares) == ["valence", "arousal", "dominance"]
    assert all(len(row) == 7 and abs(sum(row) - 1) < 1e-5 for row in shares.values())
    # the deeper the cut, the fewer the parameters; convolutions and embeddings of the fusion stand still
    assert np.all(np.diff([models[name]["parameters"] for name in CUT]) > 0)
    assert (
        models["fusion"]["trainable"]
        < models["distilhubert"]["trainable"] + models["distilbert"]["trainable"]
    )
    # what the encoder heard is in every probe's exposure
    exposure = {
        name: json.loads((tmp_path / f"run/folds/fixed/{name}/seed-0/model/model.json").read_text())["meta"][
            "exposure"
        ]
        for name in ("encoder", "layer3", "first6", "fusion")
    }
    assert exposure["encoder"]["fit"]
    for name in ("layer3", "first6", "fusion"):
        assert exposure[name]["fit"] == exposure["encoder"]["fit"]
    assert report["encoders"]["encoder"]["read_by"] == [*PROBES, *CUT, "distilhubert"]
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (
        "one probe a layer, CCC arousal: 0 ",
        "cut and fine-tuned, CCC valence: 1 ",
        "Where a weighted sum listens",
    ):
        assert text in page
    assert "Trained" in page and "recogniser" in page
    heard = json.loads((tmp_path / "run/folds/fixed/fusion_asr/seed-0/model/model.json").read_text())
    assert heard["config"]["components"]["distilbert_asr"]["text_from"] == "extra.asr_text"
