"""Teachers that answer as they come, in a whole run: no training, unknown exposure, and their licence goes to the student."""

import json

import numpy as np
import pytest

from ser.job import Job, directory, identity
from ser.produce import serial, teacher_spec, teacher_work
from ser.recipe import load
from ser.setting import open_setting
from ser.train import train
from shards.dataset import Dataset
from shards.errors import UserError
from tests import tiny
from tests.ser.models.test_model_adapters import released

STUDENT = {
    "role": "student", "model": tiny.CONV, "data": "all", "train": tiny.training(3),
    "objective": [{"loss": "cross_entropy"}, {"loss": "ccc"}],
}  # fmt: skip
NC = "CC BY-NC-SA 4.0"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("ready"))


def run(folder, url, teacher, terms, **changes):
    student = STUDENT | {"objective": STUDENT["objective"] + terms}
    values = tiny.recipe_values(
        folder, url, {"teacher": {"role": "teacher", "model": teacher}, "student": student}, **changes
    )
    recipe = load(str(tiny.write_recipe(folder, values)))
    setting = open_setting(recipe)
    (fold,) = setting.folds
    train(recipe, Job(fold, "teacher", 0))
    list(serial(recipe, teacher_work(setting, Job(fold, "teacher", 0))))
    train(recipe, Job(fold, "student", 0))
    metas = [
        json.loads((directory(recipe, Job(fold, n, 0)) / "model/model.json").read_text())["meta"]
        for n in ("teacher", "student")
    ]
    return setting, teacher_spec(setting, Job(fold, "teacher", 0)), *metas


def test_audeerings_answers_teach_a_student(url, tmp_path):
    hub = tmp_path / "audeering"
    released(hub)
    (hub / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n# A card\n")
    teacher = {"kind": "audeering", "name": str(hub)}
    terms = [{"loss": "dimensions", "teacher": "teacher"}, {"loss": "embedding", "teacher": "teacher"}]
    with pytest.raises(UserError, match="unknown"):
        run(tmp_path / "refused", url, teacher, terms) if (tmp_path / "refused").mkdir() is None else None
    _, spec, told, student = run(tmp_path, url, teacher, terms, allow_unknown=[str(hub)])
    assert (
        told["exposure"]["unknown"] == [str(hub)] and not told["exposure"]["fit"] and told["licences"] == []
    )
    assert any(NC in x for x in told["inherited"]) and any(NC in x for x in spec.fields["licences"])
    assert any(NC in x for x in student["inherited"]) and str(hub) in student["exposure"]["unknown"]


def test_answers_from_files_teach_a_student(url, tmp_path):
    data, rng = Dataset.open(url), np.random.default_rng(0)
    keys = data.keys(np.arange(len(data)))
    rows = [
        {
            "key": k,
            "probabilities": rng.dirichlet(np.ones(4)).tolist(),
            "embedding": rng.normal(size=6).tolist(),
        }
        for k in keys
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    teacher = {
        "kind": "external", "files": str(tmp_path / "a.jsonl"), "model": "speechbrain/emotion", "licence": NC,
        "labels": list(tiny.CLASSES),
    }  # fmt: skip
    terms = [{"loss": "kl", "teacher": "teacher"}, {"loss": "embedding", "teacher": "teacher"}]
    allowed = {"allow_unknown": ["speechbrain/emotion"]}
    with pytest.raises(UserError, match="any_view"):
        run(tmp_path, url, teacher, terms, **allowed)
    setting, spec, told, student = run(tmp_path, url, teacher | {"any_view": True}, terms, **allowed)
    assert spec.view_invariant and [o.name for o in spec.outputs] == ["logits", "embedding"]
    assert told["inherited"] == [f"speechbrain/emotion: {NC}"] and student["inherited"] == told["inherited"]
    (fold,) = setting.folds
    jobs = [Job(fold, name, 0) for name in ("teacher", "student")]
    before = [identity(setting, job) for job in jobs]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    setting.memo.clear()
    after = [identity(setting, job) for job in jobs]
    assert before[0] != after[0] and before[1] != after[1], (
        "a mended file repeats the teacher and who learns from it"
    )
