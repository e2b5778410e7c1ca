"""Configurations: what is refused, and that what is written parses back."""

import json

import pytest

from ser.models import build, parse_config
from shards.errors import UserError


def test_round_trip_through_json(tiny, kind):
    config = parse_config(tiny.configs[kind])
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert parse_config(config) is config


@pytest.mark.parametrize(
    "config, word",
    [
        ({"kind": "conv", "widht": 3}, "widht"),
        ({"kind": "transformer"}, "kind"),
        ({}, "kind"),
        ({"kind": "conv", "kernel": 4}, "odd"),
        ({"kind": "conv", "strides": []}, "first convolution"),
        ({"kind": "conv", "skip": True}, "strides must all be 1"),
        ({"kind": "conv", "mixer": "transformer", "width": 30}, "must divide"),
        ({"kind": "conv", "dropout": 1.0}, "dropout"),
        ({"kind": "acoustic"}, "either name"),
        ({"kind": "acoustic", "name": "a", "config": {"model_type": "hubert"}}, "either name"),
        ({"kind": "acoustic", "config": {}}, "model_type"),
        ({"kind": "acoustic", "config": {"model_type": "hubert"}, "revision": "x"}, "revision"),
        ({"kind": "acoustic", "name": "a", "trust_remote_code": True}, "trust_remote_code"),
        ({"kind": "fused", "components": {"a": None}}, "two components"),
        ({"kind": "fused", "components": {"a": None, "b.c": None}}, "b.c"),
        ({"kind": "fused", "components": {"a": None, "train": None}}, "train"),
        (
            {"kind": "fused", "mode": "product", "frozen": False, "components": {"a": None, "b": None}},
            "frozen",
        ),
        ({"kind": "fused", "components": {"a": {"kind": "conv", "oops": 1}, "b": None}}, "oops"),
        ({"kind": "fused", "components": {"a": None, "b": None}, "dimension_weights": {"a": 1.0}}, "exactly"),
    ],
)
def test_mistakes_are_named(config, word):
    with pytest.raises(UserError, match="configuration is wrong") as caught:
        parse_config(config, where="models.student")
    assert word in str(caught.value) and caught.value.where == "models.student"


def test_build_refuses(tiny):
    for config, options, word in (
        (tiny.configs["conv"], {"classes": 0, "dimensions": False}, "classes, dimensions or both"),
        (tiny.configs["conv"], {"components": {"a": None}}, "has no components"),
        ({"kind": "acoustic", "config": {"model_type": "hubretto"}}, {}, "knows no model_type"),
        ({"kind": "acoustic", "config": {"model_type": "bert"}}, {}, "does not read waveforms"),
        (tiny.configs["wavlm-layer"] | {"attention": "sdpa"}, {}, "cannot be built"),
        (tiny.configs["product"], {}, "must be a trained model"),
        (tiny.configs["concat"], {"components": {"smell": None}}, "not in the fused"),
    ):
        with pytest.raises(UserError, match=word):
            build(config, **{"classes": 4, "dimensions": True, **options})


def test_heads_are_optional(tiny):
    batch = tiny.batch()
    assert build(tiny.configs["conv"], 0, True)(batch).logits is None
    assert build(tiny.configs["conv"], 3, False)(batch).dimensions is None
