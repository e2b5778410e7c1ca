"""Fusion: Bayes' product, missing modalities, frozen components, modality dropout."""

import pytest
import torch

from ser.models import build, load, save
from ser.models.fused import DimensionMix
from ser.objectives import product_of_experts
from shards.errors import UserError


def test_product_multiplies_the_experts_that_answer(tiny):
    model, batch = tiny.make("product").eval(), tiny.batch()
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.fit_prior(prior)
    batch.text[1] = None
    with torch.no_grad():
        model.dimension_mix.scores.zero_()
        out = model(batch)
        parts = {name: part(batch) for name, part in model.components.items()}
    for row in range(4):
        voices = [p for n, p in parts.items() if n != "text" or row != 1]
        log_p = sum(p.logits[row].log_softmax(-1) for p in voices) - (len(voices) - 1) * prior.log()
        assert torch.allclose(out.logits[row], log_p.log_softmax(-1), atol=1e-5)
        assert torch.allclose(
            out.dimensions[row], sum(p.dimensions[row] for p in voices) / len(voices), atol=1e-5
        )
    assert out.embedding.shape == (5, sum(p.embedding_size for p in model.components.values()))
    assert model.inputs == {"text", "prosody", "waveform"}


def test_product_of_one_voice_is_that_voice(tiny):
    logits, present = torch.randn(2, 3, 4), torch.tensor([[True] * 3, [False] * 3])
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    assert torch.allclose(product_of_experts(logits, present, prior), logits[0].log_softmax(-1), atol=1e-6)


def test_product_trains_nothing_but_its_dimension_weights(tiny):
    model = tiny.make("product").train()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["dimension_mix.scores"]
    assert not any(part.training for part in model.components.modules())


def test_given_dimension_weights():
    mix = DimensionMix(["a", "b"], {"a": 3.0, "b": (1.0, 0.0, 3.0)})
    values = torch.stack([torch.zeros(1, 3), torch.ones(1, 3)])
    both = torch.ones(2, 1, dtype=torch.bool)
    assert torch.allclose(mix(values, both), torch.tensor([[0.25, 0.0, 0.5]]))
    assert torch.allclose(mix(values, torch.tensor([[False], [True]])), torch.tensor([[1.0, 0.0, 1.0]]))
    with pytest.raises(UserError, match="not all 0"):
        DimensionMix(["a", "b"], {"a": 0.0, "b": 0.0})


def test_product_refuses_what_does_not_fit(tiny):
    model = tiny.make("product")
    for prior in ([1.0, 1, 1], [0.5, 0.5, 0, 0]):
        with pytest.raises(UserError, match="prior of 4 positive"):
            model.fit_prior(torch.tensor(prior))
    parts = dict(model.components.items())
    parts["voice"] = build(tiny.configs["prosodic"], 3, True)
    with pytest.raises(UserError, match="differ from 4"):
        build(tiny.configs["product"], 4, True, components=parts)
    parts = {name: build(tiny.configs["prosodic"], 4, False) for name in parts}
    with pytest.raises(UserError, match="answers dimensions"):
        build(tiny.configs["product"], 4, True, components=parts)


def test_a_missing_modality_may_hold_anything(tiny):
    """Rows without text must not depend on what the text model says of them."""
    for kind in ("product", "concat", "gated"):
        model, batch = tiny.make(kind).eval(), tiny.batch()
        batch.text = [None] * 5
        with torch.no_grad():
            before = model(batch)
            for p in model.components["text"].parameters():
                p.add_(torch.randn_like(p))
            if kind == "gated":
                for part in (model.gate.maps[0], model.gate.scores[0]):
                    part.bias.add_(3.0)
            after = model(batch)
        assert torch.equal(before.logits, after.logits) and torch.equal(before.dimensions, after.dimensions)


def test_gate_weights_sum_to_one_over_what_is_there(tiny):
    model = tiny.make("gated").eval()
    with torch.no_grad():
        for layer in model.gate.maps:
            layer.weight.zero_()
            layer.bias.fill_(100.0)
    present = torch.tensor([[True, True, False], [True, False, False], [False, True, False]])
    sizes = [layer.in_features for layer in model.gate.maps]
    out = model.gate([torch.randn(3, n) for n in sizes], present)
    assert torch.allclose(out, torch.tensor([1.0, 1.0, 0.0])[:, None].expand(3, 12), atol=1e-6)


def test_modality_dropout_spares_the_last(tiny):
    model = tiny.make("concat").train()
    torch.manual_seed(0)
    present = torch.rand(3, 2000) > 0.3
    kept = model._dropped(present)
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(0), present.any(0))
    many = present.sum(0) == 3
    assert 0.6 < kept[:, many].float().mean() < 0.8
    assert torch.equal(model.eval()._dropped(present), present)


@pytest.mark.parametrize("mode", ["concat", "gated"])
def test_frozen_components_stay_still(tiny, mode):
    team = tiny.make("product").components
    model = build(
        {"kind": "fused", "mode": mode, "components": dict.fromkeys(team)},
        4,
        True,
        components=dict(team.items()),
    ).train()
    assert not any(part.training for part in model.components.modules())
    before = {n: p.clone() for n, p in model.components.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(tiny.batch()).logits.square().sum().backward()
    optimizer.step()
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.components.named_parameters())


def test_fused_of_fused_stands_alone(tiny, tmp_path):
    inner = tiny.make("concat")
    config = {"kind": "fused", "mode": "gated", "components": {"pair": None, "mel": tiny.configs["conv"]}}
    model = build(config, 4, True, components={"pair": inner}).eval()
    assert model.inputs == {"text", "prosody", "waveform", "mel"}
    folder = save(model, tmp_path / "m", {})
    assert (folder / "pair.text.tokenizer.json").exists()
    again, _ = load(folder)
    with torch.no_grad():
        assert torch.equal(again(tiny.batch()).logits, model(tiny.batch()).logits)


def test_hub_names_are_those_of_the_components(tiny):
    model = tiny.make("concat")
    text, sound = model.components["text"], model.components["sound"]
    text.config = text.config.model_copy(update={"name": "somebody/bert", "config": None})
    sound.config = sound.config.model_copy(update={"name": "somebody/hubert", "config": None})
    assert model.hub_names == ("somebody/bert", "somebody/hubert")
