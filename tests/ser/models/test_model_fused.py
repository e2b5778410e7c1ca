"""Fusion: Bayes' product, missing modalities, frozen components, modality dropout."""

import itertools
from collections.abc import Collection

import numpy as np
import pytest
import torch

from ser.models import build, load, save
from ser.models.cross import Attend
from ser.models.fused import DimensionMix
from ser.objectives import product_of_experts
from shards.errors import UserError

PART = {"kind": "prosodic", "width": 8, "strides": [2], "blocks": 0}


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
    for kind in ("product", "concat", "gated", "cross"):
        model, batch = tiny.make(kind).eval(), tiny.batch()
        batch.text = [None] * 5
        with torch.no_grad():
            before = model(batch)
            for p in model.components["text"].parameters():
                p.add_(torch.randn_like(p))
            if kind == "cross":
                for part in (model.cross.maps[0], model.gate.maps[0], model.gate.scores[0]):
                    part.bias.add_(3.0)
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


@pytest.mark.parametrize("mode", ["concat", "gated", "cross"])
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


EVERY = ("text", "voice", "sound")
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(EVERY, n)]


def keep_only(batch, kept: Collection[str], whole: bool):
    """The batch with only some modalities: their columns gone altogether, or empty in each row."""
    batch.text = batch.text if "text" in kept else None if whole else [None] * 5
    if "sound" not in kept:
        batch.waveform = None if whole else batch.waveform
        batch.lengths = batch.lengths if whole else torch.zeros_like(batch.lengths)
    if "voice" not in kept:
        if whole:
            del batch.features["prosody"], batch.feature_lengths["prosody"]
        else:
            batch.feature_lengths["prosody"] = torch.zeros_like(batch.feature_lengths["prosody"])
    return batch


@pytest.mark.parametrize("mode", ["product", "concat", "gated", "cross"])
@pytest.mark.parametrize("kept", SUBSETS, ids="+".join)
def test_any_modality_may_be_missing(tiny, mode, kept):
    """A column that is not there answers as one that is empty in every row, and rows with anything left are answered."""
    model = tiny.make(mode).eval()
    with torch.no_grad():
        gone, empty = (model(keep_only(tiny.batch(), kept, whole)) for whole in (True, False))
    assert gone.has_input[:4].all() and gone.has_input[4] == empty.has_input[4]
    torch.testing.assert_close(gone.logits[:4], empty.logits[:4])
    torch.testing.assert_close(gone.dimensions[:4], empty.dimensions[:4])
    assert gone.logits.isfinite().all()


def test_cross_attention_hears_the_other_modality(tiny):
    """The state of one modality depends on what the others say, and on nothing behind their ends."""
    model, batch = tiny.make("cross").eval(), tiny.batch()
    pooled = {}
    model.gate.register_forward_hook(lambda _, inputs, __: pooled.update(now=inputs[0]))
    with torch.no_grad():
        model(batch)
        before = [x.clone() for x in pooled["now"]]
        batch.text[0] = "so happy, so happy"
        model(batch)
    voice = EVERY.index("voice")
    assert not torch.allclose(before[voice][0], pooled["now"][voice][0])
    assert torch.equal(before[voice][1:4], pooled["now"][voice][1:4])


def test_attention_equals_the_formula(tiny):
    """softmax(q k / sqrt d) v over the keys that are not masked, in float64 numpy."""
    torch.manual_seed(0)
    layer = Attend(8, heads=2, widen=2, dropout=0.0).double()
    x, others = torch.randn(1, 3, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, False]])
    with torch.no_grad():
        q = layer.query(layer.query_norm(x))[0].numpy()
        k, v = (part[0].numpy() for part in layer.keys(layer.key_norm(others)).chunk(2, -1))
        heard = np.zeros((3, 8))
        for head in (slice(0, 4), slice(4, 8)):
            scores = np.exp(q[:, head] @ k[[0, 1, 3], head].T / 2.0)
            heard[:, head] = scores / scores.sum(1, keepdims=True) @ v[[0, 1, 3], head]
        y = x + layer.out(torch.from_numpy(heard))
        y = y + layer.back(torch.nn.functional.gelu(layer.forth(layer.norm(y))))
        torch.testing.assert_close(layer(x, others, mask), y)


def test_cross_refuses_what_has_no_frames(tiny):
    config = {"kind": "fused", "mode": "cross", "components": {"pair": None, "mel": tiny.configs["conv"]}}
    with pytest.raises(UserError, match="no frames or tokens"):
        build(config, 4, True, components={"pair": tiny.make("concat")})
    for bad in ({"cross": {"heads": 3}, "mode": "cross"}, {"cross": {"layers": 1}, "mode": "gated"}):
        with pytest.raises(UserError, match=r"heads 3|says nothing"):
            build({"kind": "fused", "components": {"a": PART, "b": PART}, **bad}, 4, True)


def test_every_trained_parameter_of_a_cross_has_a_gradient(tiny):
    model = tiny.make("cross").train()
    model.config = model.config.model_copy(update={"modality_dropout": 0.0})
    out = model(tiny.batch())
    (out.logits.sum() + out.dimensions.sum()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
