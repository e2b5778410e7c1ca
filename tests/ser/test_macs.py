"""Multiply-accumulates against hand-made counts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ser.macs import count_macs
from ser.models import build
from tests import tiny


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Linear(7, 5), (3, 11, 7), 3 * 11 * 7 * 5),
        (nn.Conv1d(4, 6, 3, 2), (2, 4, 21), 2 * 10 * 6 * 4 * 3),
        (nn.Conv1d(6, 6, 3, groups=6), (1, 6, 12), 10 * 6 * 3),
        # three gates, input and state
        (nn.GRU(4, 8, batch_first=True), (1, 10, 4), 10 * 3 * 8 * (4 + 8)),
        # qkv, scores, mixture, out, then 8 -> 16 -> 8
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            (1, 9, 8),
            9 * 8 * 24 + 2 * 9 * 9 * 8 + 9 * 8 * 8 + 2 * 9 * 8 * 16,
        ),
    ],
    ids=["linear", "conv", "depthwise", "gru", "transformer"],
)
def test_equal_to_the_count_by_hand(module, shape, macs):
    assert count_macs(Wrapped(module), [torch.randn(*shape)]) == macs


def test_twice_the_speech_of_a_convolution_is_twice_the_work():
    torch.manual_seed(0)
    model = build(tiny.CONV, 4, True)

    def batch(seconds: int):
        n = 16000 * seconds
        return SimpleNamespace(
            waveform=torch.randn(1, n), lengths=torch.tensor([n]), features={}, feature_lengths={}, text=None
        )

    one, four = count_macs(model, [batch(1)]), count_macs(model, [batch(4)])
    assert 3.9 < four / one < 4.1  # a second gives 98 frames of 25 ms, four give 398
    assert count_macs(model, [batch(1), batch(1)]) == 2 * one
