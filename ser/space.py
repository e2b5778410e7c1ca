"""A sweep's space: what Optuna is asked for, and the recipe that its answer makes. Pure but for asking the trial.

Guarantees: a key is asked for after those that its condition names; the ends of every range and every choice have made
a valid recipe before the first trial starts; a trial's values stand above what a search or a `chosen` folder says.
Gives up: combinations are not tried out; one that makes no valid recipe is a failed trial.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ser.agreement import agree
from ser.protocol import load_protocol
from ser.recipe import Recipe, refuse_remote
from ser.strict import validate
from ser.sweep import Dimension, SweepConfig
from ser.values import overlap, set_dotted
from shards.errors import UserError

# What all trials share, what they are judged by, and where they lie.
FIXED = (
    "name", "about", "run_dir", "reuse", "data", "protocol", "folds", "seeds", "allow_unknown", "tuned_on",
    "allow_non_nested", "chosen", "report", "cluster", "sweep",
)  # fmt: skip
FIXED_IN_MODEL = ("role", "seeds", "search", "keep", "cross_fit", "permute_targets")


def ordered(space: Mapping[str, Dimension]) -> list[str]:
    """Keys so that each comes after those that it depends on.

    Raises:
        UserError: A condition names no choice of the space, a value that it does not have, or closes a circle.
    """
    done: list[str] = []
    waiting = list(space)
    for key in waiting:
        _check_conditions(space, key)
    while waiting:
        ready = [key for key in waiting if all(other in done for other in space[key].when)]
        if not ready:
            raise UserError(
                f"conditions depend on each other in a circle: {', '.join(waiting)}", where="sweep.space"
            )
        done += ready
        waiting = [key for key in waiting if key not in ready]
    return done


def propose(trial: Any, space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Ask an Optuna trial for every key that is varied under the values already given: key -> label or number."""
    given: dict[str, Any] = {}
    for key in ordered(space):
        one = space[key]
        if not active(one, given):
            continue
        if one.choice is not None:
            given[key] = trial.suggest_categorical(key, one.labels)
        elif one.int:
            low, high, step = (round(x) for x in (one.low or 0, one.high or 0, one.step or 1))
            given[key] = trial.suggest_int(key, low, high, step=step, log=one.log)
        else:
            given[key] = trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)
    return given


def active(one: Dimension, given: Mapping[str, Any]) -> bool:
    """Whether a key is varied, given what others were given."""
    return all(key in given and given[key] in _wanted(values) for key, values in one.when.items())


def _wanted(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def varied(recipe: Recipe, space: Mapping[str, Dimension], given: Mapping[str, Any]) -> Recipe:
    """The recipe with these values in it, and without its sweep.

    Raises:
        UserError: It is not valid, or does not agree with its protocol.
    """
    values = recipe.dump()
    values.pop("sweep", None)
    for key in sorted(given, key=lambda k: k.count(".")):  # a whole mapping before what lies in it
        set_dotted(values, key, space[key].value(given[key]), where="sweep.space")
        parts = key.split(".")
        if parts[0] == "models" and parts[2:3] == ["train"]:
            keep = values["models"][parts[1]]["keep"]
            keep.append(".".join(parts[3:]))
    made = validate(Recipe, values, where=f"{recipe.name} with {told(given)}")
    agree(made, load_protocol(made.protocol))
    return made


def told(given: Mapping[str, Any]) -> str:
    """Values in a line: `lr=0.001, width=16`, keys by their last part where that is enough."""
    short = {key: key.rsplit(".", 1)[-1] for key in given}
    names = {key: short[key] if list(short.values()).count(short[key]) == 1 else key for key in given}
    return ", ".join(
        f"{names[key]}={value:.4g}" if isinstance(value, float) else f"{names[key]}={value}"
        for key, value in given.items()
    )


def sweep_of(recipe: Recipe) -> SweepConfig:
    """A recipe's sweep, as it can be run.

    Raises:
        UserError: It has none, or one that asks for nonsense; or its run lies in an object store.
    """
    if recipe.sweep is None:
        raise UserError(
            "this recipe has no `sweep`", where=recipe.name,
            hint="add sweep: {space: {models.NAME.train.optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}, "
            "objectives: [{model: NAME, metric: ua}]}",
        )  # fmt: skip
    check_space(recipe)
    refuse_remote(recipe, "a study is a file of the run directory")
    return recipe.sweep


def check_space(recipe: Recipe) -> None:
    """Refuse a space that asks for nonsense.

    Raises:
        UserError: A key that may not be varied, that the recipe does not have, that is searched for already or lies
            inside another one; a condition that cannot hold; an end of a range or a choice that makes no valid recipe.
    """
    assert recipe.sweep is not None
    space = recipe.sweep.space
    for key in space:
        _check_key(recipe, space, key)
    for key in ordered(space):
        for given in _corners(space, key):
            try:
                varied(recipe, space, given)
            except UserError as error:
                raise UserError(
                    f"{told({key: given[key]})} makes no valid recipe: {error.what}",
                    where=f"{recipe.name}: sweep.space.{key}",
                    hint="change the range, or say int: true where the key takes whole numbers"
                    if space[key].choice is None
                    else "change the choice",
                ) from None


def _check_key(recipe: Recipe, space: Mapping[str, Dimension], key: str) -> None:
    where, parts = f"{recipe.name}: sweep.space.{key}", key.split(".")
    for fixed in FIXED:
        if overlap(key, fixed):
            raise UserError(
                f"{fixed} is not varied: trials share it, or are judged by it",
                where=where,
                hint="vary models, views, features or targets",
            )
    if parts[0] == "models":
        if len(parts) < 3:
            raise UserError(
                "name a key of the model", where=where, hint="for example models.NAME.train.steps"
            )
        if parts[1] not in recipe.models:
            near = difflib.get_close_matches(parts[1], list(recipe.models), n=1)
            raise UserError(
                f"no model {parts[1]!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                where=where,
                hint=f"models: {', '.join(recipe.models)}",
            )
        if parts[2] in FIXED_IN_MODEL:
            raise UserError(f"models.{parts[1]}.{parts[2]} is not varied", where=where)
        if recipe.sweep and recipe.sweep.per == "fold" and recipe.models[parts[1]].search:
            raise UserError(
                f"models.{parts[1]} has a search of its own, whose choice would stand above this one's",
                where=where,
                hint=f"models.{parts[1]}.search={{}}, or sweep.per=recipe",
            )
        searched = [f"models.{parts[1]}.train.{k}" for k in recipe.models[parts[1]].search]
        if any(overlap(key, other) for other in searched):
            raise UserError(
                f"it is searched for already, in every fold, by models.{parts[1]}.search",
                where=where,
                hint=f"leave it out of one of the two (models.{parts[1]}.search={{}})",
            )
    for other in space:
        if (
            other != key
            and overlap(key, other)
            and other.count(".") < key.count(".")
            and other not in space[key].when
        ):
            raise UserError(
                f"it lies inside {other}, which is varied as a whole",
                where=where,
                hint=f"say for which of its values: when: {{{other}: NAME}}",
            )


def _check_conditions(space: Mapping[str, Dimension], key: str) -> None:
    for other, values in space[key].when.items():
        where = f"sweep.space.{key}.when"
        if other not in space or space[other].choice is None:
            near = difflib.get_close_matches(other, [k for k in space if space[k].choice is not None], n=1)
            raise UserError(
                f"{other!r} is no `choice` of the space" + (f"; did you mean {near[0]!r}?" if near else ""),
                where=where,
            )
        lost = [value for value in _wanted(values) if value not in space[other].labels]
        if lost:
            raise UserError(
                f"{other} is never {lost[0]!r}",
                where=where,
                hint=f"it is one of {', '.join(map(str, space[other].labels))}",
            )


def _corners(space: Mapping[str, Dimension], key: str) -> Iterator[dict[str, Any]]:
    """Values at the ends of one key, each with the values that let it be varied."""
    one, given = space[key], {}
    for other in _above(space, key):
        below = [space[k].when[other] for k in [*_above(space, key), key] if other in space[k].when]
        fit = [label for label in space[other].labels if all(label in _wanted(values) for values in below)]
        if not fit:
            raise UserError(
                f"{other} never has all the values that it needs", where=f"sweep.space.{key}.when"
            )
        given[other] = fit[0]
    if one.choice is not None:
        ends: list[Any] = one.labels
    else:
        low, high = one.low or 0.0, one.high or 0.0
        # a number between the ends tells whether the key takes whole ones alone
        ends = (
            [round(low), round(high)] if one.int else [low, low + (one.step or 0.381966 * (high - low)), high]
        )
    for end in ends:
        yield {**given, key: end}


def _above(space: Mapping[str, Dimension], key: str) -> list[str]:
    """Keys that must have some value for this one to be varied, outermost first."""
    found: list[str] = []
    for other in space[key].when:
        found += [k for k in [*_above(space, other), other] if k not in found]
    return found


def touched(recipe: Recipe) -> frozenset[str]:
    """Names of the models that a space may change, themselves or below them; the others are the same in every trial."""
    assert recipe.sweep is not None
    keys = list(recipe.sweep.space)
    if any(not key.startswith("models.") for key in keys):
        return frozenset(recipe.models)
    found = {key.split(".")[1] for key in keys}
    for name in recipe.order():
        if found & set(recipe.models[name].needs):
            found.add(name)
    return frozenset(found)
