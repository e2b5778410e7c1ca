"""Views with every real noise and every real room of the open corpora, judged by what this file reads and measures itself."""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards import law
from shards.views import ViewParams, ViewPolicy, apply, assets, params, view_samples
from shards.views.ops import render

RATE = 16_000


@pytest.fixture(scope="module")
def noises(corpora) -> list[str]:
    return found(corpora / "noise/audio")


@pytest.fixture(scope="module")
def rooms(corpora) -> list[str]:
    return found(corpora / "rir/audio")


def found(folder: Path) -> list[str]:
    files = sorted(map(str, folder.glob("*.flac")))
    if not files:
        pytest.skip(
            f"the real corpora lack {folder.parent.name}/{folder.name}: put *.flac there, below $SER_CORPORA"
        )
    return files


@pytest.fixture(scope="module")
def speech(corpora) -> list[np.ndarray]:
    """Three acted sentences, quiet enough that no noise clips; float32 on the int16 grid, as stored audio is."""
    if not (files := sorted((corpora / "emodb/audio").glob("*.flac"))[:3]):
        pytest.skip("the real corpora lack emodb/audio: put EmoDB's *.flac there, below $SER_CORPORA")
    read = [soundfile.read(path)[0] for path in files]
    return [(np.rint(x / abs(x).max() * 0.1 * 32768) / 32768).astype(np.float32) for x in read]


def drawn(policy: ViewPolicy, samples: int, op: str) -> list[ViewParams]:
    """Of views of one utterance after another, the first that uses each file of `op`."""
    first: dict[int, ViewParams] = {}
    files = getattr(policy, op)
    for key in law.hash64(5, np.arange(3000)):
        p = params(policy, int(key), 1, samples)
        first.setdefault(getattr(p, op), p)
        if len(first) == len(files):
            return [first[i] for i in range(len(files))]
    raise AssertionError(f"only {len(first)} of {len(files)} files were drawn")


def test_every_noise_is_added_at_the_ratio_that_was_asked_for(noises, speech):
    policy = ViewPolicy(seed=1, noise=tuple(noises), snr_db=(0, 20))
    audio = np.concatenate(speech)
    clean = audio.astype(np.float64)
    for path, p in zip(noises, drawn(policy, len(audio), "noise"), strict=True):
        added = apply(policy, audio, p) - clean
        ratio = 10 * np.log10(np.sum(clean**2) / np.sum(added**2))
        assert ratio == pytest.approx(p.snr_cdb / 100, abs=0.05), path
        # it is this file from where it was drawn, again from its start where it ends, and nothing else
        source, rate = soundfile.read(path)
        assert rate == RATE and source.ndim == 1
        told = source[(p.noise_offset + np.arange(len(audio))) % len(source)]
        assert np.dot(added, told) / np.sqrt(np.sum(added**2) * np.sum(told**2)) > 0.999, path


def test_every_room_rings_behind_the_direct_sound_and_dies_away(rooms, speech):
    for path in rooms:
        policy = ViewPolicy(seed=1, room=(path,))
        click = np.zeros(4 * RATE, np.float32)
        click[RATE] = 0.5
        rung = render(policy, click, params(policy, 3, 1, len(click)))
        assert abs(rung[:RATE]).max() < 1e-9, "nothing sounds before its cause"
        assert abs(rung[RATE]) == pytest.approx(abs(rung).max()), (
            "and nothing is louder than the direct sound"
        )
        assert np.sum(rung**2) == pytest.approx(0.25), "energy is kept"
        # Schroeder's backward integration: what is still to come, in dB, at the direct sound and every 100 ms after it
        left = np.cumsum(rung[::-1] ** 2)[::-1][RATE :: RATE // 10]
        heard = left[left > 1e-9 * left[0]]
        assert (np.diff(heard) < 0).all() and left[1] < 0.8 * left[0] and left[-1] < 1e-3 * left[0], path
        assert left[1] > 1e-5 * left[0], "there is a room at all"
        # the same by the definition of a convolution, from the file itself
        response, rate = soundfile.read(path)
        assert rate == RATE and response.ndim == 1
        response = response[abs(response).argmax() :]
        audio = speech[0]
        wanted = np.convolve(audio.astype(np.float64), response / np.sqrt(np.sum(response**2)))[: len(audio)]
        got = render(policy, audio, params(policy, 3, 1, len(audio)))
        np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_all_of_them_together_give_the_same_views_in_any_order(noises, rooms, speech, monkeypatch):
    policy = ViewPolicy.from_dict(
        {
            "count": 2, "seed": 2, "gain_db": [-6, 6], "speed": [900, 1100], "snr_db": [0, 20], "noise": noises,
            "room": rooms, "band": [[200, 400], [3000, 3800]], "mask_spans": [0, 2],
        }
    )  # fmt: skip
    keys = law.hash64(9, np.arange(120))
    used: dict[str, set[int]] = {"noise": set(), "room": set()}

    def views(order: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
        assets._cache.clear()
        made = {}
        for i, view in order:
            audio = speech[i % len(speech)]
            p = params(policy, int(keys[i]), view, len(audio))
            out = apply(policy, audio, p)
            assert len(out) == view_samples(policy, keys[i : i + 1], view, np.array([len(audio)]))[0]
            assert np.isfinite(out).all() and abs(out).max() <= 1 and out.any()
            assert (out * 32768 == np.rint(out * 32768)).all()
            used["noise"].add(p.noise)
            used["room"].add(p.room)
            made[i, view] = hashlib.sha256(out.tobytes()).hexdigest()
        return made

    asked = list(itertools.product(range(len(keys)), (1, 2)))
    first = views(asked)
    assert used == {"noise": set(range(len(noises))), "room": set(range(len(rooms)))}, "every file was heard"
    assert len(set(first.values())) == len(first)
    # the other way round, with room in memory for a few files only
    monkeypatch.setattr(assets, "CACHE_BYTES", 1 << 20)
    assert views(reversed(asked)) == first
