"""ser.sweep and ser.space: what a space may ask for, what Optuna is asked for it, and the recipe that its answer makes."""

import copy
import json
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.recipe import Recipe
from ser.space import check_space, ordered, propose, told, touched, varied
from ser.strict import validate
from ser.sweep import Dimension, grid_of
from shards.errors import UserError
from tests import tiny

LABELS = [{"loss": "cross_entropy"}]
DISTIL = [*LABELS, {"loss": "kl", "teacher": "text"}]
SPACE = {
    "models.student.train.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "models.student.model.width": {"low": 4, "high": 16, "int": True},
    "models.student.objective": {"choice": {"plain": LABELS, "distil": DISTIL}},
    "models.student.objective.1.temperature": {"low": 1, "high": 4, "when": {"models.student.objective": "distil"}},
}  # fmt: skip
UA = [{"model": "student", "metric": "ua"}]


def recipe(sweep: dict | None = None, **changes) -> Recipe:
    models = {
        "text": {"role": "teacher", "model": tiny.BERT, "objective": LABELS, "train": tiny.training()},
        "other": {"role": "teacher", "model": tiny.CONV, "objective": LABELS, "train": tiny.training()},
        "student": {"role": "student", "model": tiny.CONV, "objective": DISTIL, "train": tiny.training()},
        "alone": {"role": "baseline", "model": tiny.CONV, "objective": LABELS, "train": tiny.training()},
    }
    values = tiny.recipe_values(Path("nowhere"), "none", models)
    sweep = {"space": SPACE, "objectives": UA, **changes} if sweep is None else sweep
    return validate(Recipe, values | {"sweep": copy.deepcopy(sweep)}, where="test")


def refused(match: str, space: dict | None = None, **changes) -> None:
    with pytest.raises(UserError, match=match):
        check_space(recipe({"space": SPACE if space is None else space, "objectives": UA, **changes}))


def test_a_space_is_asked_for_key_by_key_and_its_answers_make_recipes():
    made = recipe()
    check_space(made)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        answers = propose(trial, made.sweep.space)
        assert trial.params == answers, "the study knows every value"
        one = varied(made, made.sweep.space, answers)
        student = one.models["student"]
        assert one.sweep is None and student.model.width == answers["models.student.model.width"]
        assert student.train.optimizer.lr == answers["models.student.train.optimizer.lr"]
        assert student.keep == ["optimizer.lr"], "no chosen value replaces it"
        temperature = answers.get("models.student.objective.1.temperature")
        assert len(student.objective) == (1 if temperature is None else 2)
        if temperature is not None:
            assert student.objective[1].temperature == temperature
        seen.add(len(student.objective))
        assert one.model_copy(update={"models": {}}) == made.model_copy(update={"models": {}, "sweep": None})
    assert seen == {1, 2}
    assert validate(Recipe, json.loads(made.model_dump_json()), where="again") == made


def test_a_condition_comes_before_what_it_decides_however_they_are_written():
    turned = dict(reversed(SPACE.items()))
    order = ordered(recipe({"space": turned, "objectives": UA}).sweep.space)
    assert order.index("models.student.objective") < order.index("models.student.objective.1.temperature")


def test_only_what_the_space_touches_is_trained_in_every_trial():
    assert touched(recipe()) == {"student"}
    lr = {"models.text.train.optimizer.lr": {"low": 1e-4, "high": 1e-2}}
    assert touched(recipe({"space": lr, "objectives": UA})) == {"text", "student"}, "and what is built on it"
    views = {"views.count": {"low": 1, "high": 2, "int": True}}
    assert touched(recipe({"space": views, "objectives": UA})) == {"text", "other", "student", "alone"}


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([1, 2, 3]))
@settings(max_examples=60)
def test_a_grid_has_the_values_of_the_range(low, more, step):
    one = Dimension.model_validate({"low": low, "high": low + more, "step": step, "int": True})
    assert grid_of({"k": one}) == {"k": list(range(low, low + more + 1, step))}


def test_a_grid_of_fractions_ends_at_its_end():
    assert grid_of({"k": Dimension(low=0.1, high=0.5, step=0.1)})["k"] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5]
    )


def test_keys_that_are_not_there_are_named_with_the_nearest():
    refused(
        "unknown key 'lrr'; did you mean 'lr'", {"models.student.train.optimizer.lrr": {"low": 1, "high": 2}}
    )
    refused(
        "no model 'studnet'; did you mean 'student'", {"models.studnet.train.steps": {"low": 1, "high": 2}}
    )
    refused(
        "no metric 'macrof1'; did you mean 'macro_f1'", objectives=[{"model": "student", "metric": "macrof1"}]
    )
    refused(
        "no model of this recipe that answers; did you mean 'text'",
        objectives=[{"model": "txt", "metric": "ua"}],
    )
    refused(
        "no option of tpe 'n_startup'; did you mean", sampler={"kind": "tpe", "options": {"n_startup": 3}}
    )


@pytest.mark.parametrize("key", ["run_dir", "data.path", "protocol.classes", "folds", "seeds", "sweep.trials", "cluster.cpus"])  # fmt: skip
def test_what_trials_share_is_not_varied(key):
    refused("is not varied: trials share it, or are judged by it", {key: {"choice": ["a", "b"]}})


def test_values_that_make_no_recipe_are_refused_before_anything_starts():
    steps = "models.student.train.steps"
    refused("steps=0 makes no valid recipe: .*greater than 0", {steps: {"low": 0, "high": 9, "int": True}})
    refused("makes no valid recipe: .*valid integer", {steps: {"low": 1, "high": 9}})
    kinds = {"models.student.objective": {"choice": [LABELS, [{"loss": "kl", "teacher": "nobody"}]]}}
    refused("makes no valid recipe: .*'nobody', no model of this recipe", kinds)


def test_ranges_and_choices_that_are_none():
    key = "models.student.model.width"
    for one, match in (
        ({"low": 4, "high": 2}, "low 4 is not below high 2"),
        ({"low": 0, "high": 2, "log": True}, "a logarithmic range starts above 0"),
        ({"low": 1, "high": 2, "log": True, "step": 1}, "no step"),
        ({"low": 1.5, "high": 2, "int": True}, "needs whole low"),
        ({"low": 1}, "give `choice`, or both"),
        ({"choice": []}, "nothing to choose from"),
        ({"choice": [4, 4]}, "names the same value twice"),
        ({"choice": [4], "log": True}, "a choice has no low"),
    ):
        refused(match, {key: one})


def test_conditions_that_cannot_hold():
    plain = {"models.student.objective": SPACE["models.student.objective"]}
    inside = "models.student.objective.1.temperature"
    refused("lies inside models.student.objective", plain | {inside: {"low": 1, "high": 4}})
    blocks = "models.student.model.blocks"
    one = {"low": 1, "high": 2, "int": True}
    refused("is never 'distill'", plain | {blocks: one | {"when": {"models.student.objective": "distill"}}})
    refused(
        "is no `choice` of the space", plain | {blocks: one | {"when": {"models.student.model.width": 4}}}
    )
    circle = {
        "models.student.model.width": {"choice": [4, 8], "when": {blocks: 1}},
        blocks: {"choice": [1, 2], "when": {"models.student.model.width": 4}},
    }
    refused("in a circle", circle)


def test_what_optuna_would_ignore_in_silence_is_refused_with_the_reason():
    size = [*UA, {"model": "student", "metric": "parameters"}]
    for kind in ("median", "asha", "hyperband", "wilcoxon"):
        refused("a pruner needs one objective: with several.*Optuna does not prune there", objectives=size, pruner={"kind": kind})  # fmt: skip
    refused("cmaes knows one objective", {k: SPACE[k] for k in list(SPACE)[:2]}, objectives=size, sampler={"kind": "cmaes"})  # fmt: skip
    refused("a grid visits every combination", sampler={"kind": "grid"})
    refused("a grid needs values", {next(iter(SPACE)): {"low": 1, "high": 2}}, sampler={"kind": "grid"})
    refused("would draw conditional ones at random", sampler={"kind": "gp"})
    refused("nothing is judged but cost", objectives=size[1:])
    late = [{"model": "student", "metric": "soft_nll"}]
    refused("soft_nll is not known before", objectives=late, pruner={"kind": "median", "by": "steps"})
    refused("wilcoxon compares trials fold by fold", pruner={"kind": "wilcoxon", "by": "steps"})
    refused("per: fold writes each fold's own train keys, and models.student.model.width is none", per="fold")


def test_a_password_is_not_taken_and_not_shown():
    with pytest.raises(UserError, match="env:NAME") as refusal:
        recipe(storage="postgresql://me:secret@host/name")
    assert "secret" not in str(refusal.value)


def test_values_are_told_by_their_last_part_where_that_is_enough():
    assert told({"models.a.train.lr": 0.00123456, "models.a.model.width": 8}) == "lr=0.001235, width=8"
    assert told({"models.a.lr": 1, "models.b.lr": 2}) == "models.a.lr=1, models.b.lr=2"
