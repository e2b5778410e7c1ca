"""Tiny models of every kind, and batches with rows of different length."""

from types import SimpleNamespace

import pytest
import torch

from ser.models import SERModel, build

TEXTS = [
    "I am so happy today!",
    "leave me alone",
    "it is raining again",
    "I am alone today",
    "so happy, so happy",
]
BACKBONE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 4, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def backbone(model_type: str, **more) -> dict:
    return {"model_type": model_type, **BACKBONE, **more}


LINGUISTIC = {"kind": "linguistic", "config": BERT}
PROSODIC = {"kind": "prosodic", "width": 12, "strides": [2, 2], "blocks": 1, "embedding": 10}
ACOUSTIC = {"kind": "acoustic", "config": backbone("hubert", **LAYER)}
CONV = {"kind": "conv", "features": "stored", "bands": 8, "width": 12, "blocks": 2, "embedding": 10}
TEAM = {"text": LINGUISTIC, "voice": PROSODIC, "sound": ACOUSTIC}

CONFIGS = {
    "linguistic": LINGUISTIC,
    "linguistic-bpe-attentive": {**LINGUISTIC, "tokenizer": "bpe", "pooling": "attentive", "vocabulary": 60},
    "linguistic-cls": {**LINGUISTIC, "pooling": "cls", "freeze": "embeddings"},
    "prosodic": PROSODIC,
    "prosodic-utterance": {**PROSODIC, "normalise": "utterance", "pooling": "mean"},
    "prosodic-functionals": {**PROSODIC, "functionals": True},
    "hubert-layer": ACOUSTIC,
    "hubert-group": {"kind": "acoustic", "config": backbone("hubert"), "pooling": "attentive"},
    "wav2vec2-layer": {"kind": "acoustic", "config": backbone("wav2vec2", **LAYER), "layers": "last"},
    "wav2vec2-group": {"kind": "acoustic", "config": backbone("wav2vec2"), "normalise": False},
    "wavlm-layer": {"kind": "acoustic", "config": backbone("wavlm", **LAYER), "freeze": "encoder"},
    "wavlm-group": {"kind": "acoustic", "config": backbone("wavlm"), "embedding": 6},
    "encoder": {"kind": "encoder", "config": backbone("hubert"), "num_layers": 1, "dimension_activation": "sigmoid"},
    "conv": CONV,
    "conv-none": {**CONV, "normalise": "none", "pooling": "mean", "embedding": None},
    "conv-functionals": {**CONV, "functionals": True, "pooling": "mean"},
    "conv-gru": {**CONV, "mixer": "gru", "pooling": "last"},
    "conv-bigru": {**CONV, "mixer": "bigru", "mixer_layers": 2},
    "conv-transformer": {**CONV, "mixer": "transformer", "mixer_layers": 2},
    "tc-gru": {**CONV, "strides": [1], "kernel": 3, "blocks": 0, "skip": True, "mixer": "gru", "mixer_layers": 2, "pooling": "last"},
    "product": {"kind": "fused", "mode": "product", "components": dict.fromkeys(TEAM), "dimension_weights": "learned"},
    "concat": {"kind": "fused", "mode": "concat", "components": TEAM, "frozen": False, "modality_dropout": 0.3},
    "cross": {
        "kind": "fused", "mode": "cross", "components": TEAM, "frozen": False, "embedding": 12,
        "cross": {"layers": 2, "heads": 2}, "modality_dropout": 0.3,
    },
    "gated": {"kind": "fused", "mode": "gated", "components": TEAM, "frozen": False, "embedding": 12},
}  # fmt: skip


def make(name: str, seed: int = 0) -> SERModel:
    """The tiny model `name` with 4 classes and dimensions, in training mode."""
    torch.manual_seed(seed)
    config = CONFIGS[name]
    components = {}
    if config.get("mode") == "product":
        components = {part: build(c, 4, True, texts=TEXTS) for part, c in TEAM.items()}
    model = build(config, 4, True, texts=TEXTS, components=components)
    for part in model.modules():
        if getattr(part, "mode", None) == "fitted":
            size = part.mean.shape[0]
            part.fit(torch.randn(size), torch.rand(size) + 0.5)
    with torch.no_grad():
        # Fresh biases are 0 and would hide padding that leaks through them.
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


SAMPLES = (5000, 2311, 700, 90, 0)
SENTENCES = ("I am so happy today", "leave me!", "alone", "unheard words again and again", None)


def make_batch(dtype: torch.dtype = torch.float32, seed: int = 1, rubbish: bool = True) -> SimpleNamespace:
    """Five rows, the last without any input; what lies behind a row's end is rubbish on purpose."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(SAMPLES)
    frames = (lengths + 159) // 160
    fill = float("nan") if rubbish else 0.0

    def ragged(counts, *shape):
        x = torch.randn(len(counts), int(counts.max()), *shape, generator=g, dtype=torch.float64).to(dtype)
        for row, n in zip(x, counts):
            row[n:] = fill
        return x

    return SimpleNamespace(
        waveform=ragged(lengths),
        lengths=lengths,
        features={"mel": ragged(frames, 8), "prosody": ragged(frames, 25)},
        feature_lengths={"mel": frames, "prosody": frames},
        text=list(SENTENCES),
    )


def one_row(batch: SimpleNamespace, row: int) -> SimpleNamespace:
    """A row alone, without padding."""
    return SimpleNamespace(
        waveform=batch.waveform[row : row + 1, : batch.lengths[row]],
        lengths=batch.lengths[row : row + 1],
        features={n: x[row : row + 1, : batch.feature_lengths[n][row]] for n, x in batch.features.items()},
        feature_lengths={n: x[row : row + 1] for n, x in batch.feature_lengths.items()},
        text=batch.text[row : row + 1],
    )


@pytest.fixture(params=list(CONFIGS))
def kind(request) -> str:
    """Every tiny model by name."""
    return request.param


@pytest.fixture
def tiny():
    """Everything above, for tests to use without importing a conftest."""
    return SimpleNamespace(
        make=make,
        batch=make_batch,
        one_row=one_row,
        configs=CONFIGS,
        texts=TEXTS,
        backbone=backbone,
        layer=LAYER,
    )


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
