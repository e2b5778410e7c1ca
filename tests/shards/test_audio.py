"""shards.audio: what is read, how it is resampled, and that bad audio says why."""

import io
import pickle

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.audio import BadAudio, decode, decode_flac, encode_flac, load, to_mono_16k
from shards.utterance import Utterance


def sine(rate: int, seconds: float, hertz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def file_bytes(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def reason(call, *args, **options) -> BadAudio:
    with pytest.raises(BadAudio) as caught:
        call(*args, **options)
    return caught.value


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "OGG", "MP3"])
def test_path_bytes_and_open_file_give_the_same(tmp_path, kind):
    data = file_bytes(sine(16000, 0.5), 16000, kind)
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(data)
    samples, rate = decode(path)
    assert rate == 16000 and samples.dtype == np.float32 and abs(len(samples) - 8000) < 2400  # MP3 pads
    for source in (str(path), data, io.BytesIO(data)):
        np.testing.assert_array_equal(decode(source)[0], samples)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@given(start=st.floats(0, 1.8), length=st.floats(0.01, 0.2))
@settings(max_examples=40, deadline=None)
def test_a_cut_is_the_slice_of_the_whole(kind, start, length):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * 44100).astype(np.float32)
    data = file_bytes(noise, 44100, kind, "PCM_16")
    whole, rate = decode(data)
    cut, _ = decode(data, start, start + length)
    np.testing.assert_array_equal(cut, whole[round(start * rate) : round((start + length) * rate)])


def test_a_cut_of_a_long_recording_reads_only_the_cut(tmp_path):
    """An hour of audio: the cut near the end comes without the bytes before it."""

    class Counting(io.FileIO):
        taken = 0

        def readinto(self, buffer):
            n = super().readinto(buffer)
            Counting.taken += n
            return n

        def read(self, size=-1):
            data = super().read(size)
            Counting.taken += len(data)
            return data

    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as sound:
        minute = np.zeros(60 * 16000, np.int16)
        for i in range(60):
            minute[:] = i
            sound.write(minute)
    with Counting(path) as file:
        samples, _ = decode(file, 3000.5, 3002.5)
    assert len(samples) == 32000 and np.all(samples == np.float32(50 / 32768))
    assert Counting.taken < 200_000
    assert reason(decode, str(path)).reason == "too long: 3600.0 s, the limit is 120 s"


def test_eight_channels_are_averaged_and_96_khz_is_resampled():
    """A band-limited signal survives: the resampled sine equals the sine written at 16 kHz."""
    tone = sine(96000, 1.0, 1000.0)
    channels = np.stack([tone * gain for gain in (0.25, 0.5, 0.75, 1.0, 1.0, 1.25, 1.5, 1.75)], axis=1)
    samples, rate = decode(file_bytes(channels, 96000, subtype="FLOAT"))
    assert rate == 96000 and samples.ndim == 1
    out = to_mono_16k(samples, rate)
    assert out.dtype == np.float32 and len(out) == 16000
    np.testing.assert_allclose(out[400:-400], sine(16000, 1.0, 1000.0)[400:-400], atol=2e-4)
    np.testing.assert_array_equal(out, to_mono_16k(samples, rate))


def test_nothing_above_the_new_nyquist_comes_through():
    out = to_mono_16k(sine(48000, 1.0, 11000.0), 48000)
    assert np.abs(out[200:-200]).max() < 1e-4


@given(
    st.sampled_from([8000, 11025, 16000, 22050, 24000, 24414, 44100, 48000, 96000]), st.integers(100, 9000)
)
@settings(max_examples=50, deadline=None)
def test_length_after_resampling(rate, n):
    out = to_mono_16k(np.ones(n, np.float32), rate)
    assert abs(len(out) - n * 16000 / rate) <= 1 and out.flags.c_contiguous


def test_16_bit_input_at_16_khz_comes_back_bit_exactly():
    integers = np.arange(-32768, 32768, dtype=np.int16)
    samples, _ = decode(file_bytes(integers, 16000))
    data = encode_flac(to_mono_16k(samples, 16000))
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], integers)
    np.testing.assert_array_equal(decode_flac(data), integers.astype(np.float32) / 32768)
    assert encode_flac(decode_flac(data)) == data


@given(st.lists(st.floats(-3.875, 3.875, width=32), min_size=1, max_size=300))
@settings(max_examples=60, deadline=None)
def test_flac_rounds_to_nearest_and_clips(values):
    samples = np.array(values, np.float32)
    out = decode_flac(encode_flac(samples))
    bounded = np.clip(samples.astype(np.float64), -1.0, 32767 / 32768)
    assert np.abs(out - bounded).max() <= 0.5 / 32768
    assert encode_flac(samples) == encode_flac(samples.copy())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"text, not audio " * 50,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_unreadable(data, tmp_path):
    (tmp_path / "x.wav").write_bytes(data)
    assert reason(decode, data).kind == "unreadable"
    assert reason(decode, tmp_path / "x.wav").kind == "unreadable"


def test_missing_file_and_folder_are_unreadable(tmp_path):
    assert reason(decode, tmp_path / "none.wav").kind == "unreadable"
    assert reason(decode, tmp_path).kind == "unreadable"
    (tmp_path / "x.raw").write_bytes(bytes(100))
    assert reason(decode, tmp_path / "x.raw").kind == "unreadable"


def test_truncated_flac_is_unreadable():
    data = file_bytes(np.random.default_rng(1).uniform(-1, 1, 48000).astype(np.float32), 16000, "FLAC")
    assert reason(decode, data[: len(data) // 2]).kind == "unreadable"
    assert reason(decode_flac, data[: len(data) // 2]).kind == "unreadable"


def test_empty():
    nothing = file_bytes(np.zeros(0, np.float32), 16000)
    assert reason(decode, nothing).reason == "empty: no samples"
    second = file_bytes(sine(16000, 1.0), 16000)
    assert "the cut starts at 2.0 s, the file has 1.000 s" in reason(decode, second, 2.0, 3.0).reason
    assert "the cut ends at 3.0 s" in reason(decode, second, 0.5, 3.0).reason
    assert len(decode(second, 0.5, 1.1)[0]) == 8000  # labels overshoot by rounding
    assert reason(encode_flac, np.zeros(0, np.float32)).kind == "empty"
    assert reason(to_mono_16k, np.zeros(0, np.float32), 48000).kind == "empty"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite(bad):
    samples = sine(16000, 0.1)
    samples[7] = bad
    error = reason(decode, file_bytes(samples, 16000, subtype="FLOAT"))
    assert error.reason == "non-finite: 1 of 1600 samples"
    assert reason(encode_flac, samples).kind == "non-finite"


def test_integers_stored_as_floats_are_refused_not_clipped_to_noise():
    assert reason(encode_flac, sine(16000, 0.1) * 32767).kind == "out of range"


def test_decode_flac_refuses_other_rates():
    assert reason(decode_flac, file_bytes(sine(8000, 0.1), 8000, "FLAC")).kind == "unreadable"


def test_bad_audio_crosses_processes():
    error = pickle.loads(pickle.dumps(BadAudio("too long", "9 s")))
    assert (error.kind, error.reason, str(error)) == ("too long", "too long: 9 s", "too long: 9 s")


def test_load_cuts_and_resamples(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate([np.zeros(48000), sine(48000, 1.0)]), 48000)
    utterance = Utterance(key="a", corpus="c", audio=str(path), recording="long", start=1.0, end=2.0)
    assert abs(np.sqrt(np.mean(load(utterance) ** 2)) - 0.5 / np.sqrt(2)) < 0.01
    remote = Utterance(key="b", corpus="c", audio=f"file://{path}", recording="long", start=1.0, end=2.0)
    np.testing.assert_array_equal(load(remote), load(utterance))
    gone = Utterance(key="c", corpus="c", audio=f"file://{path}x", recording="long")
    assert reason(load, gone).kind == "unreadable"


def test_real_files_pass_bit_exactly(corpora):
    for name in ("emodb/audio/03a01Fa.flac", "urdu/audio/SF10_F1_S01.flac"):
        integers = soundfile.read(corpora / name, dtype="int16")[0]
        data = encode_flac(to_mono_16k(*decode(corpora / name)))
        np.testing.assert_array_equal(np.rint(decode_flac(data) * 32768).astype(np.int16), integers)
