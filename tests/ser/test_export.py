"""Exports: what other programs answer is what the model answers, and the card says under which terms."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ser.export import choose, export
from ser.export.onnx import Graph, MelGraph
from ser.export.onnx import write as write_onnx
from ser.features.mel import LogMel
from ser.models import build, load, save
from ser.predict import predict
from shards.errors import UserError
from tests import tiny

LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
META = {
    "name": "student", "run": "toy", "role": "student", "fold": "fixed", "seed": 0, "protocol": "tiny", "strictness": "STRICT",
    "classes": list(tiny.CLASSES), "licences": ["CC0"], "inherited": ["somebody/teacher: CC BY-NC-SA 4.0"],
    "exposure": {"fit": ["tiny/s0"], "select": ["tiny/s1"], "unknown": ["somebody/teacher"]},
}  # fmt: skip


def hubert(model_type: str = "hubert", layer: bool = False, **more) -> dict:
    shape = {**tiny.HUBERT["config"], "model_type": model_type, **(LAYER if layer else {})}
    return {**tiny.HUBERT, "config": shape, **more}


def saved(folder, config, dimensions=True, classes=4):
    torch.manual_seed(1)
    model = build(config, classes, dimensions).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return str(save(model, folder / "model", META)), model


def ask(model, wave, lengths):
    batch = SimpleNamespace(waveform=wave, lengths=lengths, features={}, feature_lengths={}, text=None)
    with torch.no_grad():
        return model(batch)


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm"])
@pytest.mark.parametrize("layer", [False, True], ids=["group", "layer"])
def test_transformers_answers_as_the_model_does(kind, layer, tmp_path):
    """Through AutoModelForAudioClassification and its feature extractor; padded batches where the architecture allows."""
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    folder, model = saved(tmp_path, hubert(kind, layer, layers="last" if layer else "weighted"))
    out = export(folder, "hf", str(tmp_path / "hf"))
    stock = AutoModelForAudioClassification.from_pretrained(out).eval()
    extract = AutoFeatureExtractor.from_pretrained(out)
    assert [stock.config.id2label[i] for i in range(4)] == list(tiny.CLASSES)
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(n).astype(np.float32) for n in (12000, 9000, 7777)]
    for wave in waves:
        given = extract(wave, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            said = stock(**given).logits
        mine = ask(model, torch.from_numpy(wave)[None], torch.tensor([len(wave)])).logits
        torch.testing.assert_close(said, mine, atol=1e-5, rtol=1e-4)
    if layer:
        given = extract(waves, sampling_rate=16000, return_tensors="pt", padding=True)
        with torch.no_grad():
            said = stock(**given).logits
        rows = [ask(model, torch.from_numpy(w)[None], torch.tensor([len(w)])).logits[0] for w in waves]
        torch.testing.assert_close(said, torch.stack(rows), atol=1e-4, rtol=1e-3)
    card = (out / "README.md").read_text()
    assert ("Group norm" in card) != layer and "Classes alone" in card


def test_dimensions_alone_have_their_own_head(tmp_path):
    from transformers import AutoModelForAudioClassification

    folder, model = saved(tmp_path, hubert(layer=True, layers="last"), classes=0)
    stock = AutoModelForAudioClassification.from_pretrained(export(folder, "hf", str(tmp_path / "hf"))).eval()
    assert list(stock.config.id2label.values()) == ["valence", "arousal", "dominance"]
    wave = 0.1 * torch.randn(1, 9000)
    with torch.no_grad():
        centred = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        said = stock(centred).logits
    torch.testing.assert_close(said, ask(model, wave, torch.tensor([9000])).dimensions, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (tiny.CONV, "no architecture of transformers"),
        (hubert(pooling="attentive"), "pooling attentive"),
        (hubert(embedding=8), "embedding layer"),
        (hubert(layer=True, layers="weighted"), "before the last norm"),
    ],
)
def test_what_is_not_stock_is_refused(config, why, tmp_path):
    with pytest.raises(UserError, match=why) as caught:
        export(saved(tmp_path, config)[0], "hf", str(tmp_path / "hf"))
    assert "--to onnx" in str(caught.value)


def test_the_mel_of_the_graph_is_the_models(tmp_path):
    torch.manual_seed(0)
    wave, lengths = torch.randn(3, 9000), torch.tensor([9000, 400, 5001])
    for options in ({"bands": 20}, {"bands": 32, "low": 50.0, "high": 7000.0, "floor": 1e-6}):
        frames, counts = LogMel(**options)(wave, lengths)
        mine, mine_counts = MelGraph(options)(wave, lengths)
        assert torch.equal(counts, mine_counts)
        torch.testing.assert_close(mine[:, : frames.shape[1]], frames, atol=2e-4, rtol=1e-4)


DISTIL = {"num_hidden_layers": 2, "feat_proj_layer_norm": False, "conv_pos_batch_norm": False}
TCGRU = {
    "kind": "tcgru",
    "streams": {"mel": {"stack": 2, "normalise": "fitted"}},
    "bands": 20,
    "width": 8,
    "embedding": 8,
}
ONNX = {
    "conv": {**tiny.CONV, "statistics": True, "normalise": "level", "pooling": "mean_max"},
    "conv-gru": {**tiny.CONV, "mixer": "gru", "pooling": "last"},
    "conv-bigru": {**tiny.CONV, "mixer": "bigru", "functionals": True},
    "conv-transformer": {**tiny.CONV, "mixer": "transformer", "heads": 2},
    "conv-skip": {**tiny.CONV, "strides": [1], "skip": True, "mixer": "gru", "normalise": "utterance"},
    "tcgru": TCGRU,
    "tcgru-plain": {**TCGRU, "streams": {"mel": {"layer_norm": False}}, "bypass": False, "embedding_activation": "tanh"},
    "hubert": hubert(),
    "hubert-layer": hubert(layer=True, pooling="attentive", embedding=8, layers="weighted"),
    "hubert-encoder": hubert(kind="encoder", embedding=8),
    "distilhubert": hubert(kind="encoder", **{"config": {**tiny.HUBERT["config"], **DISTIL}}),
    "wav2vec2": hubert("wav2vec2"),
    "wavlm": hubert("wavlm", layer=True),
    "two-ears": {
        "kind": "fused", "mode": "gated", "frozen": False, "embedding": 8, "components": {"a": tiny.CONV, "b": hubert()},
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONNX)
def test_onnxruntime_answers_as_the_model_does(kind, tmp_path):
    """Other batch sizes and lengths than those it was exported with."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, model = saved(tmp_path, ONNX[kind])
    out = export(folder, "onnx", str(tmp_path / "onnx"))
    session = runtime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["waveform", "lengths"]
    assert (
        [o.name for o in session.get_outputs()] == ["logits", "dimensions", "embedding"] == Graph(model).names
    )
    g = torch.Generator().manual_seed(3)
    for rows, samples in ((1, 4001), (5, 12345), (2, 48000)):
        wave = 0.1 * torch.randn(rows, samples, generator=g)
        lengths = torch.randint(3000, samples + 1, (rows,), generator=g)
        lengths[-1] = samples
        mine = ask(model, wave, lengths)
        said = session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})
        for name, theirs in zip(("logits", "dimensions", "embedding"), said):
            torch.testing.assert_close(torch.from_numpy(theirs), getattr(mine, name), atol=1e-4, rtol=1e-3)


FRAMES = {"kind": "tcgru", "streams": {"ear": {"size": 16}}, "width": 8, "embedding": 8}
PROBE = {"kind": "probe", "encoder": "ear", "states": 3, "size": 16, "layer": 1, "embedding": 8}
FILES = {"kind": "external", "files": "answers.jsonl", "model": "them/theirs", "licence": "MIT"}
REFUSED = {
    "text": (tiny.BERT, "reads text beside audio"),
    "prosody": ({"kind": "prosodic", "width": 8, "blocks": 1}, "reads prosody beside audio"),
    "probe": (PROBE, "a probe reads stored hidden states of its encoder"),
    "files": (FILES, "its answers were read from files"),
    "frames": (FRAMES, "reads frames of the encoder ear, which is no part of it"),
    "speech": ({**tiny.HUBERT, "kind": "speech"}, "an encoder of frames has no answer"),
    "fused": (
        {"kind": "fused", "frozen": False, "embedding": 8, "components": {"a": tiny.CONV, "b": tiny.BERT}},
        "reads text beside audio",
    ),
    "two-mels": (
        {"kind": "fused", "frozen": False, "embedding": 8, "components": {"a": tiny.CONV, "b": {**tiny.CONV, "bands": 32}}},
        "log-mels of different kinds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_graph_of_audio_is_refused_by_name(kind, tmp_path):
    pytest.importorskip("onnxscript")
    config, why = REFUSED[kind]
    model = build(config, 0 if kind == "speech" else 4, kind != "speech", texts=["bad awful"])
    meta = META | ({"encoders": {"ear": {}}} if kind == "frames" else {})
    with pytest.raises(UserError, match=why) as caught:
        write_onnx(model, meta, tmp_path)
    assert "ser export --to onnx" in str(caught.value) and not list(tmp_path.glob("*.onnx"))


def test_missing_libraries_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="needs onnxscript") as caught:
        export(saved(tmp_path, tiny.CONV)[0], "onnx", str(tmp_path / "o"))
    assert "ser-distill[export]" in str(caught.value)


def test_the_own_form_predicts_and_its_card_tells_the_terms(tmp_path):
    import soundfile as sf

    folder, _ = saved(tmp_path, tiny.CONV)
    out = export(folder, "safetensors", str(tmp_path / "own"))
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    sf.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(9000), 16000)
    assert list(predict(str(out), [str(tmp_path / "a.wav")])) == list(
        predict(folder, [str(tmp_path / "a.wav")])
    )
    assert load(out)[1] == META
    card = (out / "README.md").read_text()
    assert "somebody/teacher: CC BY-NC-SA 4.0" in card and "Non-commercial" in card and "is unknown" in card


def test_a_run_directory_gives_its_student(tmp_path):
    for name, role in (("teacher", "teacher"), ("small", "student")):
        folder = tmp_path / "folds" / "fixed" / name / "seed-0"
        save(build(tiny.CONV, 4, True), folder / "model", {**META, "name": name, "role": role})
    with pytest.raises(UserError, match="no saved model"):
        choose(str(tmp_path), None)
    (tmp_path / "recipe.yaml").write_text("name: toy\n")
    assert choose(str(tmp_path), None).parts[-3] == "small"
    assert choose(str(tmp_path), "teacher").parts[-3] == "teacher"
    with pytest.raises(UserError, match="no finished model 'x'"):
        choose(str(tmp_path), "x")
    out = export(str(tmp_path), "safetensors")
    assert out.parent == tmp_path / "folds" / "fixed" / "small" / "seed-0"
    facts = json.loads((out / "model.json").read_text())
    assert facts["meta"]["name"] == "small"
    with pytest.raises(UserError, match="overwrite"):
        export(str(tmp_path), "safetensors", str(out.parent / "model"))
    with pytest.raises(UserError, match="no form 'wav'"):
        export(str(tmp_path), "wav")
