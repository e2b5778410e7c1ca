"""Spectral descriptors and formant roots against independent float64 numpy."""

import numpy as np
import torch

from ser.features import prosody
from ser.features.prosody import formants, pitch
from tests.ser.features.signals import alone, speech_like


def three(values: np.ndarray) -> np.ndarray:
    """Mean over a frame and its neighbours, the first one repeated; one frame fewer at the end."""
    before = np.concatenate([values[:1], values[:-2]])
    return (before + values[:-1] + values[1:]) / 3


def slow(wave: np.ndarray) -> dict[str, np.ndarray]:
    """The same definitions, one frame at a time, in float64."""
    wave = wave.astype(np.float64)
    count = prosody.frames(len(wave))
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(320) / 319)
    hz = np.arange(257) * 31.25

    def mel(f):
        return 1127 * np.log(1 + f / 700)

    edges = np.linspace(mel(20), mel(8000), 28)
    rows = {name: [] for name in prosody.NAMES[:10]}
    old = None
    for t in range(count + 1):
        magnitude = np.abs(np.fft.rfft(wave[160 * t : 160 * t + 320] * window, 512))
        power = magnitude**2
        bands = np.zeros(26)
        for b in range(26):
            for k in range(2, 257):
                low, centre, high = edges[b : b + 3]
                weight = min((mel(hz[k]) - low) / (centre - low), (high - mel(hz[k])) / (high - centre))
                bands[b] += max(0.0, weight) * power[k]
        w = 2 * np.pi * 700 * (np.exp(edges[1:-1] / 1127) - 1)
        ear = 1e32 * (w**2 + 56.8e6) * w**4 / ((w**2 + 6.3e6) ** 2 * (w**2 + 0.38e9) * (w**7 + 1.7e31))
        rows["Loudness"].append(np.mean((ear * np.maximum(bands, 1e-9)) ** 0.33))
        rows["alphaRatio"].append(
            10 * np.log10(power[(hz >= 1000) & (hz <= 5000)].sum() / power[hz < 1000].sum())
        )
        rows["hammarbergIndex"].append(
            10 * np.log10(power[hz < 2000].max() / power[(hz >= 2000) & (hz <= 5000)].max())
        )
        for name, low, high in (("slope0-500", 0, 500), ("slope500-1500", 500, 1500)):
            inside = (hz >= low) & (hz <= high)
            x, y = hz[inside] / 31.25, 10 * np.log10(power[inside])
            n = len(x) - 1
            rows[name].append((n * x @ y - x.sum() * y.sum()) / (n * x @ x - x.sum() ** 2) / 31.25)
        rows["spectralFlux"].append(
            0.0 if old is None else np.sqrt(np.mean((magnitude - old)[hz < 5000] ** 2))
        )
        old = magnitude
        logs = np.log(np.maximum(bands * 32767.0**2, 1e-8))
        for i in range(1, 5):
            basis = np.cos(np.pi * i * (np.arange(26) + 0.5) / 26)
            rows[f"mfcc{i}"].append(np.sqrt(2 / 26) * (logs @ basis) * (1 + 11 * np.sin(np.pi * i / 22)))
    return {name: three(np.array(values)) for name, values in rows.items()}


def test_spectral_descriptors_equal_a_slow_float64_computation():
    wave = speech_like(1, 0.6)
    frames, _ = prosody.extract(*alone(wave))
    for name, truth in slow(wave).items():
        found = frames[0, :, prosody.NAMES.index(name)].double().numpy()
        assert np.abs(found - truth).max() <= 2e-5 * max(1.0, np.abs(truth).max()), name


def test_all_roots_of_random_predictors_are_found():
    rng = np.random.default_rng(0)
    polynomials = []
    for _ in range(400):
        radius, angle = rng.uniform(0.3, 0.99, 5), rng.uniform(0.05, 3.1, 5)
        z = np.concatenate(
            [radius * np.exp(1j * angle), radius * np.exp(-1j * angle), rng.uniform(-0.9, 0.9, 1)]
        )
        polynomials.append(np.poly(z).real[1:])
    polynomials = np.array(polynomials)
    x, y = formants.roots(torch.from_numpy(polynomials.T.copy()))
    for i, c in enumerate(polynomials):
        found = x[:, i].numpy() + 1j * y[:, i].numpy()
        for truth in np.roots(np.r_[1.0, c]):
            assert np.abs(found - truth).min() < 1e-6, (i, truth)


def test_predictor_solves_the_normal_equations():
    frame = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (5, 320)).astype(np.float32))
    r = formants.lags(frame, textbook=True).T
    a = formants.predictor(r.contiguous())
    for i in range(5):
        matrix = np.array([[float(r[abs(p - q), i]) for q in range(11)] for p in range(11)])
        assert np.allclose(matrix @ a[:, i].numpy(), -r[1:, i].numpy(), rtol=1e-6, atol=1e-8)


def test_blocked_octave_scale_equals_the_whole_spline():
    from scipy.interpolate import CubicSpline

    hz = np.arange(513) * 15.625
    hz[0] = 7.8125
    values = np.random.default_rng(2).uniform(0, 1, (3, 513))
    points = 25.0 * 2.0 ** (np.arange(513) * np.log2(320.0) / 512)
    truth = CubicSpline(np.log2(hz), values.T, bc_type="natural")(np.log2(points)).T
    blocks = pitch.octave_scale(torch.device("cpu"))
    wave = torch.from_numpy(values.astype(np.float32))
    found = torch.cat([wave[:, bins] @ matrix for bins, matrix in blocks], dim=1).numpy()
    weight = 0.5 + np.arctan(2.99415 * np.log2(points / 25.0) - 1.0382) / np.pi
    assert np.abs(found - truth * weight).max() < 1e-5


def test_the_path_is_the_cheapest_of_all():
    rng = np.random.default_rng(3)
    hz = torch.from_numpy(rng.uniform(80, 400, (1, 4, 6))).float()
    hz[:, :, 2:] = 0.0  # two candidates, so that every path can be tried
    voicing = torch.from_numpy(rng.uniform(0.5, 0.9, (1, 4, 6))).float() * (hz > 0)
    found = pitch.best_path(hz, voicing, torch.tensor([4]))[0]
    local, step = pitch.local_costs(hz, voicing)[0], pitch.step_costs(hz.transpose(0, 1))[:, 0]
    import itertools

    def cost(path):
        return sum(float(local[t, s]) for t, s in enumerate(path)) + sum(
            float(step[t, path[t], path[t + 1]]) for t in range(3)
        )

    best = min(itertools.product((0, 1, 6), repeat=4), key=cost)
    expected = torch.tensor([float(hz[0, t, s]) if s < 6 else 0.0 for t, s in enumerate(best)])
    assert torch.equal(found, expected)
