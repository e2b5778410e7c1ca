"""Pretrained checkpoints through the real from_pretrained path, from folders that the test writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ser.models import build, count_parameters, load, save
from ser.models.tokens import built
from shards.errors import UserError

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def hubert(tiny, tmp_path):
    """A tiny HuBERT checkpoint with weights in half precision, as some hubs have them."""

    def write(name="hubert", preprocessor=None, **settings):
        shape = transformers.HubertConfig.from_dict(tiny.backbone("hubert", layerdrop=0.1, **settings))
        torch.manual_seed(7)
        model = transformers.HubertModel(shape)
        model.save_pretrained(tmp_path / name)
        if preprocessor is not None:
            (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return str(tmp_path / name), model

    return write


@pytest.fixture
def bert(tiny, tmp_path):
    """A tiny BERT checkpoint, its tokenizer a stock fast one."""
    shape = transformers.BertConfig.from_dict(tiny.configs["linguistic"]["config"] | {"vocab_size": 40})
    torch.manual_seed(8)
    model = transformers.BertModel(shape).eval()
    model.save_pretrained(tmp_path / "bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "i",
        "am",
        "so",
        "happy",
        "today",
        "leave",
        "me",
        "alone",
        "it",
        "is",
        "rain",
        "##ing",
        "again",
        "!",
        ",",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert"), model, tokenizer


def test_acoustic_takes_the_checkpoint_weights(tiny, hubert):
    path, reference = hubert(**tiny.layer)
    model = build({"kind": "acoustic", "name": path, "layers": "last", "normalise": False}, 4, True).eval()
    reference.eval()
    batch = tiny.batch(rubbish=False)
    with torch.no_grad():
        for row in range(3):
            alone = tiny.one_row(batch, row)
            expected = reference(alone.waveform).last_hidden_state.mean(1)
            assert torch.allclose(model(alone).embedding, expected, atol=1e-6)
    assert model.hub_names == (path,)
    assert model.encoder.config.layerdrop == 0


def test_group_norm_checkpoint_masked_and_plain(tiny, hubert):
    """Masked: the padded row equals the stock model on the row alone. Plain: it does not, and says so."""
    path, reference = hubert()
    reference.eval()
    batch = tiny.batch(rubbish=False)
    config = {"kind": "acoustic", "name": path, "layers": "last", "normalise": False}
    masked, plain = build(config, 4, True).eval(), build({**config, "group_norm": "plain"}, 4, True).eval()
    assert not masked.needs_equal_lengths and plain.needs_equal_lengths
    with torch.no_grad():
        stock = reference(tiny.one_row(batch, 1).waveform).last_hidden_state.mean(1)[0]
        assert torch.allclose(masked(batch).embedding[1], stock, atol=1e-5)
        assert not torch.allclose(plain(batch).embedding[1], stock, atol=1e-3)
        assert torch.allclose(plain(tiny.one_row(batch, 1)).embedding[0], stock, atol=1e-5)


def test_layer_mix_starts_even_and_layer_pooled_matches(tiny, hubert):
    path, _ = hubert(**tiny.layer)
    model = build({"kind": "acoustic", "name": path}, 4, True).eval()
    batch = tiny.batch()
    with torch.no_grad():
        layers = model.layer_pooled(batch)
        assert layers.shape == (5, 3, 16)
        assert torch.allclose(model(batch).embedding[:4], layers.mean(1)[:4], atol=1e-6)


@pytest.mark.parametrize(
    "preprocessor, expected", [(None, True), ({"do_normalize": False}, False), ({}, True)]
)
def test_normalisation_follows_the_checkpoint(tiny, hubert, preprocessor, expected):
    path, _ = hubert(preprocessor=preprocessor)
    model = build({"kind": "acoustic", "name": path}, 4, True)
    assert model.normalise is expected
    assert build({"kind": "acoustic", "name": path, "normalise": False}, 4, True).normalise is False


def test_normalisation_hears_no_gain(tiny, hubert):
    path, _ = hubert()
    model = build({"kind": "acoustic", "name": path}, 4, True).double().eval()
    batch = tiny.batch(torch.float64)
    with torch.no_grad():
        before = model(batch).logits
        batch.waveform = batch.waveform * 7 + 0.3
        assert torch.allclose(model(batch).logits, before, atol=1e-4)


def test_first_layers_only(tiny, hubert):
    path, reference = hubert(**tiny.layer)
    model = build({"kind": "encoder", "name": path, "num_layers": 1}, 4, False)
    assert len(model.encoder.encoder.layers) == 1
    ours, theirs = model.encoder.encoder.layers[0].state_dict(), reference.encoder.layers[0].state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    with pytest.raises(UserError, match="more than the 2"):
        build({"kind": "encoder", "name": path, "num_layers": 3}, 4, False)


def test_half_precision_checkpoints_train_in_float32(tiny, hubert, tmp_path):
    path, reference = hubert()
    reference.to(torch.bfloat16).save_pretrained(path)
    assert build({"kind": "acoustic", "name": path}, 4, True).dtype == torch.float32


def test_missing_weights_are_refused(tiny, hubert):
    from safetensors.torch import load_file, save_file

    path, _ = hubert()
    tensors = load_file(path + "/model.safetensors")
    dropped = next(k for k in tensors if "k_proj.weight" in k)
    save_file(
        {k: v for k, v in tensors.items() if k != dropped}, path + "/model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="lacks 1 of the model's weights"):
        build({"kind": "acoustic", "name": path}, 4, True)


def test_unknown_names_are_refused_without_network(tmp_path):
    for config in (
        {"kind": "acoustic", "name": str(tmp_path / "nothing")},
        {"kind": "acoustic", "name": "nobody/no-such-model", "local_files_only": True},
        {"kind": "linguistic", "name": "nobody/no-such-model", "local_files_only": True, "revision": "abc"},
    ):
        with pytest.raises(UserError, match="cannot be loaded"):
            build(config, 4, True)


def test_revision_and_local_files_only_reach_the_library(hubert, monkeypatch):
    path, _ = hubert()
    seen = []
    original = transformers.AutoConfig.from_pretrained

    def spy(name, **options):
        seen.append(options)
        return original(name, **options)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", spy)
    build({"kind": "acoustic", "name": path, "revision": "v1", "local_files_only": True}, 4, True)
    assert seen[0]["revision"] == "v1" and seen[0]["local_files_only"] is True


def test_freezing(tiny, hubert):
    path, _ = hubert()
    names = {}
    for freeze in ("none", "feature_encoder", "encoder"):
        model = build({"kind": "acoustic", "name": path, "freeze": freeze}, 4, True)
        names[freeze] = {n for n, p in model.named_parameters() if not p.requires_grad}
        model.train()
        assert model.encoder.training == (freeze != "encoder")
    assert names["none"] == set()
    assert names["feature_encoder"] and all("feature_extractor" in n for n in names["feature_encoder"])
    assert names["encoder"] == {n for n, _ in model.named_parameters() if n.startswith("encoder.")}


def test_gradient_checkpointing_gives_the_same_gradients(tiny, hubert):
    path, _ = hubert(hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0)
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        config = {
            "kind": "acoustic",
            "name": path,
            "dropout": 0.0,
            "gradient_checkpointing": on,
            "freeze": "none",
        }
        model = build(config, 4, True).double().train()
        model(tiny.batch(torch.float64)).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*gradients))


def test_spec_augment_survives_short_batches(tiny, hubert):
    path, _ = hubert(mask_time_length=10)
    model = build({"kind": "acoustic", "name": path, "mask_time_prob": 0.5}, 4, True).train()
    batch = tiny.batch()
    short = tiny.one_row(batch, 2)
    assert model(short).logits.isfinite().all()
    model(batch).logits.sum().backward()
    assert model.encoder.masked_spec_embed.grad is not None


def test_bert_takes_the_checkpoint_weights_and_tokenizer(tiny, bert, tmp_path):
    path, reference, tokenizer = bert
    model = build({"kind": "linguistic", "name": path, "dropout": 0.0}, 4, True).eval()
    texts = ["I am so happy today!", "raining, again", None, "  "]
    batch = tiny.batch()
    batch.text, batch.lengths = texts, torch.ones(4)
    with torch.no_grad():
        out = model(batch)
        for i, text in enumerate(texts[:2]):
            hidden = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state
            assert torch.allclose(out.embedding[i], hidden.mean(1)[0], atol=1e-6)
    assert out.has_input.tolist() == [True, True, False, False]
    assert (out.logits[2:] == 0).all() and (out.dimensions[2:] == 0).all()
    # Saved, it needs neither the checkpoint nor the hub.
    save(model, tmp_path / "m", {})
    (tmp_path / "bert").rename(tmp_path / "gone")
    again, _ = load(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(again(batch).logits, out.logits)
    assert again.hub_names == (path,)


def test_long_texts_are_cut_where_positions_end(tiny, bert):
    path, *_ = bert
    for limit, expected in ((6, 6), (128, 40)):
        model = build({"kind": "linguistic", "name": path, "max_tokens": limit}, 4, True)
        numbers, mask = model.tokens(["happy " * 100, "alone"])
        assert numbers.shape == (2, expected) and mask.sum(1).tolist() == [expected, 3]
        batch = tiny.batch()
        batch.text, batch.lengths = ["happy " * 100], torch.ones(1)
        assert model(batch).logits.isfinite().all()


def test_roberta_positions(tiny):
    config = {**tiny.configs["linguistic"]["config"], "model_type": "roberta"}
    model = build({"kind": "linguistic", "config": config}, 4, True, texts=tiny.texts)
    batch = tiny.batch()
    batch.text, batch.lengths = ["happy " * 100], torch.ones(1)
    assert model(batch).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_built_tokenizer_depends_on_texts_not_on_their_order(tiny, kind):
    texts = [*tiny.texts, None, " "]
    first = built(texts, kind, 60).to_bytes()
    assert built(texts[::-1], kind, 60).to_bytes() == first
    assert built([*texts, "zebra"], kind, 200).to_bytes() != built(texts, kind, 200).to_bytes()
    numbers, mask = built(texts, kind, 60)(["", "I am happy"])
    assert mask.sum(1).tolist()[0] == 2 and (numbers[0, 2:] == 0).all()
    assert len(built(texts, kind, 40)) <= 40


def test_no_texts_no_tokenizer(tiny):
    with pytest.raises(UserError, match="needs training texts"):
        build(tiny.configs["linguistic"], 4, True, texts=[None, ""])


def test_count_parameters_knows_what_trains(tiny, hubert):
    path, _ = hubert()
    counts = count_parameters(build({"kind": "acoustic", "name": path, "freeze": "encoder"}, 4, True))
    assert counts["trainable"] == 3 + 4 * 17 + 3 * 17 < counts["total"]


@pytest.mark.slow
def test_the_code_of_a_checkpoint_is_never_run_nor_asked_about(tmp_path):
    ran = tmp_path / "ran"
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').write('')\nfrom transformers import PretrainedConfig, PreTrainedModel\n"
        "class EvilConfig(PretrainedConfig):\n    model_type = 'evil'\n"
        "class EvilModel(PreTrainedModel):\n    config_class = EvilConfig\n"
    )
    auto = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModel": "evil.EvilModel",
        "AutoTokenizer": ["evil.Evil", None],
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    code = (
        "import sys; from ser.models.config import parse_config; from ser.models.hub import load_backbone\n"
        "from shards.errors import UserError\n"
        "try: load_backbone(parse_config({'kind': 'acoustic', 'name': sys.argv[1]}), {}, None)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], input="y\n" * 5, capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert "never run here" in done.stdout and "y/N" not in done.stdout + done.stderr, done.stderr
    assert not ran.exists()
