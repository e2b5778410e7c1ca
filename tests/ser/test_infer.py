"""Every row is answered exactly once, whatever the world and the batch, and padding does not change what is said."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ser.infer import answer, inference_slots
from ser.models import build
from ser.recipe import Recipe
from ser.setting import Setting, open_setting
from tests import tiny
from tests.processes import run_ranks
from tests.ser.worlds import ALONE

KINDS = {
    "padded": tiny.HUBERT,
    "equal": tiny.HUBERT | {"group_norm": "plain"},
    "text": tiny.BERT,
    "conv": tiny.CONV,
}


def setting_of(dataset: str) -> Setting:
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}, {"loss": "ccc"}], "train": tiny.training(1),
    }  # fmt: skip
    return open_setting(Recipe.model_validate(tiny.recipe_values(Path("nowhere"), dataset, {"m": model})))


def model_of(kind: str):
    torch.manual_seed(1)
    return build(KINDS[kind], 4, True, texts=["bad awful number 1", "good soft number 2"])


def rows_asked(setting: Setting) -> np.ndarray:
    return np.random.default_rng(2).permutation(len(setting.dataset))[:37]


def answers(dataset: str, slot_seconds: tuple[float, ...]) -> list[dict]:
    """On a rank: what it got for each model and slot size."""
    from ser.distributed import join

    world, setting = join(), setting_of(dataset)
    found = []
    for seconds in slot_seconds:
        for kind in KINDS:
            said = answer(
                model_of(kind), setting.dataset, rows_asked(setting), policy=setting.policy, view=1, features={},
                slot_seconds=seconds, world=world, embedding=True,
            )  # fmt: skip
            found.append({"kind": kind} | vars(said))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_once_for_every_world_and_slot_size(world, tiny_dataset):
    setting = setting_of(tiny_dataset)
    rows = rows_asked(setting)
    alone = {
        kind: answer(
            model_of(kind), setting.dataset, rows, policy=setting.policy, view=1, features={}, slot_seconds=1e-9,
            world=ALONE, embedding=True,
        )
        for kind in KINDS
    }  # fmt: skip
    ranks = run_ranks(answers, world, tiny_dataset, (0.7, 3.0, 100.0))
    for rank in ranks:
        for said in rank:
            one = alone[said["kind"]]
            assert (said["rows"] == rows).all() and (said["state"] == 1).all() and said["quarantined"] == []
            for name in ("logits", "dimensions", "embedding"):
                assert len(said[name]) == len(rows)
                np.testing.assert_allclose(said[name], getattr(one, name), atol=2e-5, err_msg=said["kind"])
    for name in ("logits", "dimensions"):
        for first, *others in zip(*ranks):
            assert all(np.array_equal(first[name], other[name]) for other in others), "complete on every rank"


def test_a_model_that_needs_equal_lengths_gets_them(tiny_dataset):
    setting = setting_of(tiny_dataset)
    rows = np.arange(len(setting.dataset))
    lengths = np.asarray(setting.dataset.samples)
    for equal in (True, False):
        slots = inference_slots(setting.dataset, rows, setting.policy, 0, 5.0, equal)
        assert sorted(np.concatenate([s.rows for s in slots])) == list(rows)
        assert not equal or all(len(set(lengths[s.rows])) == 1 for s in slots)
        for slot in slots:
            padded = len(slot) * lengths[slot.rows].max() / 16000
            assert padded <= 5.0 or len(slot) == 1
    assert model_of("equal").needs_equal_lengths and not model_of("padded").needs_equal_lengths


def test_no_rows_and_training_mode(tiny_dataset):
    setting, model = setting_of(tiny_dataset), model_of("conv").train()
    options = {"policy": setting.policy, "features": {}, "slot_seconds": 5.0, "world": ALONE}
    said = answer(model, setting.dataset, np.empty(0, np.int64), **options)
    assert len(said.rows) == len(said.state) == 0
    twice = [answer(model, setting.dataset, np.arange(8), **options).logits for _ in range(2)]
    assert np.array_equal(*twice), "answers are given in evaluation mode"
    assert model.training, "and the mode is restored"
    assert all(p.requires_grad for p in model.parameters())


def test_an_utterance_without_text_or_audio_is_marked(tiny_dataset, monkeypatch):
    from shards.audio import BadAudio

    setting = setting_of(tiny_dataset)
    rows = np.arange(6)
    dataset = setting.dataset
    real = type(dataset).audio

    def broken(self, asked):
        return [BadAudio("cut short") if r == 2 else a for r, a in zip(asked, real(self, asked))]

    monkeypatch.setattr(type(dataset), "audio", broken)
    said = answer(
        model_of("conv"), dataset, rows, policy=setting.policy, features={}, slot_seconds=100.0, world=ALONE
    )
    assert said.state.tolist() == [1, 1, 3, 1, 1, 1]
    assert [key for key, _ in said.quarantined] == dataset.keys(rows[2:3])
