"""Bad input of teachers, texts, languages, folds, dimensions and batches: a clear message, or a value that is defined."""

from typing import Any

import numpy as np
import pytest
import torch

from ser import objectives
from ser.build import gather_ingredients
from ser.infer import answer
from ser.job import Job, directory
from ser.models import build, save
from ser.models.config import parse_config
from ser.models.external import read
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.strict import validate
from ser.train import train
from shards.errors import UserError
from shards.pack import pack
from tests import tiny
from tests.ser.worlds import ALONE

FOLD = "session-ses0"
CLASSES, RATED = [{"loss": "cross_entropy"}], [{"loss": "ccc"}]


def model(
    kind: dict = tiny.CONV, objective: list = CLASSES, role: str = "baseline", **train: Any
) -> dict[str, Any]:
    return {"role": role, "model": kind, "objective": objective, "train": tiny.training(2, **train)}


def opened(folder, dataset, models, **changes):
    values = tiny.recipe_values(folder, dataset, models)
    values["protocol"] |= changes
    return open_setting(validate(Recipe, values, where="test"))


def altered(folder, change) -> str:
    """The tiny dataset with every utterance put through `change`."""
    from dataclasses import replace

    out = str(folder / "dataset")
    pack(
        [replace(u, **change(i, u)) for i, u in enumerate(tiny.utterances(folder / "wav"))],
        out,
        shard_seconds=8.0,
    )
    return out


# -- teachers with another label space, order or scale -----------------------------------------------------------------


def answers(folder, **row) -> dict[str, Any]:
    path = folder / "answers.jsonl"
    path.write_text(
        "".join(
            f'{{"key": "k{i}", {", ".join(f""""{k}": {v}""" for k, v in row.items())}}}\n' for i in range(3)
        )
    )
    return {"kind": "external", "files": str(path), "model": "them/theirs", "licence": "MIT"}


def test_a_teacher_with_another_label_space_is_mapped_when_declared_and_refused_when_not(tmp_path):
    given = answers(tmp_path, probabilities=[0.7, 0.2, 0.1]) | {"labels": ["ang", "exc", "dis"]}
    with pytest.raises(
        UserError,
        match="no class of the protocol for ",
    ):
        read(parse_config(given), tiny.CLASSES, False)
    said = read(
        parse_config(given | {"classes": {"ang": "angry", "exc": "happy", "dis": None}}), tiny.CLASSES, False
    )
    torch.testing.assert_close(
        said.get_buffer("logits")[0].softmax(0), torch.tensor([7 / 9, 2 / 9, 0.0, 0.0]), atol=1e-6, rtol=1e-5
    )


def test_a_teacher_in_another_order_is_mapped_when_declared_and_refused_when_not(tmp_path):
    given = answers(tmp_path, probabilities=[0.1, 0.2, 0.3, 0.4])
    other = list(reversed(tiny.CLASSES))
    with pytest.raises(UserError, match="4 numbers, `labels` names 0"):
        read(parse_config(given), tiny.CLASSES, False)
    said = (
        read(parse_config(given | {"labels": other}), tiny.CLASSES, False).get_buffer("logits")[0].softmax(0)
    )
    torch.testing.assert_close(said, torch.tensor([0.4, 0.3, 0.2, 0.1]))


def test_a_teacher_on_another_scale_is_mapped_when_declared_and_refused_when_not(tmp_path):
    given = answers(tmp_path, dimensions=[1.0, 4.0, 7.0]) | {
        "dimensions": ["arousal", "dominance", "valence"]
    }
    with pytest.raises(UserError, match="need their `scale`"):
        parse_config(given)
    with pytest.raises(UserError, match=r"not on \[0, 1\]"):
        read(parse_config(given | {"scale": [0, 1]}), (), True)
    said = read(parse_config(given | {"scale": [1, 7]}), (), True).get_buffer("values")[0]
    assert said.tolist() == [1.0, 0.0, 0.5]


def test_weights_to_start_from_of_other_classes_are_refused(tiny_dataset, tmp_path):
    """As many of them in another order fit by shape, and would start every head on the wrong class."""
    other = save(
        build(tiny.CONV, 4, False), tmp_path / "other", {"classes": ["calm", "sad", "happy", "angry"]}
    )
    setting = opened(tmp_path, tiny_dataset, {"m": model(init_from=str(other))})
    with pytest.raises(
        UserError, match="init_from tells apart calm, sad, happy, angry, this protocol angry, happy"
    ):
        gather_ingredients(setting, Job(FOLD, "m", 0), ALONE)


# -- missing text ------------------------------------------------------------------------------------------------------


def test_a_text_teacher_without_any_text_is_refused(tmp_path):
    silent = altered(tmp_path, lambda i, u: {"text": None, "text_source": "none"})
    mixed = {"kind": "fused", "frozen": False, "embedding": 8, "components": {"a": tiny.CONV, "b": tiny.BERT}}
    for kind in (tiny.BERT, mixed):
        setting = opened(tmp_path, silent, {"m": model(kind, role="teacher")})
        with pytest.raises(UserError, match="m reads, and no training utterance has a transcript in text"):
            gather_ingredients(setting, Job(FOLD, "m", 0), ALONE)


def test_a_text_teacher_says_nothing_of_utterances_without_text_and_they_teach_nothing(tmp_path):
    from ser.produce import serial, teacher_work

    some = altered(tmp_path, lambda i, u: {"text": None, "text_source": "none"} if i % 3 == 0 else {})
    student = model(objective=[*CLASSES, {"loss": "kl", "teacher": "t"}], role="student")
    setting = opened(tmp_path, some, {"t": model(tiny.BERT, role="teacher"), "s": student})
    train(setting.recipe, Job(FOLD, "t", 0))
    list(serial(setting.recipe, teacher_work(setting, Job(FOLD, "t", 0))))
    x = gather_ingredients(setting, Job(FOLD, "s", 0), ALONE)
    slots = x.plan.step(0)
    rows = np.concatenate([slot.rows for slot in slots])
    spoken = np.asarray(setting.dataset.bits)[rows] & 8 != 0
    assert 0 < spoken.sum() < len(rows) and x.objective.totals(slots)["kl/t"] == spoken.sum()


# -- folds, dimensions, batches ------------------------------------------------------------------------------------------


def test_a_fold_whose_training_labels_are_of_one_class_is_refused(tmp_path):
    """Session 0 and its dev session have all classes, the others shout only."""
    loud = altered(
        tmp_path, lambda i, u: {} if u.session in ("ses0", "ses1") else {"label": "angry", "votes": ()}
    )
    setting = opened(tmp_path, loud, {"m": model()})
    with pytest.raises(UserError, match="every training label is angry: one class alone") as caught:
        gather_ingredients(setting, Job(FOLD, "m", 0), ALONE)
    assert "fold session-ses0" in str(caught.value)


def test_a_fold_tested_on_one_class_has_a_score_over_that_class_and_says_so(tmp_path):
    calm = altered(tmp_path, lambda i, u: {"label": "calm", "votes": ()} if u.session == "ses0" else {})
    setting = opened(tmp_path, calm, {"m": model()})
    from ser.leaks import inspect

    told = [f.text for f in inspect(setting.protocol, setting.dataset, [setting.folds[FOLD]])]
    assert "fold session-ses0: no utterance of angry, happy, sad in test" in told
    train(setting.recipe, Job(FOLD, "m", 0))
    said = answer_of(setting, "m")
    truth = setting.labels.classes[setting.folds[FOLD].test]
    from ser.score import score

    values = score(said, setting.labels)
    assert values["ua"] == pytest.approx((said.logits.argmax(1) == truth).mean())


def answer_of(setting, name):
    from ser.models import load

    trained, _ = load(directory(setting.recipe, Job(FOLD, name, 0)) / "model")
    return answer(
        trained, setting.dataset, setting.folds[FOLD].test, policy=setting.policy, features={}, slot_seconds=6.0, world=ALONE
    )  # fmt: skip


def test_a_constant_dimension_has_no_ccc_in_the_report_and_no_gradient_in_training(tmp_path):
    flat = altered(tmp_path, lambda i, u: {"dominance": 4.0})
    setting = opened(tmp_path, flat, {"m": model(objective=RATED)}, select_metric="ccc_arousal")
    train(setting.recipe, Job(FOLD, "m", 0))
    rows, said = setting.folds[FOLD].test, answer_of(setting, "m")
    truth, told = setting.labels.dimensions[rows], said.dimensions
    from ser.metrics import ccc, ccc_reason

    assert truth[:, 2].std() == 0 and ccc(told[:, 2], truth[:, 2]) == 0
    assert np.isnan(ccc(truth[:, 2], truth[:, 2])) and "constant" in ccc_reason(truth[:, 2], truth[:, 2])
    sums = objectives.moments(torch.tensor(told), torch.tensor(truth), torch.ones(len(rows)))
    slope = objectives.ccc_gradient(sums, torch.tensor(told), torch.tensor(truth), torch.ones(len(rows)))
    assert (slope[:, 2] == 0).all() and slope[:, 1].abs().max() > 0


@pytest.mark.parametrize("kind", [tiny.CONV, tiny.HUBERT, tiny.BERT], ids=lambda kind: kind["kind"])
def test_a_batch_of_one_trains(kind, tiny_dataset, tmp_path):
    """Slots so short that each holds one utterance: CCC of one is defined, and nothing is divided by a spread of zero."""
    import json

    setting = opened(tmp_path, tiny_dataset, {"m": model(kind, [*CLASSES, *RATED], slot_seconds=0.1)})
    x = gather_ingredients(setting, Job(FOLD, "m", 0), ALONE)
    assert [len(slot) for slot in x.plan.step(0)] == [1]
    train(setting.recipe, Job(FOLD, "m", 0))
    lines = (directory(setting.recipe, Job(FOLD, "m", 0)) / "events.jsonl").read_text().splitlines()
    losses = [event["loss"] for line in lines if (event := json.loads(line)).get("kind") == "train"]
    assert len(losses) == 2 and np.isfinite(losses).all()
