"""CTC of an encoder: against torch on unpadded rows, against the sum over all paths, and the alphabet it reads."""

import itertools
import math

import numpy as np
import pytest
import torch

from ser import objectives
from ser.models.alphabet import Alphabet, plain


def test_padded_rows_equal_torch_on_each_row_alone():
    generator = torch.Generator().manual_seed(0)
    frames, counts = [12, 30, 7, 19], [4, 9, 1, 6]
    scores = torch.randn(4, 30, 11, generator=generator, dtype=torch.float64)
    said = torch.randint(1, 11, (4, 9), generator=generator)
    values = objectives.ctc(scores, torch.tensor(frames), said, torch.tensor(counts))
    for i, (t, s) in enumerate(zip(frames, counts)):
        log_p = scores[i : i + 1, :t].log_softmax(-1).transpose(0, 1)
        alone = torch.nn.CTCLoss(blank=0, reduction="sum")(
            log_p, said[i : i + 1, :s], torch.tensor([t]), torch.tensor([s])
        )
        torch.testing.assert_close(values[i], alone / s, rtol=1e-12, atol=0)


def test_it_is_the_sum_over_all_alignments():
    scores, text = np.random.default_rng(1).normal(size=(5, 3)), [1, 2]
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(3), repeat=5):
        if [k for k, _ in itertools.groupby(path) if k] == text:
            total += math.prod(p[t, k] for t, k in enumerate(path))
    value = objectives.ctc(
        torch.from_numpy(scores)[None], torch.tensor([5]), torch.tensor([text]), torch.tensor([2])
    )
    assert value.item() == pytest.approx(-math.log(total) / 2, rel=1e-12)


def test_rows_that_cannot_be_said_cost_nothing_and_give_no_gradient():
    scores = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    lengths, counts = torch.tensor([6, 2, 0, 6]), torch.tensor([2, 3, 2, 0])
    said = torch.tensor([[1, 2, 0], [1, 1, 2], [3, 4, 0], [0, 0, 0]])
    values = objectives.ctc(scores, lengths, said, counts)
    # too few frames for it, no frames at all, nothing to say
    assert values[0] > 0 and values[1:].tolist() == [0, 0, 0]
    values.sum().backward()
    assert scores.grad.isfinite().all() and scores.grad[0].abs().sum() > 0 and not scores.grad[1:].any()


def test_the_alphabet_is_that_of_the_texts_in_any_order():
    texts = ["Tuo kuva, on upea!", "C'est l'\u00e9t\u00e9", None, ""]
    alphabet = Alphabet.of(texts)
    assert alphabet.characters == Alphabet.of(reversed(texts)).characters
    assert plain(texts[0]) == "tuo kuva on upea"
    assert "\u00e9" in alphabet.characters and "!" not in alphabet.characters
    numbers, counts = alphabet(["kuva!", None, "zzz kuva"])
    assert counts.tolist() == [4, 0, 5] and len(alphabet) == len(alphabet.characters) + 1
    k, u, v, a = numbers[0, :4].tolist()
    assert min(k, u, v, a) >= 1
    best = torch.nn.functional.one_hot(torch.tensor([k, u, u, 0, v, a, a]), len(alphabet)).float()
    assert alphabet.read(best, 7) == "kuva" and alphabet.read(best, 2) == "ku"
