"""What every kind of model guarantees: padding, missing input, empty batches, gradients, save and load."""

import hashlib
import json

import pytest
import torch

from ser.models import count_parameters, load, save

# Largest difference between a row in a padded batch and the row alone.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def said(output) -> list[torch.Tensor]:
    """What a model answered, field by field."""
    return [part for part in output if part is not None]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
def test_padding_changes_nothing(tiny, kind, dtype):
    model = tiny.make(kind).to(dtype).eval()
    assert not model.needs_equal_lengths
    batch = tiny.batch(dtype)
    with torch.no_grad():
        together = model(batch)
        for row in range(len(batch.lengths)):
            alone = model(tiny.one_row(batch, row))
            for a, b in zip(said(alone), said(together), strict=True):
                if a.dtype == torch.bool:
                    assert a[0] == b[row]
                else:
                    assert b.isfinite().all()
                    assert (a[0] - b[row]).abs().max() < TOLERANCE[dtype], (row, kind)


def test_shapes_and_rows_without_input(tiny, kind):
    model, batch = tiny.make(kind), tiny.batch()
    out = model(batch)
    assert out.logits.shape == (5, 4) and out.dimensions.shape == (5, 3)
    assert out.embedding.shape == (5, model.embedding_size)
    assert out.has_input.tolist() == [True] * 4 + [False]
    for part in (out.logits, out.dimensions, out.embedding):
        assert (part[4] == 0).all() and (part[:4] != 0).any()


def test_gradients_are_finite_and_reach_all_that_trains(tiny, kind):
    model = tiny.make(kind)
    out = model(tiny.batch())
    (out.logits.square().sum() + out.dimensions.square().sum() + out.embedding.square().sum()).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert p.grad is None or p.grad.isfinite().all(), name


def test_an_empty_batch_is_connected_to_all_that_trains(tiny, kind):
    model, batch = tiny.make(kind), tiny.batch()
    empty = type(batch)(
        waveform=batch.waveform[:0, :0],
        lengths=batch.lengths[:0],
        features={n: x[:0, :0] for n, x in batch.features.items()},
        feature_lengths={n: x[:0] for n, x in batch.feature_lengths.items()},
        text=[],
    )
    out = model(empty)
    assert out.logits.shape == (0, 4) and out.dimensions.shape == (0, 3)
    assert out.embedding.shape == (0, model.embedding_size) and out.has_input.shape == (0,)
    (out.logits.sum() + out.dimensions.sum() + out.embedding.sum()).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and (p.grad == 0).all(), name


def test_saved_and_loaded_answers_are_equal_to_the_bit(tiny, kind, tmp_path):
    model, batch = tiny.make(kind).eval(), tiny.batch()
    save(model, tmp_path / "m", {"names": ["a", "b", "c", "d"]})
    state = torch.get_rng_state()
    again, meta = load(tmp_path / "m")
    assert torch.equal(state, torch.get_rng_state())
    assert meta == {"names": ["a", "b", "c", "d"]} and not again.training
    with torch.no_grad():
        for a, b in zip(said(model(batch)), said(again(batch)), strict=True):
            assert torch.equal(a, b)
    assert again.config == model.config and again.inputs == model.inputs
    assert count_parameters(again) == count_parameters(model)
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    # And once more: what was loaded saves to the same bytes.
    save(again, tmp_path / "n", meta)
    for file in (tmp_path / "m").iterdir():
        assert file.read_bytes() == (tmp_path / "n" / file.name).read_bytes(), file.name
    facts = json.loads((tmp_path / "m" / "model.json").read_text())
    for name, digest in facts["files"].items():
        assert hashlib.sha256((tmp_path / "m" / name).read_bytes()).hexdigest() == digest


def test_half_precision_answers(tiny, kind):
    model = tiny.make(kind).to(torch.bfloat16).eval()
    with torch.no_grad():
        out = model(tiny.batch())
    assert out.logits.isfinite().all() and out.dimensions.isfinite().all()
