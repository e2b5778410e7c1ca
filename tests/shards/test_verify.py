"""`verify` names every kind of damage by file and key; a damaged manifest is never opened."""

import json
import os
from pathlib import Path

import pytest

from shards.audio import BadAudio
from shards.dataset import Dataset
from shards.errors import UserError
from shards.pack import pack
from shards.verify import verify
from tests.shards.corpus import corpus, flip

SECONDS = 0.4


@pytest.fixture
def utterances(tmp_path):
    return corpus(tmp_path / "src", "toy") + corpus(tmp_path / "src", "other", 5)


def damage(out: Path) -> dict[str, tuple[str, str | None]]:
    """Name of a case -> (file that must be named, key that must be named)."""
    dataset = Dataset.open(out)
    row = dataset.row("toy-3")
    shard = f"shards/{dataset.shards[dataset.shard[row]].number:06d}.tar"
    index = f"index/{dataset.shards[dataset.shard[row]].number:06d}.parquet"
    return {"audio": (shard, "toy-3"), "json": (shard, "toy-3"), "header": (shard, "toy-3"), "cut": (shard, None),
            "gone": (shard, None), "index": (index, None), "index cut": (index, None), "index gone": (index, None),
            "plan": ("plan.arrow", None), "plan cut": ("plan.arrow", None)}  # fmt: skip


@pytest.mark.parametrize(
    "case", ["audio", "json", "header", "cut", "gone", "index", "index cut", "index gone", "plan", "plan cut"]
)
def test_verify_names_all_damage(utterances, tmp_path, case):
    out = tmp_path / "out"
    dataset = pack(utterances, out, shard_seconds=SECONDS)
    row = dataset.row("toy-3")
    file, key = damage(out)[case]
    path, offset, size = out / file, int(dataset.offset[row]), int(dataset.size[row])
    match case:
        case "audio":
            flip(path, offset + size // 2)
        case "json":
            flip(path, offset + -(-size // 512) * 512 + 512 + 20)
        case "header":
            flip(path, offset - 512)
        case "index":
            flip(path, 100)
        case "plan":
            flip(path, path.stat().st_size // 2)
        case "cut" | "index cut" | "plan cut":
            os.truncate(path, path.stat().st_size // 2)
        case _:
            path.unlink()
    problems = verify(out)
    assert problems and {problem.file for problem in problems} == {file}, problems
    if key:
        assert key in {problem.key for problem in problems}, problems
    if case == "plan cut":  # derived: opening makes it again
        assert Dataset.open(out).keys() == dataset.keys() and verify(out) == []
    if case.startswith("index"):
        (out / "plan.arrow").unlink()
        with pytest.raises(UserError, match=r"index .*(missing|damaged|rows)|damaged"):
            Dataset.open(out).keys()
    if case == "cut":
        found = dataset.audio(range(len(dataset)))
        assert any(isinstance(audio, BadAudio) for audio in found)
        assert all(isinstance(a, BadAudio) or len(a) == n for a, n in zip(found, dataset.samples))
    if case == "gone":
        with pytest.raises(UserError, match="shard is missing"):
            dataset.audio([row])


def test_damaged_manifest_is_a_user_error(utterances, tmp_path):
    pack(utterances, tmp_path / "out", shard_seconds=SECONDS)
    path = tmp_path / "out" / "dataset.json"
    whole = path.read_text()
    changed = json.loads(whole)
    changed["shards"][0]["sha256"] = "0" * 64
    for text in (whole[:100], "[]", json.dumps(changed)):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            Dataset.open(tmp_path / "out")
    path.write_text(json.dumps({**json.loads(whole), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        verify(tmp_path / "out")
