"""The saved folder: complete, checked, alone, and free of code."""

import json
import subprocess
import sys

import pytest
import torch

from ser.models import load, save
from ser.models.io import _unshared
from shards.errors import UserError


@pytest.fixture
def saved(tiny, tmp_path):
    save(tiny.make("linguistic"), tmp_path / "m", {})
    return tmp_path / "m"


def test_the_folder_holds_no_pickle(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((saved / "model.json").read_text())["hub_names"] == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_or_missing_file_is_refused(saved, name):
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(UserError, match="sha256 differs"):
        load(saved)
    (saved / name).unlink()
    with pytest.raises(UserError, match="is missing"):
        load(saved)


def edit(folder, **facts):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_strange_folders_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="no complete model"):
        load(tmp_path)
    files = json.loads((saved / "model.json").read_text())["files"]
    edit(saved, files={**files, "../outside": "0"})
    with pytest.raises(UserError, match="outside its folder"):
        load(saved)
    edit(saved, files=files, format=2)
    with pytest.raises(UserError, match="format 2"):
        load(saved)
    edit(saved, format=1, classes=5)
    with pytest.raises(UserError, match="weights do not fit"):
        load(saved)
    (saved / "model.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load(saved)


def test_a_torn_save_leaves_no_model(tiny, saved, monkeypatch):
    """A save that dies between the weights and model.json must not leave the old description over new weights."""
    import ser.models.io as io

    original = io.atomic.write

    def dies(path, content):
        if path.name == "model.json":
            raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(io.atomic, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        save(tiny.make("linguistic", seed=1), saved, {})
    with pytest.raises(UserError, match="no complete model"):
        load(saved)


def test_gathered_weights_may_be_given(tiny, tmp_path):
    model, other = tiny.make("conv", 0), tiny.make("conv", 1)
    save(model, tmp_path / "m", {}, state=other.state_dict())
    again, _ = load(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), other.state_dict().values()))


def test_precision_is_kept(tiny, tmp_path):
    for dtype in (torch.float64, torch.bfloat16):
        save(tiny.make("conv").to(dtype), tmp_path / "m", {})
        assert load(tmp_path / "m")[0].dtype == dtype


def test_shared_tensors_are_stored_once(tiny, tmp_path):
    model = tiny.make("conv-transformer")
    first, second = model.network.mixer
    second.qkv.weight = first.qkv.weight
    folder = save(model.eval(), tmp_path / "m", {})
    facts = json.loads((folder / "model.json").read_text())
    assert facts["aliases"] == {"network.mixer.1.qkv.weight": "network.mixer.0.qkv.weight"}
    again, _ = load(folder)
    with torch.no_grad():
        assert torch.equal(again(tiny.batch()).logits, model(tiny.batch()).logits)


def test_views_of_one_storage_are_no_aliases():
    storage = torch.arange(6.0)
    tensors, aliases = _unshared(
        {"a": storage[:3], "b": storage[3:], "c": storage[:3], "e": storage[:0], "f": storage[:0]}
    )
    assert (
        aliases == {"c": "a"} and tensors["b"].tolist() == [3, 4, 5] and set(tensors) == {"a", "b", "e", "f"}
    )


def test_a_student_predicts_without_transformers(tiny, tmp_path):
    save(tiny.make("conv"), tmp_path / "m", {})
    code = """
import sys, types, torch
from ser.models import load
model, _ = load(sys.argv[1])
n = torch.tensor([50])
batch = types.SimpleNamespace(waveform=None, lengths=160 * n, text=None, features={"mel": torch.randn(1, 50, 8)}, feature_lengths={"mel": n})
assert model(batch).logits.shape == (1, 4)
assert not {"transformers", "tokenizers", "ray", "deepspeed"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True, timeout=120)


def test_loading_asks_no_hub(tiny, kind, tmp_path, monkeypatch):
    save(tiny.make(kind), tmp_path / "m", {})
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    for part in (transformers.AutoConfig, transformers.AutoModel, transformers.AutoTokenizer):
        monkeypatch.setattr(part, "from_pretrained", refuse)
    load(tmp_path / "m")
