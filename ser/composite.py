"""Systems made of several models: each utterance is answered by the model of its own group (its language, say).

Guarantees: exact, with the intervals and tests of any other system, because answers are put together row by row before
anything is scored; a group of the test sets that has no model is refused by name.
Gives up: seeds that are not finished in all of the models take no part; seed s of a composite is seed s of each model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ser import facts
from ser.exposure import count
from ser.grouping import groups
from ser.recipe import Composite
from ser.results import Model, System
from ser.setting import Setting
from shards.errors import UserError


def composites(
    setting: Setting, models: Mapping[str, Model]
) -> tuple[dict[str, Model], dict[str, list[str]]]:
    """The recipe's composites as models without trainings of their own, and for the others what is missing.

    Raises:
        UserError: Test utterances of a group that has no model, or of none that is known.
    """
    found: dict[str, Model] = {}
    incomplete: dict[str, list[str]] = {}
    for name, config in setting.recipe.report.composites.items():
        parts = dict.fromkeys(config.models.values())
        lost = [part for part in parts if part not in models]
        seeds = [s for s in _seeds(models, parts) if not lost]
        if not seeds:
            incomplete[name] = [f"{part} of {name}" for part in lost or parts]
            continue
        have = {part: models[part] for part in parts}
        test = _put_together(setting, name, config, {p: _kept(m, m.test, seeds) for p, m in have.items()})
        devs = {p: _kept(m, m.dev, seeds) for p, m in have.items() if m.dev is not None}
        dev = _put_together(setting, name, config, devs) if len(devs) == len(have) else None
        missing = [
            f"seed {s} of {p}" for p, m in have.items() for s in _all_seeds(models, parts) if s not in m.seeds
        ]
        found[name] = Model(name, seeds, {}, dev, test, missing)
    return found, incomplete


def _all_seeds(models: Mapping[str, Model], parts: Sequence[str] | dict[str, None]) -> list[int]:
    return list(dict.fromkeys(seed for part in parts if part in models for seed in models[part].seeds))


def _seeds(models: Mapping[str, Model], parts: Sequence[str] | dict[str, None]) -> list[int]:
    every = _all_seeds(models, parts)
    return [seed for seed in every if all(part in models and seed in models[part].seeds for part in parts)]


def _kept(model: Model, system: System, seeds: Sequence[int]) -> System:
    at = np.array([model.seeds.index(seed) for seed in seeds])

    def cut(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[at]

    return System(
        system.rows,
        system.fold,
        cut(system.probabilities),
        cut(system.decided),
        cut(system.dimensions),
        system.state[at],
    )


def _put_together(setting: Setting, name: str, config: Composite, systems: Mapping[str, System]) -> System:
    """One system of which each row is that of its group's model."""
    first = next(iter(systems.values()))
    values = groups(setting.dataset, config.by)
    own = values.codes[first.rows]
    which = np.full(len(first.rows), -1)
    order = list(systems)
    for group, part in config.models.items():
        for code, known in enumerate(values.names):
            if group in (known, known.split("/", 1)[-1]):
                which[own == code] = order.index(part)
    if (which < 0).any():
        lost = {values.names[c] if c >= 0 else "none that is known" for c in np.unique(own[which < 0])}
        raise UserError(
            f"composite {name} has no model for {count(int((which < 0).sum()), 'test utterance', 'test utterances')} of "
            f"{config.by} {', '.join(sorted(lost))}",
            where=f"{setting.recipe.name}: report.composites.{name}",
            hint="give each group of the test sets its model",
        )

    def mixed(parts: list[np.ndarray | None]) -> np.ndarray | None:
        if any(part is None for part in parts):
            return None
        whole = np.array(parts[0])
        for i, part in enumerate(parts):
            assert part is not None
            whole[:, which == i] = part[:, which == i]
        return whole

    every = list(systems.values())
    state = mixed([system.state for system in every])
    assert state is not None
    return System(
        first.rows, first.fold, mixed([s.probabilities for s in every]), mixed([s.decided for s in every]),
        mixed([s.dimensions for s in every]), state,
    )  # fmt: skip


def describe(
    setting: Setting, models: Mapping[str, Model], name: str, told: Mapping[str, Any]
) -> dict[str, Any]:
    """What the report says of a composite besides its scores; sizes are sums, the speed is the models' mean.

    Args:
        models: Finished models of the recipe.
        told: What the report says of each of them.
    """
    config = setting.recipe.report.composites[name]
    parts = list(dict.fromkeys(config.models.values()))
    each = [told[part] for part in parts]
    roles = {one["role"] for one in each}
    licences = [one["licences"] for one in each]
    own = {x for one in licences for x in one["own"]}
    inherited = {x for one in licences for x in one["inherited"]} - own
    return {
        "role": roles.pop() if len(roles) == 1 else "student",
        "kind": "composite",
        "by": config.by,
        "inputs": sorted({x for one in each for x in one["inputs"]}),
        "needs": parts,
        "data": None, "permuted": False, "label_from": None, "labelled": None, "objective": [], "train": None,
        "parameters": sum(one["parameters"] for one in each),
        "bytes": sum(one["bytes"] for one in each),
        "speed": {
            **each[0]["speed"],
            "factor": float(np.mean([one["speed"]["factor"] for one in each])),
            "weights": f"composite {name}",
        },
        "exposure": _exposure(setting, models, parts, [one["exposure"] for one in each]),
        "licences": {
            "own": sorted(own), "inherited": sorted(inherited), "restricted": facts.restricted(own | inherited),
        },
        "sureness": {}, "trainings": [], "curves": [],
    }  # fmt: skip


def _exposure(
    setting: Setting, models: Mapping[str, Model], parts: list[str], each: list[dict[str, Any]]
) -> dict[str, Any]:
    whole = {
        fold: facts.heard_by(models[parts[0]], fold).union(
            *(facts.heard_by(models[p], fold) for p in parts[1:])
        )
        for fold in setting.folds
    }
    tunings = [one["tuning"] for one in each]
    return {
        **each[0],
        "fit": {fold: len(x.fit) for fold, x in whole.items()},
        "select": {fold: len(x.select) for fold, x in whole.items()},
        "unknown": sorted({hub for x in whole.values() for hub in x.unknown}),
        "tuning": "non-nested" if "non-nested" in tunings else tunings[0],
        "tuned": {},
    }
