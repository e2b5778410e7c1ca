"""Values of a recipe that would be found wrong hours later: seeds, views, feature options, the grid of a search.

Guarantees: no audio, dataset or view file is opened.
"""

import difflib
import json

from ser.recipe import Recipe
from ser.strict import validate
from ser.training import TrainConfig
from ser.values import set_dotted
from shards.errors import UserError

# Keywords of `ser.features.mel.LogMel`, named here because importing it imports torch.
MEL_OPTIONS = ("bands", "low", "high", "floor")


def check_values(recipe: Recipe) -> None:
    """Refuse values that no stage could use.

    Raises:
        UserError: Naming the key that is wrong and what to type.
    """
    _seeds(recipe.seeds, f"{recipe.name}: seeds")
    for name, entry in recipe.models.items():
        _seeds(entry.seeds or [], f"{recipe.name}: models.{name}.seeds")
        _search(recipe, name)
    _views(recipe)
    for name, feature in recipe.features.items():
        if feature.kind != "mel":
            continue
        for key in feature.options:
            if key not in MEL_OPTIONS:
                near = difflib.get_close_matches(key, MEL_OPTIONS, n=1)
                raise UserError(
                    f"unknown option {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                    where=f"{recipe.name}: features.{name}.options",
                    hint=f"one of {', '.join(MEL_OPTIONS)}",
                )


def _seeds(seeds: list[int], where: str) -> None:
    if any(seed < 0 for seed in seeds):
        raise UserError("a seed is negative", where=where, hint="seeds are 0, 1, 2, ...")
    if len(set(seeds)) < len(seeds):
        raise UserError(
            "a seed stands twice", where=where, hint="one training would be done twice: name each once"
        )


def _search(recipe: Recipe, name: str) -> None:
    entry = recipe.models[name]
    for key, tried in entry.search.items():
        where = f"{recipe.name}: models.{name}.search.{key}"
        if entry.train is None:
            raise UserError(
                "nothing is trained here, so nothing can be searched", where=where, hint="leave it out"
            )
        if not tried:
            raise UserError(
                "an empty list gives no trial", where=where, hint="give the values to try, or leave it out"
            )
        for value in tried:
            values = json.loads(entry.train.model_dump_json())
            set_dotted(values, key, value, where=where)
            validate(TrainConfig, values, where=where)


def _views(recipe: Recipe) -> None:
    from shards.views import ViewPolicy

    values = dict(recipe.views)
    for key in ("noise", "room"):
        # files are looked for when they are needed, which may be on another machine
        if isinstance(values.get(key), list | tuple):
            values[key] = "synthetic"
    ViewPolicy.from_dict({"count": 0, **values})
