"""The same answers scored on parts of the test set: improvised or scripted speech, lines that training has read or not.

Guarantees: no model is trained or asked again; a subset is a mask over the rows of the plain table, so its rows count
once. A subset without rows says so instead of a number.
Gives up: a text is the same when it is so in lower case with single blanks; a line said in other words is a new one.
"""

from typing import Any

import numpy as np

from ser import scoring
from ser.layout import REPEATED, Subset
from ser.results import System
from ser.setting import Setting
from ser.truth import field
from shards.errors import UserError


def masks(setting: Setting, system: System) -> dict[str, np.ndarray]:
    """Subset name -> (n,) bool over the system's rows, in the order of the recipe.

    Raises:
        UserError: A field of which no row has a value, or a value for `repeated_text` that is not true or false.
    """
    asked = setting.recipe.report.subsets
    repeated = repeats(setting, system) if any(REPEATED in subset for subset in asked.values()) else None
    return {name: _mask(setting, system, subset, name, repeated) for name, subset in asked.items()}


def _mask(
    setting: Setting, system: System, subset: Subset, name: str, repeated: np.ndarray | None
) -> np.ndarray:
    keep = np.ones(len(system.rows), bool)
    for column, wanted in subset.items():
        options = wanted if isinstance(wanted, list) else [wanted]
        if column == REPEATED:
            if not all(isinstance(option, bool) for option in options):
                raise UserError(
                    f"{REPEATED} is true or false, not {wanted!r}", where=f"report.subsets.{name}"
                )
            assert repeated is not None
            keep &= np.isin(repeated, options)
            continue
        values = field(setting.dataset, column, system.rows)
        if all(value is None for value in values):
            raise UserError(
                f"no test utterance has a {column}",
                where=f"report.subsets.{name}",
                hint="name a field of the corpus, for example extra.style",
            )
        # True == 1 in Python; a subset means the value that it names
        allowed = {(type(option) is bool, option) for option in options}
        keep &= np.array([(type(value) is bool, value) in allowed for value in values], bool)
    return keep


def repeats(setting: Setting, system: System) -> np.ndarray:
    """(n,) bool: the text of a test row stands in its own fold's training speech."""
    texts = np.array(
        [" ".join(t.lower().split()) if t else "" for t in field(setting.dataset, "text")], dtype=object
    )
    out = np.zeros(len(system.rows), bool)
    for number, fold in enumerate(setting.folds.values()):
        known = set(texts[fold.train]) - {""}
        mine = np.flatnonzero(system.fold == number)
        out[mine] = [texts[row] in known for row in system.rows[mine]]
    return out


def scores(
    parts: dict[str, np.ndarray], truth: scoring.Truth, system: System, speakers: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Pooled scores of each subset, with how many utterances and speakers it has."""
    return {
        name: {
            "utterances": int(mask.sum()),
            "speakers": len(set(speakers[mask])),
            "pooled": scoring.pooled(truth.part(mask), system.part(mask), speakers[mask])
            if mask.any()
            else {},
        }
        for name, mask in parts.items()
    }


def repetition(setting: Setting, system: System, parts: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """How many test utterances say a line that training has read: a row a fold and subset, the whole test set first."""
    said = repeats(setting, system)
    out = []
    for number, fold in enumerate(setting.folds):
        here = system.fold == number
        for name, mask in {"all": np.ones(len(said), bool), **parts}.items():
            rows = here & mask
            out.append(
                {
                    "fold": fold,
                    "subset": name,
                    "utterances": int(rows.sum()),
                    "repeated": int(said[rows].sum()),
                }
            )
    return out
