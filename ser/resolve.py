"""A recipe's plain values, before they are validated: the file, its variant, and what was typed on the command line.

Guarantees: a later source wins over an earlier one (file, variant, override); every training value that a variant or an
override gives is noted in its model's `keep`, so that no chosen value replaces it; a variant has a run directory of its
own.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from ser.hubs import pinned
from ser.strict import read_yaml
from ser.values import dotted, merge, overlap, set_dotted, unshared
from shards.errors import UserError

RECIPES = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """Names of the recipes that come with the package: `demo`, `open-emodb`, `mtkd2025/tiny`."""
    paths = [p.relative_to(RECIPES) for p in (*RECIPES.glob("*.yaml"), *RECIPES.glob("*/*.yaml"))]
    return sorted(
        str(p.parent) if p.name == "recipe.yaml" else str(p.with_suffix(""))
        for p in paths
        if "chosen" not in p.parts
    )


def find(name: str) -> Path:
    """Path of a recipe: a file, or the name of one that comes with the package."""
    for path in (Path(name), RECIPES / f"{name}.yaml", RECIPES / name / "recipe.yaml"):
        if path.is_file():
            return path
    known = names()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"no recipe {name!r}", where=str(Path.cwd()), hint=f"{hint}known recipes: {', '.join(known)}"
    )


def resolve(
    name: str, overrides: list[str] | tuple[str, ...] = (), variant: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Plain values of a recipe and the path of its file; see `ser.recipe.load`.

    Raises:
        UserError: Unknown recipe or variant, an override that is not key=value or of a value that is searched for, or a
            `chosen` folder that is not there.
    """
    path = find(name)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError("a recipe is a mapping of keys", where=str(path))
    # YAML anchors share objects: an override of one model must not reach another through them.
    values = unshared({key: value for key, value in values.items() if not str(key).startswith("x-")})
    variants = values.pop("variants", {}) or {}
    if not isinstance(variants, dict):
        raise UserError("`variants` is a mapping of names to the keys that they change", where=str(path))
    given: list[str] = []
    typed: list[str] = []
    own_directory = False
    if variant is not None:
        if variant not in variants:
            raise UserError(
                f"no variant {variant!r}",
                where=str(path),
                hint=f"variants: {', '.join(map(str, variants)) or 'none'}",
            )
        changes = variants[variant]
        if not isinstance(changes, dict) or not changes:
            raise UserError(
                f"the variant {variant!r} {'holds no keys' if not changes else 'is no mapping of keys'}",
                where=str(path),
                hint="indent the keys that it changes below its name",
            )
        values = merge(values, changes)
        given += dotted(changes, "")
        own_directory = ".run_dir" in given
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(
                f"override {text!r} is not key=value", hint="for example models.student.train.steps=200"
            )
        try:
            plain = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"override {text!r}: the value is not YAML ({getattr(error, 'problem', error)})",
                hint="quote it for the shell, for example 'seeds=[0, 1]'",
            ) from None
        set_dotted(values, key, plain, where=str(path))
        own_directory |= key == "run_dir"
        typed += dotted(plain, f".{key}")
    _refuse_searched(values, typed)
    values.setdefault("name", path.parent.name if path.name == "recipe.yaml" else path.stem)
    if variant is not None and not own_directory:
        base = str(values.get("run_dir") or f"runs/{values['name']}")
        values["run_dir"] = f"{base.rstrip('/')}-{variant}"
    if values.get("chosen"):
        folder = (path.parent / str(values["chosen"])).resolve()
        if not folder.is_dir():
            raise UserError(
                "`chosen` names a folder that is not there",
                where=f"{path}: {folder}",
                hint="copy the `chosen` folder of the run that searched, or leave the key out",
            )
        values["chosen"] = str(folder)
    _keep(values, given + typed)
    return pinned(values, path), path


def _keep(values: dict[str, Any], given: list[str]) -> None:
    """Note in each model which of its train keys were given by a variant or an override (".models.M.train.K")."""
    for key in given:
        model, train_key = _train_key(key)
        entry = _entry(values, model)
        if isinstance(entry, dict) and train_key not in entry.setdefault("keep", []):
            entry["keep"].append(train_key)


def _refuse_searched(values: dict[str, Any], typed: list[str]) -> None:
    """An override of what is searched for would be overruled by the search."""
    for key in typed:
        model, train_key = _train_key(key)
        entry = _entry(values, model)
        search = entry.get("search") if isinstance(entry, dict) else None
        for searched in search if isinstance(search, dict) else ():
            if overlap(searched, train_key):
                raise UserError(
                    f"{key[1:]} is searched for in this recipe",
                    hint=f"change the grid (models.{model}.search), or drop the search: models.{model}.search={{}}",
                )


def _entry(values: dict[str, Any], model: str) -> Any:
    """A model's plain values, None where there is no such model."""
    models = values.get("models")
    return models.get(model) if isinstance(models, dict) else None


def _train_key(key: str) -> tuple[str, str]:
    """("M", "K") of ".models.M.train.K", else two empty strings."""
    found = re.fullmatch(r"\.models\.([^.]+)\.train\.(.+)", key)
    return (found[1], found[2]) if found else ("", "")
