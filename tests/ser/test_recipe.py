"""A recipe is checked before anything starts; its mistakes name what is nearest; equal recipes are equal runs."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ser.job import OPERATIONAL, Job, directory, jobs, train_config
from ser.recipe import RECIPES, Recipe, TrainConfig, find, load
from ser.strict import validate
from ser.values import expand, merge, set_dotted
from shards.errors import UserError
from tests import tiny

KL = [{"loss": "kl", "teacher": "text"}]
LABELS = [{"loss": "cross_entropy"}]


def models(**more) -> dict:
    return {
        "student": {"role": "student", "model": tiny.CONV, "objective": KL, "train": tiny.training(3)},
        "text": {"role": "teacher", "model": tiny.BERT, "objective": LABELS, "train": tiny.training(2)},
    } | more


def write(folder: Path, **changes) -> Path:
    return tiny.write_recipe(folder, tiny.recipe_values(folder, "data", models(), **changes))


# each: dotted key, value, what the message must hold
UNKNOWN = [
    ("veiws", {}, "did you mean 'views'"),
    ("data.pth", "x", "did you mean 'path'"),
    ("models.student.trian", {}, "did you mean 'train'"),
    ("models.student.train.stpes", 3, "did you mean 'steps'"),
    ("models.student.train.optimizer.learning_rate", 1, "unknown key 'learning_rate'"),
    ("models.student.objective.0.temprature", 2, "did you mean 'temperature'"),
    ("models.student.model.widht", 2, "widht"),
    ("cluster.cpu", 2, "did you mean 'cpus'"),
    ("targets.slot_second", 2, "did you mean 'slot_seconds'"),
]


@pytest.mark.parametrize("key,value,expected", UNKNOWN, ids=[k for k, *_ in UNKNOWN])
def test_an_unknown_key_names_the_nearest(tmp_path, key, value, expected):
    with pytest.raises(UserError, match=r"\S") as error:
        load(str(write(tmp_path)), [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}"])
    assert expected in str(error.value)
    assert str(tmp_path / "recipe.yaml") in str(error.value)
    assert key.rsplit(".", 1)[0].split(".")[0] in str(error.value), "and where it stands"


WRONG = [
    ({"steps": 3, "epochs": 2}, "exactly one of steps and epochs"),
    ({"steps": None}, "exactly one of steps and epochs"),
    ({"steps": -1}, "greater than 0"),
    ({"slots": 6, "workers": 4}, r"these do: [1, 2, 3, 6]"),
    ({"slots": 4, "workers": 2, "workers_min": 4}, r"no more than workers 2; these are: [1, 2]"),
    ({"slots": 4, "workers": 4, "workers_min": 3}, r"must divide slots 4 and"),
    ({"precision": "fp16"}, "precision"),
    ({"zero_stage": 4}, "zero_stage"),
    ({"warmup": 2}, "less than or equal to 1"),
]


@pytest.mark.parametrize("values,expected", WRONG, ids=[str(v) for v, _ in WRONG])
def test_a_training_that_cannot_be_is_refused(values, expected):
    with pytest.raises(UserError) as error:
        validate(TrainConfig, {"steps": 3} | values, where="train")
    assert expected in str(error.value)


def recipe_of(**changes) -> Recipe:
    return validate(Recipe, tiny.recipe_values(Path("x"), "data", models(**changes)), where="test")


def test_models_come_after_what_they_need():
    product = {"kind": "fused", "mode": "product", "components": {"text": None, "sound": None}}
    fused = {"role": "teacher", "model": product}
    sound = {"role": "teacher", "model": tiny.HUBERT, "objective": LABELS, "train": tiny.training(2)}
    recipe = recipe_of(fused=fused, sound=sound)
    order = recipe.order()
    assert sorted(order) == sorted(recipe.models)
    for name in order:
        assert all(order.index(need) < order.index(name) for need in recipe.models[name].needs)
    assert recipe.models["fused"].needs == ("text", "sound")
    assert recipe.models["student"].target_sources == ("text",)


@pytest.mark.parametrize(
    "changes,expected",
    [
        (
            {"text": {"role": "teacher", "model": tiny.BERT, "train": tiny.training(2), "objective": [{"loss": "kl", "teacher": "student"}]}},
            "in a circle: ",
        ),
        (
            {"student": {"role": "student", "model": tiny.CONV, "train": tiny.training(2), "objective": [{"loss": "kl", "teacher": "txt"}]}},
            "did you mean 'text'",
        ),
        ({"student": {"role": "student", "model": tiny.CONV, "objective": KL}}, "train and objective belong together"),
        ({"student": {"role": "student", "model": tiny.CONV}}, "neither trained nor made of other models"),
        ({"bad name": {"role": "student", "model": tiny.CONV, "objective": LABELS, "train": tiny.training(2)}}, "name is"),
        (
            {"student": {"role": "student", "model": tiny.CONV, "train": tiny.training(2), "objective": [{"loss": "kl"}]}},
            "needs `teacher: NAME`",
        ),
        (
            {"student": {"role": "student", "model": tiny.CONV, "train": tiny.training(2), "objective": [{"loss": "multi_kl", "teachers": ["text"]}]}},
            "needs `teachers:",
        ),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_together_are_refused(changes, expected):
    with pytest.raises(UserError) as error:
        recipe_of(**changes)
    assert expected in str(error.value)


def test_variants_and_overrides_are_laid_on_in_this_order(tmp_path):
    path = write(
        tmp_path,
        variants={"small": {"models": {"student": {"train": {"steps": 2, "slots": 4}}}, "seeds": [7]}},
    )
    assert load(str(path)).models["student"].train.steps == 3
    small = load(str(path), variant="small")
    assert (small.models["student"].train.steps, small.seeds) == (2, [7])
    assert small.models["text"].train.steps == 2, "what a variant does not name stays"
    both = load(str(path), ["models.student.train.steps=9", "seeds=[1, 2]"], "small")
    assert (both.models["student"].train.steps, both.models["student"].train.slots) == (9, 4)
    assert both.seeds == [1, 2]
    assert (
        load(str(path), ["models.student.objective.0.temperature=3"])
        .models["student"]
        .objective[0]
        .temperature
        == 3
    )
    with pytest.raises(UserError, match="variants: small"):
        load(str(path), variant="tiny")


def test_an_override_of_one_model_does_not_reach_another_through_an_anchor(tmp_path):
    values = tiny.recipe_values(tmp_path, "data", models())
    values["models"]["text"]["train"] = values["models"]["student"]["train"]
    path = tmp_path / "anchored.yaml"
    path.write_text(yaml.safe_dump(values))
    assert "&id" in path.read_text()
    changed = load(str(path), ["models.student.train.steps=11"])
    assert (changed.models["student"].train.steps, changed.models["text"].train.steps) == (11, 3)


def test_environment_variables_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_DATA", "/somewhere")
    monkeypatch.setenv("SER_CORPORA", "/corpora")
    assert expand({"a": ["${MY_DATA}/x", 3], "b": "${SER_CORPORA}"}) == {
        "a": ["/somewhere/x", 3],
        "b": "/corpora",
    }
    path = write(tmp_path)
    assert load(str(path), ["data.path=${MY_DATA}/packed"]).data.path == "/somewhere/packed"
    with pytest.raises(UserError, match="environment variable NOBODY_SET_THIS") as error:
        load(str(path), ["data.path=${NOBODY_SET_THIS}/packed"])
    assert "export NOBODY_SET_THIS=" in str(error.value)


def test_a_resolved_recipe_loads_to_itself(tmp_path):
    first = load(str(write(tmp_path)))
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(first.dump(), sort_keys=False))
    assert load(str(path)) == first


def test_a_recipe_is_found_by_path_or_name(tmp_path):
    assert find(str(write(tmp_path))) == tmp_path / "recipe.yaml"
    with pytest.raises(UserError, match="no recipe 'dmo'") as error:
        find("dmo")
    assert "demo" in str(error.value)


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")) + sorted(p.parent.name for p in RECIPES.glob("*/recipe.yaml")))  # fmt: skip
def test_recipes_that_come_with_the_package_load(name, monkeypatch):
    monkeypatch.setenv("SER_CORPORA", "/corpora")
    recipe = load(name)
    assert recipe.order() and recipe.name
    values = yaml.safe_load(find(name).read_text())
    for variant in values.get("variants") or {}:
        assert load(name, variant=variant).order()


NESTED = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
MAPPING = st.dictionaries(st.sampled_from("abcd"), NESTED, max_size=3)


@given(MAPPING, MAPPING)
def test_merging_keeps_both_and_prefers_the_second(base, over):
    import copy

    before = copy.deepcopy((base, over))
    merged = merge(base, over)
    assert (base, over) == before, "nothing is changed in place"
    assert merge(merged, over) == merged
    assert set(merged) == set(base) | set(over)
    for key, value in over.items():
        if not isinstance(value, dict):
            assert merged[key] == value


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers())
def test_a_dotted_key_is_where_it_says(parts, value):
    values: dict = {}
    set_dotted(values, ".".join(parts), value)
    for part in parts:
        values = values[part]
    assert values == value


def test_trainings_have_places_of_their_own(tmp_path):
    recipe = validate(
        Recipe,
        tiny.recipe_values(
            tmp_path, "data", models() | {"text": models()["text"] | {"cross_fit": 2}}, seeds=[3, 4], folds=["a", "b"]
        ),
        where="test",
    )  # fmt: skip
    every = [job for fold in ("a", "b") for name in recipe.models for job in jobs(recipe, fold, name)]
    every += [Job("a", "student", 3, trial='{"optimizer.lr": 0.1}'), Job("a", "student", 3, trial="{}")]
    assert len({directory(recipe, job) for job in every}) == len(every) == len(set(every))
    assert [j.seed for j in jobs(recipe, "a", "student")] == [3, 4]
    assert [(j.seed, j.part) for j in jobs(recipe, "a", "text")] == [(3, None), (3, 0), (3, 1)]


def test_a_trial_and_a_choice_change_the_training_and_nothing_else(tmp_path):
    recipe = load(str(write(tmp_path)))
    trial = Job("a", "student", 0, trial='{"optimizer.lr": 0.5}')
    assert train_config(recipe, trial).optimizer.lr == 0.5
    assert train_config(recipe, Job("a", "student", 0)).optimizer.lr == 1e-3
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen/a.yaml").write_text(yaml.safe_dump({"student": {"optimizer.lr": 0.25}}))
    recipe = load(str(write(tmp_path, chosen="chosen")))
    assert train_config(recipe, trial).optimizer.lr == 0.5
    assert train_config(recipe, Job("a", "student", 0)).optimizer.lr == 0.25
    assert train_config(recipe, Job("b", "student", 0)).optimizer.lr == 1e-3
    with pytest.raises(UserError, match="optimzer"):
        train_config(recipe, Job("a", "student", 0, trial='{"optimzer.lr": 0.5}'))


def test_operational_keys_are_keys_of_a_training():
    assert set(TrainConfig.model_fields) >= OPERATIONAL
    assert not {"steps", "slots", "precision", "optimizer", "evaluate_every", "patience"} & OPERATIONAL
