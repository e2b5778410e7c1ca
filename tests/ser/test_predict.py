"""Prediction from files: every file once, in order, the same for any batch size, and nothing stops at a bad one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from ser.models import build, save
from ser.predict import predict
from shards.errors import UserError
from tests import tiny

ROOT = Path(__file__).parents[2]
META = {"name": "toy", "classes": list(tiny.CLASSES)}


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """A folder of tones of 0.2 to 2 s at 8, 16 and 44.1 kHz, one of them empty and one no audio at all."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for i in range(9):
        rate = (8000, 16000, 44100)[i % 3]
        tone = 0.2 * np.sin(np.arange(int(rate * (0.2 + 0.2 * i))) * (0.05 + 0.02 * i))
        path = folder / ("deep" if i % 2 else "") / f"f{i}.wav"
        path.parent.mkdir(exist_ok=True)
        sf.write(path, tone + 0.01 * rng.standard_normal(len(tone)), rate)
    sf.write(folder / "empty.wav", np.zeros(0), 16000)
    (folder / "noise.flac").write_bytes(b"this is no audio")
    (folder / "notes.txt").write_text("left out")
    return folder


def saved(folder: Path, kind: dict, **options) -> str:
    torch.manual_seed(3)
    model = build(kind, 4, True, texts=["bad awful", "good soft"], **options)
    return str(save(model, folder, META))


@pytest.mark.parametrize("kind", [tiny.CONV, tiny.HUBERT, tiny.HUBERT | {"group_norm": "plain"}])
def test_the_same_answers_for_any_batch_size(kind, speech, tmp_path):
    model = saved(tmp_path / "model", kind)
    small, large = (list(predict(model, [str(speech)], batch_seconds=s)) for s in (0.1, 100.0))
    assert (
        [r["path"] for r in small]
        == [r["path"] for r in large]
        == sorted(str(p) for p in speech.rglob("*") if p.suffix in (".wav", ".flac"))
    )
    good = [(a, b) for a, b in zip(small, large) if "error" not in a]
    assert len(good) == 9
    for a, b in good:
        assert a["emotion"] == b["emotion"] and sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        for part in ("probabilities", "dimensions"):
            assert a[part] == pytest.approx(b[part], abs=5e-5)


def test_bad_files_are_named_and_stop_nothing(speech, tmp_path):
    model = saved(tmp_path / "model", tiny.CONV)
    bad = {Path(r["path"]).name: r["error"] for r in predict(model, [str(speech)]) if "error" in r}
    assert set(bad) == {"empty.wav", "noise.flac"} and "empty" in bad["empty.wav"]


def test_a_long_recording_is_cut_into_equal_stretches(tmp_path):
    sf.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(16000 * 7) * 0.1), 16000)
    model = saved(tmp_path / "model", tiny.CONV)
    found = list(predict(model, [str(tmp_path / "long.wav")], window=3.0))
    assert [r["start"] for r in found] == pytest.approx([0, 7 / 3, 14 / 3], abs=1e-3)
    assert found[-1]["end"] == 7.0


def test_what_is_missing_is_said(speech, tmp_path):
    model = saved(tmp_path / "reads", tiny.BERT)
    with pytest.raises(UserError, match="reads transcripts"):
        next(predict(model, [str(speech)]))
    said = list(predict(model, [str(speech)], texts={"f0.wav": "bad awful", "f2.wav": "good soft"}))
    by_name = {Path(r["path"]).name: r for r in said}
    assert by_name["f0.wav"]["probabilities"] != by_name["f2.wav"]["probabilities"]
    with pytest.raises(UserError, match="no saved model"):
        next(predict(str(tmp_path), [str(speech)]))
    with pytest.raises(UserError, match="no such file or folder"):
        next(predict(model, ["nowhere.wav"], texts={"a": "b"}))


@pytest.mark.slow
def test_the_command_writes_a_line_a_file(speech, tmp_path):
    model = saved(tmp_path / "model", tiny.CONV)
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "predict", model, str(speech / "f0.wav"), str(speech / "empty.wav")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == 2 and "1 of 2" in done.stderr
    assert set(lines[0]["dimensions"]) == {"valence", "arousal", "dominance"} and "empty" in lines[1]["error"]


def test_a_model_trained_with_modality_dropout_needs_no_transcripts(speech, tmp_path):
    parts = {"text": tiny.BERT, "sound": tiny.HUBERT}
    fused = {"kind": "fused", "mode": "cross", "components": parts, "frozen": False, "embedding": 8}
    strict = saved(tmp_path / "strict", fused)
    with pytest.raises(UserError, match="reads transcripts"):
        next(predict(strict, [str(speech)]))
    spares = saved(tmp_path / "spares", fused | {"modality_dropout": 0.2})
    alone = list(predict(spares, [str(speech / "f0.wav")]))
    told = list(predict(spares, [str(speech / "f0.wav")], texts={"f0.wav": "bad awful"}))
    assert "error" not in alone[0] and alone[0]["probabilities"] != told[0]["probabilities"]
