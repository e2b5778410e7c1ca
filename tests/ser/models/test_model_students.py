"""Students: sizes, features stored or computed, normalisation, pooling, speed; and projectors."""

import statistics
import time

import numpy as np
import pytest
import torch

from ser.models import Projectors, build, count_parameters
from ser.models.pooling import AttentiveStatistics, frame_mask, last_frame, masked_mean
from shards.errors import UserError


def mel_batch(tiny, rows: int, frames: int, bands: int):
    batch = tiny.batch()
    n = torch.full((rows,), frames)
    return type(batch)(
        waveform=None,
        lengths=160 * n,
        features={"mel": torch.randn(rows, frames, bands)},
        feature_lengths={"mel": n},
        text=None,
    )


@pytest.mark.parametrize(
    "settings, low, high",
    [
        ({"width": 24, "blocks": 2, "embedding": 48}, 15_000, 25_000),
        ({"bands": 40, "width": 56}, 60_000, 100_000),
        ({}, 90_000, 120_000),
        ({"width": 256, "blocks": 6, "mixer": "transformer", "mixer_layers": 2}, 2_500_000, 3_500_000),
    ],
)
def test_sizes(settings, low, high):
    total = count_parameters(build({"kind": "conv", **settings}, 4, True))["total"]
    assert low < total < high


def test_stored_and_online_inputs(tiny):
    assert build({"kind": "conv"}, 4, True).inputs == {"waveform"}
    assert build({"kind": "conv", "features": "stored"}, 4, True).inputs == {"mel"}


def test_stored_mel_and_waveform_give_one_answer(tiny):
    mel = pytest.importorskip("ser.features.mel")
    model = build({"kind": "conv", "bands": 40, "features": "stored"}, 4, True).eval()
    batch = tiny.batch(rubbish=False)
    batch.features, batch.feature_lengths = {}, {}
    with torch.no_grad():
        online = model(batch)
        frames, counts = mel.LogMel(bands=40)(batch.waveform, batch.lengths)
        batch.features, batch.feature_lengths, batch.waveform = {"mel": frames}, {"mel": counts}, None
        stored = model(batch)
    assert torch.equal(online.logits, stored.logits)
    assert not any("mel" in name or ("front." in name and "conv" not in name) for name in model.state_dict())


def test_online_padding_and_float64(tiny):
    pytest.importorskip("ser.features.mel")
    model = build({"kind": "conv", "bands": 40}, 4, True).double().eval()
    batch = tiny.batch()
    batch.features, batch.feature_lengths = {}, {}
    with torch.no_grad():
        together = model(batch)
        for row in range(5):
            alone = model(tiny.one_row(batch, row))
            # The log-mel is computed in float32 whatever the model's precision.
            assert (alone.logits[0] - together.logits[row]).abs().max() < 1e-4
            assert alone.has_input[0] == together.has_input[row] == (row != 4)


def test_training_after_inference(tiny, kind):
    """What a forward in inference mode leaves behind must not stop a later backward pass."""
    model, batch = tiny.make(kind), tiny.batch()
    if kind == "product":
        return  # its class head has nothing to train
    if kind == "conv":
        pytest.importorskip("ser.features.mel")
        batch.features = {}
    with torch.inference_mode():
        model.eval()(batch)
    model.train()(batch).logits.square().sum().backward()


def test_the_right_number_of_bands_is_asked_for(tiny):
    with pytest.raises(UserError, match="40 features"):
        build({"kind": "conv", "features": "stored"}, 4, True)(mel_batch(tiny, 2, 30, 40))


def test_fit_normalisation(tiny):
    model = build(tiny.configs["prosodic"], 4, True)
    model.fit_normalisation(np.arange(25.0), np.r_[0.0, np.full(24, 2.0)])
    normalise = model.network.normalise
    x = torch.full((1, 3, 25), 4.0)
    y = normalise(x, frame_mask(torch.tensor([2]), 3))
    assert y[0, 0].tolist() == [4.0, *((4 - i) / 2 for i in range(1, 25))] and (y[0, 2] == 0).all()
    for mean, deviation, word in (
        (np.zeros(24), np.ones(24), "25 values"),
        (np.full(25, np.nan), np.ones(25), "not finite"),
    ):
        with pytest.raises(UserError, match=word):
            model.fit_normalisation(mean, deviation)
    with pytest.raises(UserError, match="normalise: utterance"):
        build(tiny.configs["prosodic-utterance"], 4, True).fit_normalisation(np.zeros(25), np.ones(25))


def test_utterance_normalisation_hears_no_gain(tiny):
    model, batch = tiny.make("prosodic-utterance").double().eval(), tiny.batch(torch.float64)
    with torch.no_grad():
        before = model(batch).logits
        batch.features["prosody"] = 50 * batch.features["prosody"] + 3
        assert torch.allclose(model(batch).logits, before, atol=1e-4)


def test_pooling_against_numpy():
    torch.manual_seed(0)
    x, lengths = torch.randn(3, 7, 4, dtype=torch.float64), [7, 3, 0]
    mask = frame_mask(torch.tensor(lengths), 7)
    pool = AttentiveStatistics(4).double()
    mean, last, both = masked_mean(x, mask), last_frame(x, mask), pool(x, mask).detach().numpy()
    for i, n in enumerate(lengths[:2]):
        rows = x[i, :n].numpy()
        np.testing.assert_allclose(mean[i], rows.mean(0))
        np.testing.assert_allclose(last[i], rows[-1])
        score = pool.score(x[i, :n]).detach().numpy()[:, 0]
        w = np.exp(score - score.max())
        w /= w.sum()
        centre = (w[:, None] * rows).sum(0)
        np.testing.assert_allclose(both[i, :4], centre)
        np.testing.assert_allclose(both[i, 4:], np.sqrt((w[:, None] * (rows - centre) ** 2).sum(0)))
    assert (mean[2] == 0).all() and (last[2] == 0).all()


def test_half_precision_means_are_summed_in_float32():
    x = torch.full((1, 5000, 1), 0.1, dtype=torch.bfloat16)
    assert masked_mean(x, torch.ones(1, 5000, dtype=torch.bool)).item() == x[0, 0, 0].item()


def test_the_real_batch_fits(tiny):
    loader = pytest.importorskip("shards.loader")
    batch = loader.Batch(
        rows=np.arange(2),
        views=np.zeros(2, np.int64),
        keys=["a", "b"],
        present=torch.ones(2, dtype=torch.bool),
        lengths=torch.tensor([4000, 1600]),
        waveform=torch.randn(2, 4000),
        features={"prosody": torch.randn(2, 25, 25), "mel": torch.randn(2, 25, 8)},
        feature_lengths={"prosody": torch.tensor([25, 10]), "mel": torch.tensor([25, 10])},
        text=["so happy", None],
    )
    for kind in ("conv", "gated", "product"):
        assert tiny.make(kind)(batch).logits.shape == (2, 4)


def test_projectors():
    sizes = {"text.teacher": 7, "voice": 5}
    projectors = Projectors(4, sizes)
    out = projectors(torch.randn(3, 4))
    assert {name: tuple(x.shape) for name, x in out.items()} == {"text.teacher": (3, 7), "voice": (3, 5)}
    assert sum(p.numel() for p in projectors.parameters()) == 5 * 7 + 5 * 5
    with pytest.raises(ValueError, match="collide"):
        Projectors(4, {"a.b": 1, "a_b": 1})


@pytest.mark.slow
def test_speed_of_the_default_student(tiny):
    """CPU time of a step of 64 x 1.8 s, forward and backward; the bound is several times what was measured."""
    model, batch = build({"kind": "conv", "features": "stored"}, 4, True), mel_batch(tiny, 64, 180, 64)

    def step() -> float:
        start = time.process_time()
        out = model(batch)
        (out.logits.square().sum() + out.dimensions.square().sum()).backward()
        return time.process_time() - start

    for _ in range(3):
        step()
    taken = statistics.median(step() for _ in range(9))
    print(f"{1e3 * taken:.1f} ms")
    assert taken < 0.25
