"""What a recipe asks of its protocol is checked before anything is made; a model has the heads that something trains."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ser.agreement import agree, check_dev, outputs
from ser.job import Job, directory
from ser.protocol import Fold, Labels, load_protocol
from ser.recipe import Recipe, load
from ser.setting import open_setting
from ser.strict import validate
from ser.train import train
from shards.errors import UserError
from tests import tiny
from tests.ser.small_recipe import CCC, CE, FOLD, facts_of, model, product, trained, values


def refused(folder: Path, *arguments: Any, **more: Any) -> str:
    """The message with which a recipe file is refused when it is read: nothing is packed, opened or trained."""
    path = tiny.write_recipe(folder, values(folder, *arguments, **more))
    with pytest.raises(UserError) as error:
        load(str(path))
    assert sorted(p.name for p in folder.iterdir()) == ["recipe.yaml"]
    assert error.value.hint and ("models.m" in str(error.value) or "protocol" in str(error.value))
    return str(error.value)


# -- refused when it is read ---------------------------------------------------------------------------------------------

TEACHER = {"t": model(CE, role="teacher"), "d": model(CCC, role="teacher")}


LAST = {"checkpoint": "last"}


LONE = {"dev": None, "checkpoint": "last"}


NO_CLASSES: dict = {"classes": {}, "select_metric": "ccc"}


def learner(loss: str, teacher: str, **more: Any) -> dict[str, Any]:
    return TEACHER | {"m": model(CE, CCC, {"loss": loss, "teacher": teacher, **more})}


@pytest.mark.parametrize(
    "models,protocol,expected",
    [
        ({"m": model(CE)}, {"select_metric": "ccc"}, ["select_metric ccc", "add {loss: ccc}", "select_metric: ua"]),
        ({"m": model(CCC)}, {}, ["select_metric ua", "add {loss: cross_entropy}", "select_metric: ccc"]),
        ({"m": model(CCC)}, {"select_metric": "loss"}, ["select_metric loss", "models.m.objective"]),
        ({"m": model(CE, CCC)}, {"select_metric": "ccc_valence", "dimensions": ["arousal"]}, ["needs valence", "select_metric=ua"]),
        ({"m": model(CCC)}, NO_CLASSES | {"select_metric": "ua"}, ["needs classes", "select_metric=ccc"]),
        (learner("kl", "d"), LAST, ["models.m.objective.2", "classes of d", "to models.d.objective"]),
        (learner("dimensions", "t"), LAST, ["models.m.objective.2", "dimensions of t", "add {loss: ccc} to models.t"]),
        ({"m": model(CE)}, NO_CLASSES, ["models.m.objective.0", "cross_entropy needs classes", "has none"]),
        ({"m": model(CCC)}, {"dimensions": []}, ["models.m.objective.0", "ccc needs dimensions"]),
        ({"m": model(CE, CCC | {"weight": 0})}, {}, ["models.m.objective.1", "weight 0 trains nothing"]),
        (TEACHER | {"m": model({"loss": "embedding", "teacher": "t"})}, LAST, ["models.m.objective", "nothing to score"]),
        ({"m": model(CE, train=tiny.training(2, patience=1))}, LONE, ["train.patience", "needs dev rows", "dev: {by: speaker"]),
        ({"m": model(CE, search={"steps": [1, 2]})}, LONE, ["`search` needs dev rows"]),
        ({"m": {"role": "baseline", "model": {"kind": "classical"}}}, NO_CLASSES, ["tells classes apart"]),
        ({"m": model(CE, CCC | {"scope": "slot"})}, {}, ["models.m.objective.1", "scope: slot", "only strictness LEGACY"]),
        (learner("kl", "t", reduction="mean"), LAST, ["reduction: mean", "protocol.strictness=LEGACY"]),
        (
            TEACHER | {"t2": model(CE), "m": model({"loss": "multi_kl", "teachers": ["t", "t2"], "weights": "batch_cosine"})},
            LAST,
            ["weights: batch_cosine", "set it to cosine"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_recipe_is_read(tmp_path, models, protocol, expected):
    message = refused(tmp_path, models, protocol=protocol)
    assert [text for text in expected if text not in message] == [], message


@pytest.mark.parametrize(
    "models,more,expected",
    [
        (learner("embedding", "t"), {"targets": {"embedding": False}}, "models.m.objective.2: an embedding term needs stored embeddings: set targets.embedding=true"),
        ({"a": model(CE), "b": model(CE), "m": product("a", "b", cross_fit=2)}, {}, "set models.a.cross_fit=2"),
        ({"a": model(CE, cross_fit=2), "b": model(CE, cross_fit=3), "m": product("a", "b", cross_fit=2)}, {}, "set models.b.cross_fit=2"),
        ({"a": model(CE, cross_fit=2), "b": model(CE, cross_fit=2, seeds=[4]), "m": product("a", "b", cross_fit=2, seeds=[0])}, {}, "set models.b.seeds=[0]"),
        (TEACHER | {"m": model({"loss": "kl", "teacher": "t"}, cross_fit=2)}, {}, "through the targets of t; set models.m.cross_fit=0"),
        ({"m": model(CE, cross_fit=1)}, {}, "one part is all speakers"),
        ({"a": model(CE), "m": product("a") | {"model": {"kind": "fused", "mode": "product", "components": {"a": None, "x": tiny.CONV}}}}, {}, "nothing trains the experts of a product"),
        ({"m": model(CE | {"tau": 3})}, {}, "`tau` says nothing with loss cross_entropy, only with multi_kl"),
        (TEACHER | {"m": model({"loss": "multi_kl", "teachers": ["t", "d"], "teacher": "t"})}, {}, "`teacher` says nothing with loss multi_kl"),
        ({"m": model(CE, train=tiny.training(2, offload="parameters", zero_stage=2))}, {}, "offload parameters needs zero_stage 3"),
        ({"m": model(CE, train=tiny.training(2, checkpoint_every="soon"))}, {}, "neither a number of steps nor a time"),
        ({"m": model(CE, train=tiny.training(2, checkpoint_every=0))}, {}, "neither a number of steps nor a time"),
        ({"m": model(CE)}, {"tuned_on": {"selection": "sideways", "data": "x"}}, "tuned_on.selection"),
    ],
)  # fmt: skip
def test_models_that_cannot_work_together_are_refused(tmp_path, models, more, expected):
    with pytest.raises(UserError) as error:
        load(str(tiny.write_recipe(tmp_path, values(tmp_path, models, protocol=LAST, **more))))
    assert expected in str(error.value)


def test_legacy_options_pass_under_legacy(tmp_path):
    models = learner("kl", "t", reduction="mean")
    models["m"]["objective"][1] = CCC | {"scope": "slot"}
    rules = LAST | {"strictness": "LEGACY"}
    assert load(str(tiny.write_recipe(tmp_path, values(tmp_path, models, protocol=rules)))).models


def recipe_of(models: dict, **more: Any) -> Recipe:
    return validate(Recipe, values(Path("x"), models, **more), where="test")


def test_a_model_answers_what_its_terms_train_and_a_product_what_its_experts_do():
    models = learner("kl", "t") | {
        "both": product("t", "d"), "one": product("d", "d2"), "d2": model(CCC),
        "joined": model(CCC, kind={"kind": "fused", "mode": "concat", "components": {"t": None, "d": None}}),
        "taught": model({"loss": "multi_kl", "teachers": ["t", "both"]}),
    }  # fmt: skip
    recipe = recipe_of(models)
    expected = {
        "t": (1, 0),
        "d": (0, 1),
        "m": (1, 1),
        "both": (1, 1),
        "one": (0, 1),
        "joined": (0, 1),
        "taught": (1, 0),
    }
    assert {name: tuple(map(int, outputs(recipe, name))) for name in expected} == expected


def test_dev_rows_without_the_labels_that_choose_are_refused():
    recipe = recipe_of({"m": model(CE, CCC)}, protocol={"select_metric": "ccc_valence"})
    dimensions = np.full((4, 3), np.nan, np.float32)
    dimensions[:, 1] = 0.5
    labels = Labels(("a", "b"), np.zeros(4, np.int64), None, dimensions, np.ones(4, bool))
    rows = np.arange(2)
    fold = Fold("f", rows + 2, rows, rows + 2, rows + 2)
    protocol = load_protocol(recipe.protocol)
    with pytest.raises(UserError, match="no dev utterance has a label that select_metric ccc_valence needs"):
        check_dev(protocol, recipe.models["m"], labels, fold)
    dimensions[1, 0] = 0.5
    check_dev(protocol, recipe.models["m"], labels, fold)
    agree(recipe, protocol)


# -- mistakes that used to end a training after its last step --------------------------------------------------------------


def test_a_protocol_without_dev_trains_to_the_last_weights(tmp_path, tiny_dataset):
    models = {"m": model(CE, train=tiny.training(2, evaluate_every=1))}
    folder = trained(tmp_path, tiny_dataset, models, protocol=LONE)
    assert facts_of(folder)["meta"]["training"]["chosen"] == "last"
    assert set(pq.read_table(folder / "predictions.parquet")["split"].to_pylist()) == {"test"}


def test_a_metric_that_nothing_is_chosen_by_need_not_be_answered(tmp_path, tiny_dataset):
    folder = trained(tmp_path, tiny_dataset, {"m": model(CCC)}, protocol=LAST)
    assert facts_of(folder)["meta"]["training"]["chosen"] == "last"


def test_a_recipe_that_came_past_the_reader_is_refused_before_the_first_step(tmp_path, tiny_dataset):
    with pytest.raises(UserError, match="select_metric ccc of protocol tiny needs dimensions"):
        trained(tmp_path, tiny_dataset, {"m": model(CE)}, protocol={"select_metric": "ccc"})


def test_a_model_without_a_class_term_has_no_class_head(tmp_path, tiny_dataset):
    """Under a protocol with classes: nothing is stored, chosen or scored by logits that nobody trained."""
    from ser.produce import teacher_spec

    chosen = {"select_metric": "ccc"}
    folder = trained(tmp_path, tiny_dataset, {"m": model(CCC, role="teacher")}, protocol=chosen)
    facts = facts_of(folder)
    assert (facts["classes"], facts["dimensions"]) == (0, True)
    assert facts["meta"]["training"]["chosen"].startswith("step")
    table = pq.read_table(folder / "predictions.parquet")
    assert table["logits"].null_count == len(table) and table["dimensions"].null_count == 0
    recipe = validate(
        Recipe, values(tmp_path, {"m": model(CCC, role="teacher")}, tiny_dataset, chosen), where="test"
    )
    assert [o.name for o in teacher_spec(open_setting(recipe), Job(FOLD, "m", 0)).outputs] == [
        "dimensions",
        "embedding",
    ]


@pytest.mark.parametrize(
    "model_name,fold,expected", [("mm", FOLD, "no model 'mm'"), ("m", "ses0", "no fold 'ses0'")]
)
def test_a_training_that_the_recipe_does_not_have_is_refused(
    tmp_path, tiny_dataset, model_name, fold, expected
):
    recipe = validate(Recipe, values(tmp_path, {"m": model(CE)}, tiny_dataset), where="test")
    with pytest.raises(UserError, match=expected) as error:
        train(recipe, Job(fold, model_name, 0))
    assert (FOLD if fold != FOLD else "did you mean 'm'") in str(error.value)


@pytest.mark.slow
def test_torchrun_names_models_and_folds(tmp_path, tiny_dataset):
    path = tiny.write_recipe(tmp_path, values(tmp_path, {"m": model(CE)}, tiny_dataset))
    for arguments, expected in ((["mm", FOLD], "no model 'mm'"), (["m", "nofold"], f"folds: {FOLD}")):
        done = subprocess.run(
            [sys.executable, "-m", "ser", str(path), *arguments, "0"], capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


# -- cross-fitting a product ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_copies_of_a_product_are_made_of_copies(tmp_path, tiny_dataset):
    """Copy k of a product has not heard part k, through any component; and what it says differs from the whole one's."""
    import shutil

    from ser import produce
    from ser.exposure import of_rows
    from ser.job import jobs
    from ser.sources import parts_of

    shutil.copytree(tiny_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("targets"))
    wide = tiny.CONV | {"width": 12}
    models = {
        "a": model(CE, role="teacher", cross_fit=2), "b": model(CE, CCC, role="teacher", kind=wide, cross_fit=2),
        "m": product("a", "b", cross_fit=2),
    }  # fmt: skip
    recipe = validate(Recipe, values(tmp_path, models, str(tmp_path / "dataset")), where="test")
    for name in recipe.order():
        for job in jobs(recipe, FOLD, name):
            train(recipe, job)
    setting = open_setting(recipe)
    fold, data = setting.folds[FOLD], setting.dataset
    parts = parts_of(data, fold.train, 2, 0)
    every = jobs(recipe, FOLD, "m")
    for job in every:
        list(produce.serial(recipe, produce.teacher_work(setting, job)))
    for k in range(2):
        copied, rows = Job(FOLD, "m", 0, part=k), np.flatnonzero(parts == k)
        fit = set(facts_of(directory(recipe, copied))["meta"]["exposure"]["fit"])
        assert fit == of_rows(data, np.flatnonzero(parts == 1 - k)) and not fit & of_rows(data, rows)
        said = [produce.teacher_store(setting, job).read(rows, 1)["logits"] for job in (copied, every[0])]
        assert np.abs(said[0] - said[1]).max() > 1e-3
    # a copy whose record says that it heard the part: refused before an answer is computed
    path = directory(recipe, every[1]) / "model/model.json"
    facts = json.loads(path.read_text())
    facts["meta"]["exposure"]["fit"] = sorted(of_rows(data, fold.train))
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="part that it must not hear"):
        produce.teacher_work(setting, every[1])
