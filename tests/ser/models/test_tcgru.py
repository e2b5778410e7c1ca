"""TC-GRU against a plain GRU, one row at a time and without any padding, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ser.models import build, load, save
from shards.errors import UserError

CONFIG = {
    "kind": "tcgru", "streams": {"a": {"size": 6}, "b": {"size": 4}}, "width": 5, "embedding": 7,
    "embedding_activation": "tanh",
}  # fmt: skip


def batch_of(rows: list[dict[str, torch.Tensor]], junk: float = 0.0) -> SimpleNamespace:
    """Rows of (T, F) streams padded with `junk`; each stream has lengths of its own."""
    features, lengths = {}, {}
    for name, first in rows[0].items():
        longest = max(len(row[name]) for row in rows) + 3
        features[name] = torch.full((len(rows), longest, first.shape[1]), junk, dtype=first.dtype)
        for i, row in enumerate(rows):
            features[name][i, : len(row[name])] = row[name]
        lengths[name] = torch.tensor([len(row[name]) for row in rows])
    samples = 320 * next(iter(lengths.values()))
    return SimpleNamespace(
        waveform=None, lengths=samples, features=features, feature_lengths=lengths, text=None
    )


def made(seed: int, counts: list[tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def frames(n: int, size: int) -> torch.Tensor:
        return torch.randn(n, size, generator=generator, dtype=torch.float64)

    return [{"a": frames(n, 6), "b": frames(m, 4)} for n, m in counts]


def model_of(**changes) -> nn.Module:
    torch.manual_seed(0)
    return build(CONFIG | changes, 4, True).double().eval()


def plainly(model: nn.Module, row: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and dimensions of one row by textbook parts: LayerNorm, conv1d, a stock two-layer nn.GRU."""
    state, count = model.state_dict(), min(len(x) for x in row.values())
    parts = [
        F.layer_norm(x, (x.shape[1],), state[f"streams.{n}.norm.weight"], state[f"streams.{n}.norm.bias"])
        for n, x in row.items()
    ]
    x = torch.cat([part[:count] for part in parts], 1)
    y = F.conv1d(x.T[None], state["conv.conv.weight"], state["conv.conv.bias"], padding=1)[0].T.relu()
    gru = nn.GRU(15, 5, num_layers=2).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    gru.load_state_dict({f"{n}_l{i}": state[f"recurrent.{i}.ahead.{n}_l0"] for i in range(2) for n in names})
    last = gru(torch.cat([y, x], 1)[:, None])[1][-1, 0]
    embedding = torch.tanh(state["embed.weight"] @ last + state["embed.bias"])
    return embedding, state["heads.dimensional.weight"] @ embedding + state["heads.dimensional.bias"]


@pytest.mark.parametrize("junk", [0.0, 1e6, float("nan")])
def test_it_is_the_plain_gru_of_every_row_alone_whatever_lies_in_the_padding(junk):
    model, rows = model_of(), made(1, [(11, 12), (30, 29), (1, 1), (2, 3), (17, 17)])
    out = model(batch_of(rows, junk))
    for i, row in enumerate(rows):
        embedding, dimensions = plainly(model, row)
        torch.testing.assert_close(out.embedding[i], embedding, rtol=0, atol=1e-12)
        torch.testing.assert_close(out.dimensions[i], dimensions, rtol=0, atol=1e-12)
    assert out.has_input.all()


def test_gradients_do_not_reach_the_padding_and_a_row_without_frames_answers_zeros():
    model, batch = model_of(), batch_of(made(2, [(6, 6), (0, 5)]))
    for x in batch.features.values():
        x.requires_grad_()
    out = model(batch)
    assert out.has_input.tolist() == [True, False]
    assert not out.embedding[1].any() and not out.dimensions[1].any()
    out.dimensions.sum().backward()
    for x in batch.features.values():
        assert x.grad[0, :6].abs().sum() > 0 and not x.grad[0, 6:].any() and not x.grad[1].any()


def test_it_agrees_with_finite_differences():
    model = model_of()
    (row,) = made(3, [(4, 4)])

    def answer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return model(batch_of([{"a": a, "b": b}])).dimensions

    assert torch.autograd.gradcheck(answer, (row["a"].requires_grad_(), row["b"].requires_grad_()))


def test_stacked_log_mels_keep_step_with_an_encoder_and_unstacked_ones_are_refused():
    generator = torch.Generator().manual_seed(0)
    mel, frames = torch.randn(41, 40, generator=generator), torch.randn(20, 4, generator=generator)
    config = {"kind": "tcgru", "streams": {"mel": {"stack": 2}, "b": {"size": 4}}, "features": "stored"}
    model = build(config, 0, True).eval()
    assert model.inputs == {"mel", "b"}
    odd, even = batch_of([{"mel": mel, "b": frames}]), batch_of([{"mel": mel[:40], "b": frames}])
    torch.testing.assert_close(model(odd).dimensions, model(even).dimensions)
    with pytest.raises(UserError, match=r"frame rate.*mel 41, b 20") as caught:
        build(config | {"streams": {"mel": {}, "b": {"size": 4}}}, 0, True)(odd)
    assert "stack" in caught.value.hint


def test_it_computes_the_log_mel_that_a_batch_lacks_and_saves_and_loads(tmp_path):
    torch.manual_seed(0)
    model = build({"kind": "tcgru", "streams": {"mel": {"normalise": "fitted"}}}, 0, True).eval()
    model.fit_stream("mel", torch.full((40,), -5.0), torch.full((40,), 2.0))
    waves = [torch.randn(n) * 0.1 for n in (5000, 300, 9000)]

    def heard(some: list[torch.Tensor]) -> SimpleNamespace:
        wave = nn.utils.rnn.pad_sequence(some, batch_first=True)
        lengths = torch.tensor([len(w) for w in some])
        return SimpleNamespace(waveform=wave, lengths=lengths, features={}, feature_lengths={}, text=None)

    save(model, tmp_path / "m", {})
    again, _ = load(tmp_path / "m")
    said = model(heard(waves)).dimensions
    assert torch.equal(said, again(heard(waves)).dimensions)
    for i, wave in enumerate(waves):
        torch.testing.assert_close(model(heard([wave])).dimensions[0], said[i], rtol=0, atol=1e-5)


def test_an_empty_slot_is_connected_to_every_parameter():
    model, empty = model_of().float().train(), batch_of(made(0, [(3, 3)]))
    empty.lengths = empty.lengths[:0]
    out = model(empty)
    (out.logits.sum() + out.dimensions.sum() + out.embedding.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"streams": {}}, "streams"),
        ({"streams": {"a": {}}}, "frame size of a"),
        ({"kernel": 4}, "odd"),
        ({"streams": {"mel": {"size": 3}}}, "40 bands, not 3"),
    ],
)
def test_what_it_refuses(changes, match):
    with pytest.raises(UserError, match=match):
        build(CONFIG | changes, 0, True)


def test_frames_of_another_size_are_refused():
    wrong = {"a": torch.zeros(5, 6).double(), "b": torch.zeros(5, 3).double()}
    with pytest.raises(UserError, match="frames of b have 3"):
        model_of()(batch_of([wrong]))
