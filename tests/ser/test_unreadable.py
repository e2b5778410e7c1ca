"""Utterances that cannot be read or answered: too many of them end a stage, now and at the next call."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ser.job import Job
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.strict import validate
from shards.errors import UserError
from tests import tiny
from tests.ser.small_recipe import CE, FOLD, model, values


def work_of(count: int, teacher: Job | None = None) -> list[Any]:
    from ser.produce import Work

    name = teacher.model if teacher else "mel"
    return [Work(teacher, 0, 1, {name: np.arange(count)}), Work(teacher, 0, 2, {name: np.arange(count)})]


@pytest.mark.parametrize("teacher,what", [(None, "features"), (Job(FOLD, "text", 0), "targets of text")])
def test_a_stage_with_too_many_unreadable_utterances_fails(teacher, what):
    from ser.produce import Done
    from ser.quarantine import Quarantine

    recipe = SimpleNamespace(data=SimpleNamespace(max_quarantined=0.05, path="data/x"))
    tally = Quarantine(recipe, work_of(100, teacher))  # type: ignore[arg-type]
    bad = [(f"k{i}", "no frames") for i in range(6)]
    tally.add(Done(50, 1.0, bad[:5]))
    tally.add(Done(50, 1.0, bad[:5]))  # the same ones in another view count once
    with pytest.raises(UserError) as error:
        tally.add(Done(50, 1.0, bad[5:]))
    message = str(error.value)
    assert f"{what}: 6 of 100 utterances" in message and "k0: no frames; k1: no frames; k2" in message
    assert "data.max_quarantined=0.06 goes on" in message


@pytest.mark.slow
def test_features_that_are_not_finite_fail_now_and_at_the_next_call(tmp_path, monkeypatch):
    from ser import produce

    kind, stored = tiny.CONV | {"features": "stored"}, {"mel": {"kind": "mel", "options": {"bands": 20}}}
    made = values(tmp_path, {"m": model(CE, kind=kind)}, tiny.make_dataset(tmp_path), features=stored)
    setting = open_setting(validate(Recipe, made, where="test"))
    work, right = produce.feature_work(setting), produce._extractor

    def broken(config: str) -> Any:
        def extract(*audio: Any) -> tuple:
            frames, lengths = right(config)(*audio)
            return frames * float("nan"), lengths

        return extract

    monkeypatch.setattr(produce, "_extractor", broken)
    with pytest.raises(UserError, match=r"features: \d+ of 64 utterances .*tiny-u\d+: its mel is not finite"):
        list(produce.serial(setting.recipe, work))
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"mel: \d+ of 64 utterances .*more than data.max_quarantined=0.01: tiny-u"
    ):
        produce.feature_work(
            setting
        )  # committed as given up: a second call does not go on as if nothing was wrong
    patient = copy.deepcopy(made)
    patient["data"]["max_quarantined"] = 0.5
    assert produce.feature_work(open_setting(validate(Recipe, patient, where="test")))
