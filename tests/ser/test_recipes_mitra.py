"""mitra2022 and mitra2023: the tiny recipes run whole, the open ones resolve, the full ones are checked without a hub."""

import json
import time

import numpy as np
import pytest
import torch
import yaml

from ser.models import build, count_parameters
from ser.models.streams import with_sizes
from ser.recipe import RECIPES, load

ROWS = {
    "mitra2022": ["mfb", "single", "fusion", "distilled"],
    "mitra2023": ["mfb", "acoustic", "lexical", "multimodal", "distilled"],
}
ENCODERS = {"mitra2022": ["hubert", "wav2vec2"], "mitra2023": ["hubert"]}
STATED = {
    "mitra2022": {("fusion", "mfb"): 0.79, ("distilled", "mfb"): 0.12},
    "mitra2023": {("multimodal", "acoustic"): 1.0, ("multimodal", "lexical"): 0.3},
}
UTTERANCES, SECONDS = 300, 60.0
HUBERT_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True,
}  # fmt: skip


def variants(name: str) -> list[str | None]:
    return [None, *(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("variants") or {})]


@pytest.mark.parametrize("system", ROWS)
@pytest.mark.parametrize("size", ["tiny", "open", "full"])
def test_every_recipe_and_variant_resolves_to_its_rows(system, size, monkeypatch, tmp_path):
    monkeypatch.setenv("SER_CORPORA", str(tmp_path))
    for variant in variants(f"{system}/{size}"):
        recipe = load(f"{system}/{size}", variant=variant)
        assert recipe.name == f"{system}-{size}" and recipe.seeds == [0, 1, 2]
        assert [n for n, m in recipe.models.items() if m.role != "encoder"] == ROWS[system]
        found = {
            (r.system, r.reference): r.published for r in recipe.report.compare if r.published is not None
        }
        # no published number stands beside a proxy
        assert found == ({} if size == "open" else STATED[system])
        assert all("abstract" in r.source for r in recipe.report.compare if r.published is not None)
        student = recipe.models["distilled"]
        twin = recipe.models["mfb" if system == "mitra2022" else "acoustic"]
        assert student.model == twin.model and student.objective[-1].projector == "none"


@pytest.mark.slow
@pytest.mark.parametrize("system", ROWS)
def test_the_tiny_recipe_runs_whole(system, tmp_path):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    from tests.whole import run_here

    names = ROWS[system] + ENCODERS[system]
    recipe = load(
        f"{system}/tiny",
        [
            f"data.path={tmp_path / 'data'}",
            f"data.corpora.0.root={tmp_path / 'corpus'}",
            f"data.corpora.0.generate.utterances={UTTERANCES}",
            f"run_dir={tmp_path / 'run'}",
            "protocol.labelled=150",
            "seeds=[0]",
            *(f"models.{name}.train.steps=12" for name in names),
            *(f"models.{name}.seeds=[0]" for name in names),
            *(["views.count=1"] if system == "mitra2023" else []),
        ],
    )
    began = time.process_time()
    run_here(recipe)
    # Of this process, so that a busy machine is no fault of the recipe; waiting is not counted.
    assert time.process_time() - began <= SECONDS
    report = json.loads((recipe.directory / "report.json").read_text())
    assert report["order"] == ROWS[system] and not report["incomplete"]
    assert sorted(report["encoders"]) == sorted(ENCODERS[system])
    for name in ROWS[system]:
        pooled = report["models"][name]["scores"]["labels"]["pooled"]
        for metric in ("ccc", "ccc_valence", "ccc_arousal", "ccc_dominance"):
            assert np.isfinite(pooled[metric]["value"]), (name, metric)
        assert report["models"][name]["parameters"] > 0
    stated = {
        (r["system"], r["reference"]): r["published"] for r in report["comparisons"] if "published" in r
    }
    assert {pair: stated[pair] for pair in STATED[system]} == STATED[system]
    page = (recipe.directory / "report.html").read_text()
    assert "Relative gains" in page and "SYNTHETIC SPEECH" in page and "Frozen encoders" in page
    if system == "mitra2023":
        told = report["conditions"]
        assert told["names"] == ["clean", "snr20", "snr15", "snr10", "snr5", "room"]
        assert set(told["scores"]) == set(ROWS[system])
        assert all(set(row) == set(told["names"]) for row in told["scores"].values())
        # what is read is not heard
        text = told["scores"]["lexical"]
        assert text["snr5"]["ccc_valence"]["value"] == pytest.approx(text["clean"]["ccc_valence"]["value"])
    else:
        assert report["conditions"] is None


def expected_tcgru(size: int, width: int = 128, embedding: int = 128, normed: bool = True) -> int:
    """LayerNorm, convolution of 3, two GRU layers on [conv, input], embedding, three outputs."""
    norm, conv = 2 * size * normed, 3 * size * width + width
    first = 3 * width * (size + width) + 3 * width * width + 6 * width
    second = 6 * width * width + 6 * width
    return norm + conv + first + second + width * embedding + embedding + 3 * embedding + 3


def on_meta(config, classes: int = 0) -> int:
    with torch.device("meta"):
        return count_parameters(build(config, classes, True))["total"]


def test_sizes_of_the_full_models(monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("SER_CORPORA", str(tmp_path))
    recipe = load("mitra2022/full")
    sizes = {"hubert": 1024, "wavlm": 1024}
    found = {n: on_meta(with_sizes(recipe.models[n].model, sizes)) for n in ROWS["mitra2022"]}
    assert found["mfb"] == found["distilled"] == expected_tcgru(80, normed=False) == 276_611
    assert found["single"] == expected_tcgru(1024) == 1_003_651
    # both streams are normalised apart, so there are as many numbers in their norms as in one
    assert found["fusion"] == expected_tcgru(2048) == 1_792_131
    with torch.device("meta"):
        hubert = transformers.HubertModel(transformers.HubertConfig(**HUBERT_LARGE))
        wavlm = transformers.WavLMModel(transformers.WavLMConfig(**HUBERT_LARGE))
        bert = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    assert sum(p.numel() for p in hubert.parameters()) == 315_438_720
    assert sum(p.numel() for p in wavlm.parameters()) == 315_456_704
    assert sum(p.numel() for p in bert.parameters()) == 108_891_648
    # the frames that are stored: layer 24 is the last, 1024 numbers, 50 a second
    for name in ("hubert", "wavlm"):
        assert recipe.models[name].frames.layer == 24 and recipe.models[name].model.kind == "speech"
    assert np.prod(hubert.config.conv_stride) == 320 and hubert.config.hidden_size == 1024
    assert set(recipe.allow_unknown) == {recipe.models[n].model.name for n in ("hubert", "wavlm")}


def test_the_proxy_is_named_and_is_the_acted_intensity(corpora, monkeypatch, tmp_path):
    from ser.protocol import load_protocol
    from ser.truth import labels
    from shards import corpora as readers
    from shards.pack import pack

    monkeypatch.setenv("SER_CORPORA", str(corpora))
    protocol = load_protocol(load("mitra2022/open").protocol)
    some = [u for u in readers.read("ravdess", str(corpora / "ravdess")) if u.speaker in ("01", "02")][::9]
    dataset = pack(some, str(tmp_path / "data"), 600)
    told = labels(protocol, dataset)
    keys = {u.key: u.extra["intensity"] for u in some}
    wanted = [1.0 if keys[key] == "strong" else 0.0 for key in dataset.keys(np.arange(len(dataset)))]
    assert told.dimensions[:, 1].tolist() == wanted and {0.0, 1.0} == set(wanted)
    assert np.isnan(told.dimensions[:, [0, 2]]).all()
