"""What a recipe asks of its report beside the plain rows: tables over two traits, scores against depth, subsets.

Guarantees: nothing here is computed from anything but the answers that the plain rows are computed from.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ser.strict import Strict
from shards.errors import UserError

if TYPE_CHECKING:
    from ser.recipe import Recipe

# A subset's field that no corpus has: whether a test utterance's text stands in its fold's training speech too.
REPEATED = "repeated_text"


class Grid(Strict):
    """A table of models by two traits, an ablation for instance.

    Attributes:
        metrics: What every cell shows.
        rows: Row title -> column title -> model.
    """

    title: str
    metrics: list[str] = Field(default=["ua", "wa"], min_length=1)
    rows: dict[str, dict[str, str]] = Field(min_length=1)

    @property
    def columns(self) -> list[str]:
        """Column titles in order of appearance."""
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))

    @property
    def models(self) -> list[str]:
        """Every model named."""
        return [name for row in self.rows.values() for name in row.values()]


class Depth(Strict):
    """Scores against the depth of an encoder, a curve a metric.

    Attributes:
        series: Series -> depth (layers below what is heard; 0 is the convolutions' output) -> model.
        levels: Title -> model: horizontal lines, models that have no depth (a weighted sum of all layers).
    """

    title: str
    metrics: list[str] = Field(default=["ccc_arousal", "ccc_valence", "ccc_dominance"], min_length=1)
    series: dict[str, dict[int, str]] = Field(min_length=1)
    levels: dict[str, str] = {}

    @property
    def models(self) -> list[str]:
        """Every model named."""
        return [name for line in self.series.values() for name in line.values()] + list(self.levels.values())


class Trained(Strict):
    """What it costs to train: a score beside the trained parameters, as a share of a large model's.

    Attributes:
        reference: The large model.
        models: The others.
        metric: Of the figure.
    """

    reference: str
    models: list[str] = Field(min_length=1)
    metric: str = "ccc_valence"


# field (as in a protocol's subset) -> value or values
Subset = dict[str, Any]


def check_layout(recipe: "Recipe", comparable: Iterable[str]) -> None:
    """Refuse grids, depth figures and shares of trained parameters that name no model or no metric.

    Raises:
        UserError: Naming the key.
    """
    asked = [(f"grids.{i}", one.models, one.metrics) for i, one in enumerate(recipe.report.grids)]
    asked += [(f"depths.{i}", one.models, one.metrics) for i, one in enumerate(recipe.report.depths)]
    if (share := recipe.report.trained) is not None:
        asked.append(("trained", [share.reference, *share.models], [share.metric]))
    for key, models, metrics in asked:
        where = f"{recipe.name}: report.{key}"
        for name in models:
            if name not in recipe.models:
                raise UserError(
                    f"{name!r} is no model of this recipe", where=where, hint=", ".join(recipe.models)
                )
        for metric in metrics:
            if metric not in comparable:
                raise UserError(
                    f"{metric!r} is no metric", where=where, hint=f"metrics: {', '.join(comparable)}"
                )
