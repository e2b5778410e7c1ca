"""What would be found wrong hours later is refused when the recipe is read."""

import inspect

import pytest

from ser.early import MEL_OPTIONS
from ser.recipe import RECIPES, load
from shards.errors import UserError

WRONG = {
    "views.cuont=2": "unknown key 'cuont'",
    "features.mel.options={bandz: 20}": "did you mean 'bands'",
    "models.baseline.search={optimiser.lr: [0.1]}": "optimizer",
    "models.baseline.search={steps: []}": "an empty list gives no trial",
    "models.baseline.search={steps: [0]}": "greater than 0",
    "models.fused.search={steps: [1]}": "nothing is trained here",
    "seeds=[0, 0]": "a seed stands twice",
    "seeds=[-1]": "a seed is negative",
    "models.student.seeds=[1, 1]": "a seed stands twice",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_value_is_refused_by_load(override):
    with pytest.raises(UserError, match=WRONG[override]):
        load("demo", [override])


def test_what_comes_with_the_package_is_right(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_CORPORA", str(tmp_path))
    names = [path.stem for path in RECIPES.glob("*.yaml")] + [
        p.parent.name for p in RECIPES.glob("*/recipe.yaml")
    ]
    assert names and all(load(name).name for name in names)
    assert load("demo", variant="full").models["baseline"].search


def test_noise_files_are_not_opened_when_a_recipe_is_read():
    assert load("demo", ["views.noise=[nowhere.wav]"]).views["noise"] == ["nowhere.wav"]


def test_the_options_of_log_mel_are_its_own():
    from ser.features.mel import LogMel

    assert tuple(inspect.signature(LogMel).parameters) == MEL_OPTIONS
