"""`ser fetch` against a hub on loopback, the cache that it leaves, and what a job without internet refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ser import contents, hubs
from ser.job import Job, identity
from ser.recipe import load
from ser.setting import open_setting
from shards.errors import UserError
from tests import tiny
from tests.conftest import ROOT
from tests.ser.hub import Hub, serving

NAME = "somebody/tiny-bert"


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """A tiny BERT with a tokenizer, as a hub has it."""
    import torch
    import transformers

    shape = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=30
    )
    torch.manual_seed(seed)
    transformers.BertModel(shape).save_pretrained(folder)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "bad",
        "awful",
        "grey",
        "good",
        "bright",
        "soft",
        "number",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "README.md").write_text("a card\n")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "tiny-bert")


@pytest.fixture
def hub():
    with serving() as found:
        yield found


def write(folder: Path, dataset: str = "", **model) -> Path:
    """A recipe with one model that reads."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {
        "role": "teacher", "model": {"kind": "linguistic", **model}, "objective": [{"loss": "cross_entropy"}],
        "train": tiny.training(2),
    }  # fmt: skip
    values = tiny.recipe_values(folder, dataset or str(folder / "none"), {"text": text}, allow_unknown=[NAME])
    return tiny.write_recipe(folder, values)


def ser(*arguments: object, home: Path, hub: Hub | None = None, **more: str) -> subprocess.CompletedProcess:
    """`ser ARGUMENTS` in a process whose hub cache is `home`: huggingface_hub reads its environment when imported."""
    return python(
        "from launch.cli import main; sys.argv[0] = 'ser'; main()", *arguments, home=home, hub=hub, **more
    )


def python(
    code: str, *arguments: object, home: Path, hub: Hub | None = None, **more: str
) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(home),
        "SER_CACHE": str(home.parent / "cache"),
        **more,
    }
    # Nothing but the hub on loopback is ever asked.
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    environment["HF_ENDPOINT"] = hub.url if hub else "http://127.0.0.1:9"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", *map(str, arguments)],
        env=environment, cwd=home.parent, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


BUILD = """
from ser import hubs
from ser.recipe import load
from ser.models import build
recipe = load(sys.argv[1])
hubs.check(recipe)
model = build(recipe.models["text"].model, 4, False)
print("built", sum(p.numel() for p in model.parameters()))
"""


AGAIN = """
from pathlib import Path
from ser import hubs
from ser.recipe import load
from shards.errors import UserError
path = Path(sys.argv[1])
for update in (False, True):
    hubs.fetch(load(str(path)), path, update, say=lambda line: None)
    print(load(str(path)).models["text"].model.revision)
for other in map(Path, sys.argv[2:]):
    try:
        hubs.fetch(load(str(other)), other)
    except UserError as error:
        print(error.what.splitlines()[0], error.where)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three processes that import torch, however busy the machine
def test_fetched_on_one_machine_and_built_without_network_on_another(tmp_path, hub, weights):
    home, path = tmp_path / "home", write(tmp_path / "r", name=NAME)
    commit = hub.put(NAME, weights)

    done = ser("fetch", path, home=home, hub=hub)
    assert done.returncode == 0, done.stderr
    assert commit in done.stdout and "HF_HUB_OFFLINE=1" in done.stdout
    lock = json.loads(hubs.lock_of(path).read_text())["models"]
    assert [(one["name"], one["asked"], one["revision"]) for one in lock] == [(NAME, None, commit)]
    assert lock[0]["files"]["model.safetensors"] == contents.sha256_of(weights / "model.safetensors")
    assert "README.md" not in lock[0]["files"]
    recipe = load(str(path))
    assert recipe.models["text"].model.revision == commit and recipe.dump()["hub"] == lock  # type: ignore[union-attr]

    hub.asked.clear()
    built = python(BUILD, path, home=home, hub=hub, HF_HUB_OFFLINE="1")
    assert built.returncode == 0, built.stderr
    assert "built" in built.stdout and not hub.asked

    # The branch moves on: fetching again on another machine gives the locked commit, --update the new one.
    newer = hub.put(NAME, checkpoint(tmp_path / "newer" / "tiny-bert", seed=1))
    assert newer != commit
    lost = (
        write(tmp_path / "lost", name="nobody/nothing"),
        write(tmp_path / "gone", name=NAME, revision="gone"),
    )
    more = python(AGAIN, path, *lost, home=tmp_path / "other", hub=hub)
    assert more.returncode == 0, more.stderr
    assert more.stdout.splitlines()[:2] == [commit, newer], more.stdout
    assert more.stdout.count("cannot be fetched") == 2 and "models.text" in more.stdout


def cached(home: Path, weights: Path, commit: str) -> Path:
    """The cache's real layout: blobs by etag, a snapshot of links to them, and a ref."""
    root = home / "hub" / f"models--{NAME.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in weights.iterdir():
        blob = root / "blobs" / contents.sha256_of(file)
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_folder_in_the_caches_layout_is_read_and_checked(tmp_path, weights, monkeypatch):
    """Files by hand, no server: what is whole is taken, what is missing or another file is refused by name."""
    from huggingface_hub import constants

    commit = "c" * 40
    snapshot = cached(tmp_path / "home", weights, commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "r", name=NAME, revision=commit)
    hubs.check(load(str(path)))  # a commit alone: whole enough to be loaded

    files = {
        file.name: contents.sha256_of(file) for file in weights.iterdir() if file.suffix in contents.READ
    }
    one = {"name": NAME, "asked": commit, "revision": commit, "files": files}
    hubs.lock_of(path).write_text(json.dumps({"models": [one]}))
    hubs.check(load(str(path)))

    blob = (snapshot / "model.safetensors").resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="sha256 differs"):
        hubs.check(load(str(path)))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"model\.safetensors of the hub model .* is not in the cache"
    ) as told:
        hubs.check(load(str(path)))
    assert "ser fetch" in told.value.hint
    with pytest.raises(UserError, match="has no commit"):
        hubs.check(load(str(path), ["models.text.model.revision=main"]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hubs.check(load(str(path), ["models.text.model.revision=main"]))  # with a network it is the user's choice

    hubs.lock_of(path).write_text("{")
    with pytest.raises(UserError, match="lock file"):
        load(str(path))


def test_one_form_of_weights_is_chosen():
    both = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "README.md",
        "onnx/model.json",
        "vocab.txt",
    ]
    assert hubs.chosen(both) == ["config.json", "model.safetensors", "vocab.txt"]
    assert hubs.chosen(["config.json", "pytorch_model.bin", "training_args.bin"]) == [
        "config.json",
        "pytorch_model.bin",
    ]
    with pytest.raises(ValueError, match="no weights"):
        hubs.chosen(["config.json"])


def test_a_changed_folder_is_another_model(tmp_path, weights, monkeypatch):
    """The bytes of a local pretrained folder are part of a training's identity; its card is not."""
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own"
    shutil.copytree(weights, own)
    path = write(tmp_path / "r", tiny.make_dataset(tmp_path), name=str(own))

    def found() -> dict:
        return identity(open_setting(load(str(path))), Job("session-ses0", "text", 0))

    first = found()
    assert first["folders"] == {str(own): first["folders"][str(own)]}
    (own / "README.md").write_text("another card\n")
    assert found() == first
    other = bytearray((own / "model.safetensors").read_bytes())
    other[-1] ^= 1
    (own / "model.safetensors").write_bytes(other)
    assert found()["folders"] != first["folders"]


def test_a_hash_is_taken_once_for_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.bin"
    file.write_bytes(b"one")
    first = contents.sha256_of(file)
    contents._hash.cache_clear()
    monkeypatch.setattr(contents.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert contents.sha256_of(file) == first
    monkeypatch.undo()
    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    file.write_bytes(b"three")
    assert contents.sha256_of(file) != first
