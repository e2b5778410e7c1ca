"""Views: samples that repeat for any order and thread count, effects as stated, and policies that say what is wrong."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import welch

from shards.errors import UserError
from shards.views import Asset, ViewPolicy, apply, params
from shards.views.ops import pink, synthetic_room, white
from tests.shards.viewed import FULL, RATE, keys, speech


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    soundfile.write(folder / "noise-8k.wav", white(1, 6000) / 2**19, 8000)
    soundfile.write(folder / "noise-stereo.wav", np.stack([pink(2, 9000), pink(3, 9000)], 1) / 2**21, RATE)
    response = np.zeros(4000)
    response[100], response[150], response[1600] = 0.4, -0.9, 0.3
    soundfile.write(folder / "room.wav", response, RATE)
    return folder


@pytest.fixture(scope="module")
def with_files(files) -> ViewPolicy:
    noise = (str(files / "noise-8k.wav"), str(files / "noise-stereo.wav"))
    return ViewPolicy.from_dict({**FULL, "noise": noise, "room": [str(files / "room.wav")]})


# Samples


def test_length_grid_and_clean_view(with_files):
    for policy in (ViewPolicy.from_dict(FULL), with_files):
        for i, key in enumerate(keys(25)):
            samples = [1, 2, 37, 16_000, 50_000][i % 5]
            audio = speech(i, samples)
            for view in (0, 1, 2):
                p = params(policy, key, view, samples)
                out = apply(policy, audio, p)
                assert out.dtype == np.float32 and out.shape == (p.samples,)
                grid = out.astype(np.float64) * 32768
                assert (grid == np.rint(grid)).all() and grid.min() >= -32768 and grid.max() <= 32767
                if view == 0:
                    assert (out == audio[p.crop_start : p.crop_start + p.samples]).all()


def test_loud_audio_is_clipped():
    policy = ViewPolicy(seed=1, gain_db=(20, 20))
    audio = speech()
    out = apply(policy, audio, params(policy, 5, 1, len(audio)))
    assert out.max() == 32767 / 32768 and out.min() == -1


def test_input_is_left_alone_and_wrong_length_refused():
    policy = ViewPolicy(seed=1, mask_spans=(2, 2))
    audio = speech()
    before = audio.copy()
    for view in (0, 1):
        apply(policy, audio, params(policy, 5, view, len(audio)))[:] = 1
    assert (audio == before).all()
    with pytest.raises(ValueError, match="index says"):
        apply(policy, audio[:-1], params(policy, 5, 1, len(audio)))


RENDER = """
import hashlib, json, sys
import numpy as np
from shards.views.ops import render
from shards.views import ViewPolicy, params
from tests.shards.viewed import keys, speech
policy = ViewPolicy.from_dict(json.loads(sys.argv[1]))
order = [(i, v) for i in range(12) for v in (1, 2)]
if sys.argv[2] == "backwards":
    order.reverse()
out = {}
for i, v in order:
    audio = speech(i, 15000 + 9000 * i)
    # Before rounding to int16, which would hide most differences.
    x = render(policy, audio, params(policy, keys(12)[i], v, len(audio)))
    out[i, v] = hashlib.sha256(x.tobytes()).hexdigest()
print(hashlib.sha256(repr(sorted(out.items())).encode()).hexdigest())
"""


@pytest.mark.slow
def test_samples_do_not_depend_on_threads_or_order(with_files):
    found = set()
    root = Path(__file__).resolve().parents[2]
    for threads, order in (("1", "forwards"), ("2", "backwards")):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads), "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", RENDER, json.dumps({**with_files.to_dict(), "crop": None}), order]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_a_view_repeats_within_a_process(with_files):
    audio = speech()
    wanted = [(k, v) for k in keys(6) for v in (1, 2, 3)]

    def render(k, v, policy):
        return hashlib.sha256(apply(policy, audio, params(policy, k, v, len(audio))).tobytes()).digest()

    first = {(k, v): render(k, v, with_files) for k, v in wanted}
    carried = pickle.loads(pickle.dumps(with_files))
    assert all(render(k, v, carried) == first[k, v] for k, v in reversed(wanted))
    assert len(set(first.values())) == len(first)


@pytest.mark.parametrize("source", ["synthetic", "files"])
def test_signal_to_noise_ratio(source, files):
    noise = (
        "synthetic"
        if source == "synthetic"
        else (str(files / "noise-8k.wav"), str(files / "noise-stereo.wav"))
    )
    policy = ViewPolicy(seed=3, noise=noise, snr_db=(0, 30))
    audio = speech(samples=40_000)  # longer than the noise files, which are repeated
    clean = audio.astype(np.float64)
    for key in keys(12):
        p = params(policy, key, 1, len(audio))
        added = apply(policy, audio, p) - clean
        ratio = 10 * np.log10(np.sum(clean**2) / np.sum(added**2))
        assert ratio == pytest.approx(p.snr_cdb / 100, abs=0.05)


def test_silence_stays_silent(with_files):
    audio = np.zeros(16_000, dtype=np.float32)
    assert not any(apply(with_files, audio, params(with_files, k, 1, 16_000)).any() for k in keys(5))


def test_colours_of_noise():
    for make, slope in ((white, 0.0), (pink, -1.0)):
        x = make(5, 1 << 18)
        assert (x == np.rint(x)).all()
        frequency, power = welch(x, RATE, nperseg=8192)
        band = (frequency > 30) & (frequency < 3000)
        fitted = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
        assert fitted == pytest.approx(slope, abs=0.12)
    assert abs(np.corrcoef(white(5, 10_000), white(6, 10_000))[0, 1]) < 0.05


@pytest.mark.parametrize("speed", [800, 900, 997, 1013, 1250])
def test_speed_moves_a_sine(speed):
    policy = ViewPolicy(seed=1, speed=(speed, speed))
    t = np.arange(32_000) / RATE
    audio = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    p = params(policy, 9, 1, len(audio))
    out = apply(policy, audio, p).astype(np.float64)
    assert p.samples == 32_000 * 1000 // speed == len(out)
    middle = out[2000:-2000] * np.hanning(len(out) - 4000)
    spectrum = abs(np.fft.rfft(middle, 1 << 20))
    peak = np.argmax(spectrum) * RATE / (1 << 20)
    assert peak == pytest.approx(440 * speed / 1000, abs=0.1)
    assert abs(out[2000:-2000]).max() == pytest.approx(0.5, abs=0.01)


def test_masks_act_on_their_spans_only():
    policy = ViewPolicy(seed=1, mask_spans=(1, 3), mask_ms=(20, 90))
    audio = (speech() + np.float32(0.5)).astype(np.float32)  # nowhere zero
    for key in keys(10):
        p = params(policy, key, 1, len(audio))
        out = apply(policy, audio, p)
        masked = np.zeros(len(out), dtype=bool)
        for start, span in p.masks:
            assert 20 * 16 <= span <= 90 * 16
            masked[start : start + span] = True
        assert not out[masked].any() and (out[~masked] == audio[~masked]).all() and masked.any()


def test_gain():
    policy = ViewPolicy(seed=1, gain_db=(-6.02, -6.02))
    audio = speech()
    out = apply(policy, audio, params(policy, 1, 1, len(audio)))
    assert abs(out - audio * 10 ** (-6.02 / 20)).max() <= 0.51 / 32768


def test_band_keeps_speech_band_only():
    policy = ViewPolicy(seed=1, band=((300, 300), (3400, 3400)))
    audio = (white(1, 64_000) / 2**18).astype(np.float32)
    frequency, before = welch(audio, RATE, nperseg=2048)
    _, after = welch(apply(policy, audio, params(policy, 1, 1, len(audio))), RATE, nperseg=2048)
    change = 10 * np.log10(after / before)
    assert abs(change[(frequency > 500) & (frequency < 2800)]).max() < 1
    assert change[frequency > 6000].max() < -30 and change[(frequency > 5) & (frequency < 80)].max() < -20


def test_room_file_is_aligned_and_normalised(files):
    """The response's largest tap stands at sample 0 afterwards; taps before it are left out."""
    policy = ViewPolicy(seed=1, room=(str(files / "room.wav"),))
    audio = np.zeros(8000, dtype=np.float32)
    audio[1000] = 0.5
    out = apply(policy, audio, params(policy, 1, 1, len(audio)))
    scale = np.sqrt(0.9**2 + 0.3**2)
    expected = np.zeros(8000)
    expected[1000], expected[1000 + 1450] = -0.45 / scale, 0.15 / scale
    assert abs(out - expected).max() < 2 / 32768


def test_synthetic_room():
    response = synthetic_room(400, 300, 9)
    assert len(response) == 6400 and np.sum(response**2) == pytest.approx(1)
    assert 10 * np.log10(response[0] ** 2 / np.sum(response[1:] ** 2)) == pytest.approx(3, abs=1e-9)
    energy = 10 * np.log10(np.cumsum(response[:0:-1] ** 2)[::-1])  # Schroeder's backward integration
    fitted = np.polyfit(np.arange(4000) / RATE, energy[:4000], 1)[0]
    assert -60 / fitted == pytest.approx(0.4, rel=0.1)


# The policy


def test_round_trip_reads_no_file(with_files, files, tmp_path):
    data = json.loads(json.dumps(with_files.to_dict()))
    for asset in data["noise"] + data["room"]:
        asset["path"] = str(tmp_path / "elsewhere.wav")
    moved = ViewPolicy.from_dict(data)
    assert moved.hash() == with_files.hash() and ViewPolicy.from_dict(with_files.to_dict()) == with_files
    assert [a.samples for a in with_files.noise] == [12_000, 9000]


def test_hash_covers_what_shapes_a_view(with_files, files, tmp_path):
    base = ViewPolicy.from_dict(FULL)
    changes = [
        {"seed": 12},
        {"gain_db": (-6.0, 6.01)},
        {"speed": None},
        {"noise": with_files.noise},
        {"noise": with_files.noise[:1]},
        {"room": None},
        {"room": with_files.room},
        {"room_ms": (200, 801)},
        {"band": ((200, 401), (3000, 3800))},
        {"mask_share": 299},
        {"crop": {"policy": "head", "seconds": 1.5}},
        {"probability": {}},
    ]
    hashes = {ViewPolicy.from_dict({**FULL, **c}).hash() for c in changes}
    assert len(hashes) == len(changes) and base.hash() not in hashes
    assert replace(base, count=50).hash() == base.hash()
    whole = {**FULL, "gain_db": [-6, 6], "crop": {"policy": "random", "seconds": 1.50}}
    assert ViewPolicy.from_dict(whole).hash() == base.hash()
    other = tmp_path / "room.wav"
    soundfile.write(other, np.array([1.0, 0.5]), RATE)
    assert replace(with_files, room=(str(other),)).hash() != with_files.hash()


def test_changed_file_is_refused(tmp_path):
    path = tmp_path / "noise.wav"
    soundfile.write(path, white(1, 4000) / 2**19, RATE)
    policy = ViewPolicy(seed=1, noise=(str(path),), snr_db=(5, 5))
    soundfile.write(path, white(2, 4000) / 2**19, RATE)
    with pytest.raises(UserError, match="has changed"):
        apply(policy, speech(), params(policy, 1, 1, 20_000))
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        Asset.of(path)
    path.write_bytes(b"no audio")
    with pytest.raises(UserError, match="not an audio file"):
        Asset.of(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"volume": 3},
        {"gain_db": (-600, 600)},
        {"gain_db": (3, -3)},
        {"gain_db": (0.001, 1)},
        {"speed": (0.9, 1.1)},
        {"speed": 1000},
        {"snr_db": (5, 10)},
        {"noise": "synthetic"},
        {"noise": "pub.wav", "snr_db": (5, 10)},
        {"noise": [], "snr_db": (5, 10)},
        {"band": ((300, 400), (400, 500))},
        {"band": (300, 3400)},
        {"mask_spans": (0, 99)},
        {"crop": {"policy": "tail", "seconds": 3}},
        {"crop": 3},
        {"crop": {"policy": "head", "seconds": 0}},
        {"probability": {"crop": 10}},
        {"probability": {"gain": 0.5}},
        {"count": -1},
        {"seed": -1},
    ],
)
def test_mistakes_are_explained(wrong):
    with pytest.raises(UserError) as error:
        ViewPolicy.from_dict(wrong)
    assert error.value.where.startswith("views")
