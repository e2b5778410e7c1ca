"""`ser run` over a dataset that lies on an S3 server: packed, read by byte range, targets stored, found again."""

import json
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.launch.test_run import ser
from tests.shards.corpus import s3_server

pytest.importorskip("moto")
pytest.importorskip("s3fs")
pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LABELS = [{"loss": "cross_entropy"}]


def recipe(folder: Path, url: str) -> Path:
    tiny.write_corpus(folder / "corpus", count=64)
    few = tiny.training(2, slot_seconds=10.0)
    stored = tiny.CONV | {"features": "stored"}
    kl = {"loss": "kl", "teacher": "text"}
    models = {
        "text": {"role": "teacher", "model": tiny.BERT, "objective": LABELS, "train": few},
        "student": {"role": "student", "model": stored, "objective": [*LABELS, kl], "train": few},
    }
    values = tiny.recipe_values(
        folder, url, models, features={"mel": {"kind": "mel", "options": {"bands": 20}}}, cluster={"cpus": 1}
    )
    values["data"] |= {
        "corpora": [{"reader": "manifest", "root": str(folder / "corpus"), "options": {"corpus": "tiny"}}],
        "shard_seconds": 15.0,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_runs_over_an_object_store_and_finds_its_work_again(tmp_path, monkeypatch):
    from shards.store import Store

    monkeypatch.setenv("SER_CACHE", str(tmp_path / "cache"))
    with s3_server("speech") as bucket:
        path = recipe(tmp_path, f"{bucket}/tiny")
        done = ser("run", str(path))
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads((tmp_path / "run/report.json").read_text())
        assert sorted(report["order"]) == ["student", "text"] and not report["incomplete"]
        names = Store(f"{bucket}/tiny").list()
        assert {".recipe", "dataset.json", "shards/000000.tar"} <= set(names)
        assert any(name.startswith("targets/text/") and name.endswith(".arrow") for name in names)
        assert any(name.startswith("runs/") for name in names), "the dataset knows its run"
        again = ser("run", str(path))
        assert again.returncode == 0 and "starting Ray" not in again.stdout, again.stdout + again.stderr
        heard = ser("data", f"{bucket}/tiny", "--who-heard", "tiny/s7")
        assert heard.returncode == 0, heard.stderr
        for model in ("text", "student"):
            assert f"model {tmp_path}/run/folds/session-ses0/{model}/seed-0/model" in heard.stdout
        assert "targets speech/tiny/targets/text/" in heard.stdout
        # other settings: what was finished is kept, and said
        changed = ser("train", str(path), "models.text.train.steps=3")
        assert changed.returncode == 0, changed.stdout + changed.stderr
        assert "1 finished training was made otherwise (different: train.steps)" in changed.stdout
        (kept,) = (tmp_path / "run/superseded/session-ses0/text").iterdir()
        assert (kept / "DONE").is_file() and (kept / "model/model.safetensors").is_file()
