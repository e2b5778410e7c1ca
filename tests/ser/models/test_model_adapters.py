"""Teachers that transformers' Auto classes load wrongly: answers equal to the published code's on random checkpoints."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ser.models import build, load, save
from ser.models.config import parse_config
from ser.models.external import read
from shards.errors import UserError

SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 3], "conv_stride": [5, 4, 4], "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
}  # fmt: skip


class RegressionHead(nn.Module):
    """As on the model card of audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.final_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, features):
        x = self.dropout(features)
        x = torch.tanh(self.dense(x))
        return self.out_proj(self.dropout(x))


def released(folder, names=("arousal", "dominance", "valence")):
    """A random checkpoint of the card's EmotionModel, and the model itself."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model, Wav2Vec2PreTrainedModel

    class EmotionModel(Wav2Vec2PreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.wav2vec2 = Wav2Vec2Model(config)
            self.classifier = RegressionHead(config)
            self.post_init()

        def forward(self, values):
            hidden = self.wav2vec2(values)[0].mean(1)
            return hidden, self.classifier(hidden)

    torch.manual_seed(0)
    model = EmotionModel(Wav2Vec2Config(**SHAPE, id2label=dict(enumerate(names)))).eval()
    with torch.no_grad():
        for p in model.classifier.parameters():
            p.copy_(torch.randn_like(p))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return model


def heard(samples=7000):
    wave = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(1)) + 0.01
    batch = SimpleNamespace(
        waveform=wave, lengths=torch.tensor([samples]), features={}, feature_lengths={}, text=None
    )
    return (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt(), batch


@pytest.mark.parametrize("names", [("arousal", "dominance", "valence"), ("valence", "arousal", "dominance")])
def test_audeerings_head_and_order(names, tmp_path):
    theirs = released(tmp_path / "hub", names)
    model = build({"kind": "audeering", "name": str(tmp_path / "hub")}, 0, True).eval()
    values, batch = heard()
    with torch.no_grad():
        hidden, said = theirs(values)
        out = model(batch)
        embedding = torch.tanh(theirs.classifier.dense(hidden))
    order = [names.index(name) for name in ("valence", "arousal", "dominance")]
    torch.testing.assert_close(out.dimensions, said[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.embedding, embedding, atol=1e-5, rtol=1e-4)
    again, _ = load(save(model, tmp_path / "saved", {}))
    with torch.no_grad():
        assert torch.equal(again(batch).dimensions, out.dimensions)


def test_what_auto_classes_would_have_done(tmp_path):
    """The head of the checkpoint is not where AutoModelForAudioClassification looks: the answer would be random."""
    from transformers import AutoModelForAudioClassification

    released(tmp_path)
    _, report = AutoModelForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert any("projector" in key or "classifier" in key for key in report["missing_keys"])


def test_scale_and_order_are_declared_or_refused(tmp_path):
    theirs = released(tmp_path, ("LABEL_0", "LABEL_1", "LABEL_2"))
    config = {"kind": "audeering", "name": str(tmp_path)}
    with pytest.raises(UserError, match="LABEL_0"):
        build(config, 0, True)
    model = build(config | {"labels": ["arousal", "dominance", "valence"], "scale": [1, 7]}, 0, True).eval()
    values, batch = heard()
    with torch.no_grad():
        torch.testing.assert_close(
            model(batch).dimensions, (theirs(values)[1][:, [2, 0, 1]] - 1) / 6, atol=1e-5, rtol=1e-4
        )


def test_a_checkpoint_without_that_head_is_refused(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    Wav2Vec2Model(Wav2Vec2Config(**SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no head of audEERING's layout"):
        build(
            {"kind": "audeering", "name": str(tmp_path), "labels": ["arousal", "dominance", "valence"]},
            0,
            True,
        )


# ---- answers from files --------------------------------------------------------------------------------------------

CLASSES = ["angry", "happy", "sad", "calm"]
OWN = {"model": "speechbrain/emotion", "licence": "Apache-2.0"}


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(model, keys):
    batch = SimpleNamespace(
        keys=keys, lengths=torch.ones(len(keys), dtype=torch.int64), features={}, waveform=None, text=None
    )
    return model(batch)


def test_speechbrains_answers_in_the_protocols_classes(tmp_path):
    """Its order neu, ang, hap, sad; a class that meets another is summed, one that is dropped is left out."""
    p = [[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]
    path = table(tmp_path / "a.jsonl", [{"key": f"k{i}", "probabilities": row} for i, row in enumerate(p)])
    given = {"kind": "external", "files": path, "labels": ["neu", "ang", "hap", "sad"], **OWN}
    mapped = {"neu": "calm", "ang": "angry", "hap": "happy", "sad": "sad"}
    model = read(parse_config(given | {"classes": mapped}), CLASSES, False)
    out = asked(model, ["k1", "unheard", "k0"])
    assert out.has_input.tolist() == [True, False, True]
    torch.testing.assert_close(out.logits[2].softmax(0), torch.tensor([0.2, 0.3, 0.4, 0.1]))
    torch.testing.assert_close(out.logits[0].softmax(0), torch.tensor([0.1, 0.1, 0.1, 0.7]))
    dropped = read(parse_config(given | {"classes": mapped | {"neu": None, "hap": "angry"}}), CLASSES, False)
    said = asked(dropped, ["k0"]).logits[0].softmax(0)
    torch.testing.assert_close(said, torch.tensor([5 / 9, 0.0, 4 / 9, 0.0]), atol=1e-6, rtol=1e-4)
    with pytest.raises(UserError, match="no class of the protocol for ang, hap, neu"):
        read(parse_config(given), CLASSES, False)
    with pytest.raises(UserError, match="have 4 numbers"):
        read(parse_config(given | {"labels": ["neu"]}), CLASSES, False)
    again, _ = load(save(model, tmp_path / "m", {}))
    assert torch.equal(asked(again, ["k1", "x"]).logits, asked(model, ["k1", "x"]).logits)


def test_emotion2vecs_folder_of_embeddings(tmp_path):
    rng = np.random.default_rng(0)
    pooled, frames = rng.normal(size=8), rng.normal(size=(5, 8))
    np.save(tmp_path / "a.npy", pooled)
    np.save(tmp_path / "b.npy", frames)
    model = read(parse_config({"kind": "external", "files": str(tmp_path), **OWN}), (), False)
    out = asked(model, ["b", "a", "c"])
    np.testing.assert_allclose(out.embedding[:2].numpy(), [frames.mean(0), pooled], rtol=1e-5, atol=1e-6)
    assert out.has_input.tolist() == [True, True, False] and not out.embedding[2].any()
    assert model.hub_names == ("speechbrain/emotion",)


def test_dimensions_on_another_scale(tmp_path):
    path = table(tmp_path / "a.jsonl", [{"key": "k", "dimensions": [4.0, 7.0, 1.0]}])
    given = {"kind": "external", "files": path, "dimensions": ["arousal", "dominance", "valence"], **OWN}
    with pytest.raises(UserError, match="need their `scale`"):
        parse_config(given)
    with pytest.raises(UserError, match=r"not on \[0, 1\]"):
        read(parse_config(given | {"scale": [0, 1]}), (), True)
    out = asked(read(parse_config(given | {"scale": [1, 7]}), (), True), ["k"])
    torch.testing.assert_close(out.dimensions, torch.tensor([[0.0, 0.5, 1.0]]))
