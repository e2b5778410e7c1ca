"""Shapes of well-known checkpoints, so that a recipe can be checked and planned without a network or their weights.

Each is the `config.json` of the hub as far as it sets sizes; tests assert the parameter counts that are published.
"""

from typing import Any

_LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_BERT_LARGE = {"model_type": "bert", **_LARGE, "vocab_size": 30522}

SHAPES: dict[str, dict[str, Any]] = {
    "facebook/hubert-base-ls960": {"model_type": "hubert"},
    "facebook/hubert-large-ll60k": {"model_type": "hubert", **_LAYER, **_LARGE},
    "facebook/hubert-xlarge-ll60k": {
        "model_type": "hubert", **_LAYER,
        "hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120,
    },
    "facebook/wav2vec2-base": {"model_type": "wav2vec2"},
    "microsoft/wavlm-large": {"model_type": "wavlm", **_LAYER, "conv_bias": False, **_LARGE},
    "ntu-spml/distilhubert": {
        "model_type": "hubert", "num_hidden_layers": 2, "feat_proj_layer_norm": False, "conv_pos_batch_norm": False,
    },
    "google-bert/bert-base-uncased": {"model_type": "bert", "vocab_size": 30522},
    "bert-base-uncased": {"model_type": "bert", "vocab_size": 30522},
    "distilbert-base-uncased": {"model_type": "distilbert", "vocab_size": 30522},
    "google-bert/bert-large-uncased": _BERT_LARGE,
}  # fmt: skip
