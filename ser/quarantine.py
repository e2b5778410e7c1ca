"""Utterances that the making of features or targets gives up: a few are borne and counted, too many stop the stage."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ser.recipe import Recipe
from shards.errors import UserError

if TYPE_CHECKING:
    from ser.produce import Done, Work

MOST_NAMED = 3


def refuse_share(recipe: Recipe, bad: int, total: int, examples: Sequence[str], what: str) -> None:
    """Refuse to go on when too many utterances were given up.

    Raises:
        UserError: `bad` of `total` are more than `data.max_quarantined` of them; three are always borne.
    """
    share = recipe.data.max_quarantined
    if bad <= max(MOST_NAMED, int(share * total)):
        return
    raise UserError(
        f"{what}: {bad} of {total} utterances could not be read or answered, more than data.max_quarantined={share:g}: "
        + "; ".join(examples),
        where=recipe.data.path,
        hint="withdraw these utterances, or mend them and pack anew; "
        f"data.max_quarantined={-(-bad * 100 // total) / 100:g} goes on without them",
    )


class Quarantine:
    """Counts utterances that units give up, and stops the stage once they are too many.

    Args:
        recipe: Its `data.max_quarantined` is the share that is borne.
        work: All units of the stage.
    """

    def __init__(self, recipe: Recipe, work: "Sequence[Work]"):
        self.recipe, self.bad = recipe, dict[str, str]()
        rows = [rows for item in work for rows in item.rows.values()]
        self.total = len(np.unique(np.concatenate(rows))) if rows else 0
        names = {"features" if item.teacher is None else f"targets of {item.teacher.model}" for item in work}
        self.what = ", ".join(sorted(names))

    def add(self, done: "Done") -> None:
        """Count what one unit gave.

        Raises:
            UserError: Too many by now, with the first keys and their reasons.
        """
        self.bad.update(dict(done.quarantined))
        examples = [f"{key}: {reason}" for key, reason in list(self.bad.items())[:MOST_NAMED]]
        refuse_share(self.recipe, len(self.bad), self.total, examples, self.what)
