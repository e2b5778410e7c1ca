"""The released multilingual code's set-up: a teacher trained on split 2 and a student of it tested on split 1.

Exposure refuses it under STRICT, whoever the student is; LEGACY lets it pass with a red line in the report.
"""

from typing import Any

import pytest

from ser.build import gather_ingredients
from ser.evaluate import evaluate
from ser.job import Job
from ser.recipe import Recipe
from ser.report import write_page
from ser.setting import open_setting
from ser.strict import validate
from shards.errors import UserError
from tests import tiny
from tests.faults import train_one
from tests.ser.worlds import ALONE

SPLIT_1, SPLIT_2 = "session-ses0", "session-ses1"
LEARNS = [
    {"loss": "cross_entropy", "weight": 0.75},
    {"loss": "multi_kl", "teachers": ["en", "fi"], "weight": 0.25},
]


def values(folder, dataset: str, strictness: str, teacher_fold: str | None = SPLIT_2) -> dict[str, Any]:
    def entry(role: str, objective: list, **more: Any) -> dict[str, Any]:
        return {"role": role, "model": tiny.CONV, "objective": objective, "train": tiny.training(2)} | more

    labels = [{"loss": "cross_entropy"}]
    models = {
        "en": entry("teacher", labels, rows={"language": ["en"]}),
        "fi": entry("teacher", labels, rows={"language": ["fi"]}),
        "student": entry("student", LEARNS, teacher_fold=teacher_fold),
    }
    made = tiny.recipe_values(folder, dataset, models, folds=[SPLIT_1, SPLIT_2], targets={"source": "online"})
    made["protocol"]["strictness"] = strictness
    return made


def train(given: dict, names: tuple[str, ...]) -> None:
    for name in names:
        for fold in (SPLIT_1, SPLIT_2):
            train_one(given, (fold, name, 0))


def test_a_teacher_of_split_2_is_refused_for_a_student_of_split_1(tiny_dataset, tmp_path):
    given = values(tmp_path, tiny_dataset, "STRICT")
    train(given, ("en", "fi"))
    setting = open_setting(validate(Recipe, given, where="test"))
    with pytest.raises(UserError) as refused:
        gather_ingredients(setting, Job(SPLIT_1, "student", 0), ALONE)
    text = str(refused.value)
    assert "STRICT: en was fitted on 1 test entry of fold session-ses0: tiny/s1" in text
    assert "fi was fitted on 1 test entry of fold session-ses0: tiny/s0" in text
    assert "strictness: LEGACY in the protocol shows such a number with a red line" in text
    # where the teachers' split is the student's own, nothing is wrong
    assert gather_ingredients(setting, Job(SPLIT_2, "student", 0), ALONE)
    # and with teachers of its own split the student of split 1 is fine
    own = open_setting(validate(Recipe, values(tmp_path, tiny_dataset, "STRICT", None), where="test"))
    assert gather_ingredients(own, Job(SPLIT_1, "student", 0), ALONE)


@pytest.mark.slow
def test_legacy_lets_it_pass_with_a_red_line(tiny_dataset, tmp_path):
    given = values(tmp_path, tiny_dataset, "LEGACY")
    train(given, ("en", "fi", "student"))
    setting = open_setting(validate(Recipe, given, where="test"))
    report = evaluate(setting)
    leaks = [f for f in report["findings"] if f["level"] == "leak"]
    assert {f["fold"] for f in leaks} == {SPLIT_1}
    assert any(
        f["text"].startswith("en was fitted on 1 test entry") and "tiny/s1" in f["text"] for f in leaks
    )
    assert any(f["text"].startswith("student was fitted on 2 test entries") for f in leaks), (
        "closed over its teachers"
    )
    page = write_page(report, tmp_path / "report.html").read_text()
    assert "LEAKS" in page and 'class="leak">LEAK, exposure:' in page and "LEGACY" in page
    assert "There are leaks: what follows is no estimate for new speakers." in page


def test_it_cannot_be_had_through_stored_targets(tiny_dataset, tmp_path):
    given = values(tmp_path, tiny_dataset, "LEGACY") | {"targets": {"source": "stored"}}
    with pytest.raises(UserError, match="stored targets are of its own training and dev rows"):
        validate(Recipe, given, where="test")


def test_a_fold_of_teachers_that_is_not_there_is_named(tiny_dataset, tmp_path):
    given = values(tmp_path, tiny_dataset, "LEGACY", "session-ses9")
    with pytest.raises(UserError, match=r"no fold 'session-ses9' for the teachers of student in this run"):
        gather_ingredients(
            open_setting(validate(Recipe, given, where="test")), Job(SPLIT_1, "student", 0), ALONE
        )
