"""Everything that all trainings of a recipe share, opened once a process: dataset, protocol, folds, labels, views, features."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ser.loss import Supervision
from ser.objectives import class_weights
from ser.protocol import Fold, Labels, Protocol, folds, labels, load_protocol, shown_rows
from ser.recipe import Recipe
from ser.strict import validate
from shards.dataset import Dataset
from shards.errors import UserError
from shards.views import ViewPolicy


@dataclass
class Setting:
    """What a recipe's trainings share."""

    recipe: Recipe
    dataset: Dataset
    protocol: Protocol
    policy: ViewPolicy

    @cached_property
    def folds(self) -> dict[str, Fold]:
        """Folds by name, all of the protocol's or those that the recipe names."""
        every = {fold.name: fold for fold in folds(self.protocol, self.dataset)}
        if self.recipe.folds == "all":
            return every
        for name in self.recipe.folds:
            if name not in every:
                raise UserError(
                    f"no fold {name!r}", where=self.protocol.name, hint=f"folds: {', '.join(every)}"
                )
        return {name: every[name] for name in self.recipe.folds}

    @cached_property
    def labels(self) -> Labels:
        """Labels of every row under the protocol."""
        return labels(self.protocol, self.dataset)

    def labels_from(self, source: str | None) -> Labels:
        """Labels with another `label_from` (None is the protocol's own)."""
        if source is None:
            return self.labels
        return labels(self.protocol.model_copy(update={"label_from": source}), self.dataset)

    @property
    def train_views(self) -> list[int]:
        """Views that training draws from: 1..V, or the clean one when V = 0."""
        return list(range(1, self.policy.count + 1)) or [0]

    @property
    def classes(self) -> list[str]:
        """Class names in order."""
        return list(self.protocol.classes)


def supervision(setting: Setting, fold: Fold, model: str, weighting: str) -> tuple[Supervision, np.ndarray]:
    """Labels as model `model` may see them while it trains on `fold`, and the training rows whose label shows.

    Labels of all but the shown training rows are hidden (-1, nan): nothing of dev or test can enter a loss.
    """
    recipe = setting.recipe.models[model]
    known = setting.labels_from(recipe.label_from)
    shown = fold.labelled
    if recipe.labelled is not None:
        protocol = setting.protocol.model_copy(update={"labelled": recipe.labelled})
        shown = shown_rows(protocol, setting.dataset, fold.train[known.known[fold.train]])
    mask = np.zeros(len(setting.dataset), dtype=bool)
    mask[shown] = True
    classes = np.where(mask, known.classes, -1)
    dimensions = np.where(mask[:, None], known.dimensions, np.nan).astype(np.float32)
    soft = None if known.soft is None else np.where(mask[:, None], known.soft, 0.0).astype(np.float32)
    count = len(setting.classes)
    weights = np.ones(count, dtype=np.float32)
    if weighting == "balanced":
        import torch

        counts = torch.from_numpy(np.bincount(classes[classes >= 0], minlength=count))
        weights = class_weights(counts).numpy().astype(np.float32)
    any_label = (classes >= 0) | np.isfinite(dimensions).any(1)
    return Supervision(classes, soft, dimensions, weights), np.flatnonzero(any_label)


def open_setting(recipe: Recipe) -> Setting:
    """The setting of a recipe; the same process opens each dataset generation once.

    Raises:
        UserError: The dataset is not packed yet, or the protocol does not fit it.
    """
    mark = Path(recipe.data.path) / "dataset.json"
    stamp = mark.stat().st_mtime_ns if mark.exists() else 0
    return _open(recipe.model_dump_json(), stamp)


@lru_cache(maxsize=4)
def _open(recipe_json: str, stamp: int) -> Setting:
    recipe = validate(Recipe, Recipe.model_validate_json(recipe_json).model_dump(), where="recipe")
    return Setting(
        recipe, Dataset.open(recipe.data.path), load_protocol(recipe.protocol), view_policy(recipe.views)
    )


def view_policy(values: dict[str, Any]) -> ViewPolicy:
    """The recipe's views; an empty mapping means the clean view alone."""
    return ViewPolicy.from_dict({"count": 0, **values})
