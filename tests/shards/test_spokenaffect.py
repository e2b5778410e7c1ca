"""SpokenAffect: its law, its ceilings, the same bytes whatever interrupts it, and prosody that moves as meant."""

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from ser.recipe import load
from ser.resolve import find, names
from shards.corpora.spokenaffect import law, words
from shards.corpora.spokenaffect.ceilings import ceilings, monte_carlo
from shards.corpora.spokenaffect.corpus import generate, read
from shards.corpora.spokenaffect.voices import LANGUAGES, SPLITS, VOICES, of_split
from shards.errors import UserError
from shards.views import ViewPolicy

ROOT = Path(__file__).resolve().parents[2]
SIZE = 160  # three blocks, the last one short


@pytest.fixture(scope="module")
def drawn():
    return law.draw(6000, seed=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    return generate(str(tmp_path_factory.mktemp("spoken") / "whole"), SIZE, seed=3, jobs=2)


def tree(root: Path) -> dict[str, str]:
    """sha256 by path, without the note of who started."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


# --- the law ---


def test_voices_each_in_one_language_and_split():
    assert len(VOICES) == len({v.variant for v in VOICES}) == 48
    assert Counter(v.split for v in VOICES) == {"train": 20, "dev": 4, "test": 24}
    assert Counter(v.language for v in VOICES if v.split == "test") == dict.fromkeys(LANGUAGES, 8)


def test_default_corpus_counts(drawn):
    assert Counter(d.split for d in drawn) == {"train": 4500, "dev": 300, "test": 1200}
    for split, each in (("train", 225), ("dev", 75), ("test", 50)):
        spoken = Counter(d.voice.speaker for d in drawn if d.split == split)
        assert spoken == {v.speaker: each for v in of_split(split)}
    assert len({d.key.lower() for d in drawn}) == 6000


def test_words_are_balanced():
    for language in LANGUAGES:
        strengths = list(words.WORDS[language].values())
        assert sum(s > 0 for s in strengths) == sum(s < 0 for s in strengths) == 6
        assert (len(words.TEMPLATES[language]), len(words.NOUNS[language])) == (4, 6)


def test_triples_of_splits_are_disjoint_and_words_are_seen(drawn):
    triples = {
        s: {(d.voice.language, d.template, d.noun, d.word) for d in drawn if d.split == s} for s in SPLITS
    }
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not triples[a] & triples[b]
    assert len({(lang, word) for lang, _, _, word in triples["train"]}) == 36
    for split in ("train", "test"):
        for position in (1, 2, 3):
            seen = {(t[0], t[position]) for t in triples[split]}
            assert len(seen) == 3 * (4, 6, 12)[position - 1]
    texts = {s: {d.text for d in drawn if d.split == s} for s in SPLITS}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["dev"]


def test_emotion_is_the_quadrant_and_labels_are_redrawn(drawn):
    for d in drawn:
        sign = 1 if words.WORDS[d.voice.language][d.word] > 0 else -1
        assert (
            d.clean == {(-1, 1): "angry", (1, 1): "happy", (-1, -1): "sad", (1, -1): "calm"}[sign, d.latent]
        )
        assert d.text.count(d.word) == 1
    for split, tolerance in (("train", 0.02), ("test", 0.04)):
        wrong = np.mean([d.label != d.clean for d in drawn if d.split == split])
        assert abs(wrong - 0.15) < tolerance
    residual = np.array([d.arousal - d.latent for d in drawn])
    assert abs(residual.mean()) < 0.03 and abs(residual.std() - 0.6) < 0.03
    assert abs(np.corrcoef([d.latent for d in drawn], [d.valence for d in drawn])[0, 1]) < 0.04


def test_a_smaller_corpus_draws_the_same_first_utterances(drawn):
    small = {d.key: d for d in law.draw(600, seed=0)}
    assert len(small) == 600
    assert all(small[d.key] == d for d in drawn if d.key in small)
    assert [d.text for d in law.draw(600, seed=1)] != [d.text for d in small.values()]


def test_prosody_parameters_stay_in_range(drawn):
    for d in drawn:
        assert 80 <= d.rate <= 450 and 0 <= d.pitch <= 99 and 0 <= d.range <= 99


def shipped() -> list[tuple[str, str | None]]:
    """Recipes and variants that come with the package and name this corpus."""
    found = []
    for name in names():
        if "reader: spokenaffect" in (text := find(name).read_text()):
            found += [(name, variant) for variant in (None, *(yaml.safe_load(text).get("variants") or {}))]
    return found


@pytest.mark.parametrize("name,variant", shipped())
def test_views_move_at_most_a_third_of_the_distance_between_class_means(name, variant, monkeypatch, tmp_path):
    for place in re.findall(r"\$\{(\w+)\}", find(name).read_text()):
        monkeypatch.setenv(place, str(tmp_path))
    recipe = load(name, variant=variant)
    assert {source.reader for source in recipe.data.corpora} == {"spokenaffect"}
    views = ViewPolicy.from_dict(recipe.views)
    low, high = (law.sound(np.array([a]), np.zeros(1)) for a in (-1.0, 1.0))
    level = high["level_db"][0] - low["level_db"][0]
    rate = math.log(high["rate"][0] / low["rate"][0])
    assert name != "demo" or (views.count and views.gain_db and views.speed), "or nothing is asked below"
    assert max(map(abs, views.gain_db or (0, 0))) <= level / 3
    assert max(abs(math.log(speed / 1000)) for speed in views.speed or (1000, 1000)) <= rate / 3


# --- the ceilings ---


def test_ceilings_agree_with_monte_carlo():
    measured = monte_carlo(200_000, seed=1)
    for key, c in ceilings().items():
        m = measured[key]
        assert (c.valence, c.arousal, c.ua) == pytest.approx((m.valence, m.arousal, m.ua), abs=0.005), key


def test_ceilings_agree_with_a_brute_force_posterior():
    """An independent law and decision: posterior over the four classes on simulated data, no sign rule."""
    rng = np.random.default_rng(0)
    n = 100_000
    sign, latent = rng.choice([-1, 1], n), rng.choice([-1, 1], n)
    heard = latent + rng.normal(0, 0.6, n)
    classes = (sign > 0) * 2 + (latent > 0)
    density = np.stack([np.exp(-((heard - level) ** 2) / (2 * 0.36)) for level in (-1, 1)], axis=1)
    word = np.stack([sign < 0, sign > 0], axis=1).astype(float)
    posterior = (word[:, :, None] * density[:, None, :]).reshape(n, 4)
    ua = np.mean([np.mean(posterior[classes == c].argmax(1) == c) for c in range(4)])
    assert ua == pytest.approx(ceilings()["fusion", "clean"].ua, abs=0.005)
    assert ceilings()["prosody", "clean"].arousal == pytest.approx(
        0.5 + 0.5 * math.erf(1 / 0.6 / math.sqrt(2))
    )
    assert ceilings()["text", "clean"].ua == 0.5
    assert ceilings()["prosody", "clean"].ua < 0.5


# --- the audio ---


def test_read_gives_utterances_with_both_labels(made):
    utterances = list(read(str(made)))
    expected = law.draw(SIZE, seed=3)
    assert [u.key for u in utterances] == [d.key for d in expected]
    for u, d in zip(utterances, expected, strict=True):
        assert (u.label, u.extra["clean_label"], u.extra["word"]) == (d.label, d.clean, d.word)
        assert (u.extra["split"], u.extra["latent_arousal"]) == (d.split, d.latent)
        assert (u.valence, u.arousal, u.dominance, u.scale) == (
            d.valence,
            d.arousal,
            d.dominance,
            (-3.0, 3.0),
        )
        assert (u.text, u.text_source, u.speaker) == (d.text, "human", d.voice.speaker)


def test_audio_is_whole_level_and_unclipped(made):
    durations, held_back = [], 0
    for u, d in zip(read(str(made)), law.draw(SIZE, seed=3), strict=True):
        samples, rate = soundfile.read(u.audio)
        assert rate == 16_000 and samples.ndim == 1 and len(samples) == round(u.duration * rate)
        assert np.abs(samples).max() < 0.99
        peak, level = np.abs(samples).max(), 20 * np.log10(np.sqrt(np.mean(samples**2)))
        assert level < d.level_db + 0.1
        held_back += peak > 0.979  # scaled down because its peak would have clipped
        assert peak > 0.979 or level > d.level_db - 0.1
        durations.append(u.duration)
    assert held_back <= 0.01 * SIZE
    assert 1.5 < np.mean(durations) < 2.1 and min(durations) > 0.6 and max(durations) < 4


def test_workers_do_not_change_bytes(made, tmp_path):
    seen = []
    generate(
        str(tmp_path / "serial"),
        SIZE,
        seed=3,
        jobs=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert tree(tmp_path / "serial") == tree(made)
    assert seen == [(0, SIZE), (64, SIZE), (128, SIZE), (SIZE, SIZE)]


def test_found_made_without_speaking(made):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    generate(str(made), SIZE, seed=3)
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


@pytest.mark.parametrize("moment", ["first audio", "first mark", "second mark"])
def test_killed_anywhere_it_continues_to_the_same_bytes(made, tmp_path, moment):
    root = tmp_path / "killed"
    command = "import sys; from shards.corpora.spokenaffect import generate; generate(sys.argv[1], 160, seed=3, jobs=1)"
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(root)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,  # its speaking child dies with it
    )
    pattern, count = {"first audio": ("audio/*/*", 1), "first mark": ("blocks/*.jsonl", 1)}.get(
        moment, ("blocks/*.jsonl", 2)
    )
    deadline = time.monotonic() + 60
    while len(list(root.glob(pattern))) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in root.glob("blocks/*.jsonl")}
    if not (root / "corpus.json").exists():
        with pytest.raises(UserError, match="no finished"):
            list(read(str(root)))
    generate(str(root), SIZE, seed=3, jobs=1)
    assert tree(root) == tree(made)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())


def test_another_corpus_is_not_overwritten(made):
    with pytest.raises(UserError, match="seed 3 != 4"):
        generate(str(made), SIZE, seed=4)
    with pytest.raises(UserError, match="utterances 160 != 200"):
        generate(str(made), 200, seed=3)


def test_changed_rows_are_refused(made, tmp_path):
    (tmp_path / "corpus.json").write_text((made / "corpus.json").read_text())
    (tmp_path / "utterances.jsonl").write_bytes((made / "utterances.jsonl").read_bytes()[:-1])
    with pytest.raises(UserError, match="not the file"):
        list(read(str(tmp_path)))


def test_a_voice_that_espeak_lacks_is_an_error(tmp_path):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    rows = spoken(tmp_path, [request("x", voice="fr-nowhere+f1")])
    assert rows.returncode != 0 and "no voice" in rows.stderr and "Traceback" not in rows.stderr


def test_arousal_moves_rate_pitch_level_and_tilt(tmp_path):
    pytest.importorskip("espeakng_loader", reason="extra demo is not installed")
    arousals = (-1.5, 0.0, 1.5)
    sound = law.sound(np.array(arousals), np.zeros(3))
    requests, names = [], ("rate", "pitch", "range", "level_db", "tilt")
    for voice in ("en-us+f1", "fi+m2", "fr+david"):
        for i in range(3):
            values = {k: sound[k][i].item() for k in names}
            requests.append(request(f"{voice[:2]}-{i}", voice=voice, **values))
    assert spoken(tmp_path, requests).returncode == 0
    for language in LANGUAGES:
        measured = np.array([measure(tmp_path / f"{language}-{i}.flac") for i in range(3)])
        duration, level, treble, pitch = measured.T
        assert (np.diff(duration) < 0).all() and duration[0] / duration[2] > 1.2
        assert np.allclose(np.diff(level), 1.5 * law.LEVEL_STEP_DB, atol=0.1)
        assert (np.diff(treble) > 0).all()
        assert (np.diff(pitch) > 0).all() and pitch[2] / pitch[0] > 1.3


def request(key: str, **changes) -> dict:
    base = dict(
        voice="en-us+m1", text="Mama mia, lava rama mala.", rate=163, pitch=50, range=50, level_db=-30, tilt=0
    )
    return {"key": key} | base | changes


def spoken(folder: Path, requests: list[dict]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "shards.corpora.spokenaffect.synthesis", str(folder)],
        input="".join(json.dumps(r) + "\n" for r in requests),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def measure(path: Path) -> tuple[float, float, float, float]:
    """Duration in s, RMS in dB, RMS of the difference signal over RMS in dB, median F0 in Hz (autocorrelation)."""
    x, rate = soundfile.read(path)
    rms = np.sqrt(np.mean(x**2))
    pitches = []
    for start in range(0, len(x) - 800, 160):
        frame = x[start : start + 800] * np.hanning(800)
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frame, 2048)) ** 2)[:800]
        window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(800), 2048)) ** 2)[:800]
        correlation = correlation / (window / window[0] + 1e-3)
        lag = 40 + int(np.argmax(correlation[40:270]))
        if np.sqrt(np.mean(frame**2)) > 0.3 * rms and correlation[lag] > 0.7 * correlation[0]:
            pitches.append(rate / lag)
    treble = 20 * np.log10(np.sqrt(np.mean(np.diff(x) ** 2)) / rms)
    return len(x) / rate, 20 * np.log10(rms), treble, float(np.median(pitches))


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_is_a_whole_number_from_0(tmp_path, seed):
    with pytest.raises(UserError, match="seed is") as error:
        generate(str(tmp_path / "none"), SIZE, seed=seed)
    assert error.value.where == "generate.seed" and not (tmp_path / "none").exists()
