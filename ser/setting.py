"""Everything that all trainings of a recipe share, opened once a process: dataset, protocol, folds, labels, views, features."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ser import pin
from ser.exposure import called
from ser.grouping import groups, listed
from ser.loss import Supervision
from ser.objectives import class_weights
from ser.protocol import Fold, Labels, Protocol, folds, labels, load_protocol, shown_rows
from ser.recipe import Recipe
from ser.strict import validate
from shards import manifest
from shards.dataset import Dataset
from shards.errors import UserError
from shards.store import Store
from shards.views import ViewPolicy


@dataclass
class Setting:
    """What a recipe's trainings share. `memo` holds what others have worked out from it and would work out again."""

    recipe: Recipe
    dataset: Dataset
    protocol: Protocol
    policy: ViewPolicy
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def folds(self) -> dict[str, Fold]:
        """Folds by name, all of the protocol's or those that the recipe names (with or without their corpus)."""
        every = {fold.name: fold for fold in folds(self.protocol, self.dataset)}
        if self.recipe.folds != "all":
            every = {name: every[name] for name in (self._whole_name(n, every) for n in self.recipe.folds)}
        for name, entry in self.recipe.models.items():
            if entry.teacher_fold is not None and entry.teacher_fold not in every:
                raise UserError(
                    f"no fold {entry.teacher_fold!r} for the teachers of {name} in this run",
                    where=f"{self.recipe.name}: models.{name}.teacher_fold",
                    hint=f"folds: {', '.join(every)}",
                )
        return every

    def _whole_name(self, name: str, every: dict[str, Fold]) -> str:
        """The fold "speaker-emodb-03" may be called "speaker-03" where only one corpus has such a fold."""
        if name in every:
            return name
        by, dash, own = name.partition("-")
        fit = [whole for c in self.dataset.corpora if (whole := f"{by}-{c}-{own}") in every and dash]
        if len(fit) != 1:
            raise UserError(
                f"no fold {name!r}" if not fit else f"the fold {name!r} is ambiguous: {', '.join(fit)}",
                where=self.protocol.name,
                hint=f"folds: {', '.join(every)}",
            )
        return fit[0]

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


def within(setting: Setting, model: str) -> np.ndarray:
    """(n,) bool: rows of the dataset that model `model` may learn from and be chosen by (its `rows`).

    Raises:
        UserError: A value that no utterance of the protocol has.
    """
    chosen = np.ones(len(setting.dataset), bool)
    where = f"{setting.recipe.name}: models.{model}.rows"
    for by, wanted in setting.recipe.models[model].rows.items():
        values = groups(setting.dataset, by)
        chosen &= np.isin(values.codes, listed(values, wanted, setting.labels.scope, by, where))
    return chosen


def restricted(setting: Setting, fold: Fold, model: str) -> Fold:
    """The fold as model `model` learns from it and is chosen by it; its test set stays whole.

    Raises:
        UserError: Nothing is left to learn from, or nobody to choose by where the fold has a dev set.
    """
    wanted = setting.recipe.models[model].rows
    if not wanted:
        return fold
    inside = within(setting, model)
    train, dev, labelled = (rows[inside[rows]] for rows in (fold.train, fold.dev, fold.labelled))
    for split, rows, whole in (("train", train, fold.train), ("dev", dev, fold.dev)):
        if len(whole) and not len(rows):
            told = "; ".join(f"{by} {', '.join(values)}" for by, values in wanted.items())
            raise UserError(
                f"the {split} set of {called(fold.name)} has no utterance of {told}",
                where=f"{setting.recipe.name}: models.{model}.rows",
                hint=f"choose folds that have it on both sides, or leave out models.{model}",
            )
    return Fold(fold.name, train, dev, fold.test, labelled)


def supervision(setting: Setting, fold: Fold, model: str, weighting: str) -> tuple[Supervision, np.ndarray]:
    """Labels as model `model` may see them while it trains on `fold`, and the training rows whose label shows.

    Labels of all but the shown training rows are hidden (-1, nan): nothing of dev or test can enter a loss.
    """
    recipe = setting.recipe.models[model]
    fold = restricted(setting, fold, model)
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
    """The setting of a recipe, over the generation of the dataset that its run has pinned (`ser.pin`), else the newest.

    The same process opens each state once.

    Raises:
        UserError: The dataset is not packed yet, or the protocol does not fit it.
    """
    pinned = pin.read(recipe)
    if pinned is not None:
        return _open(recipe.model_dump_json(), pinned["generation"], pinned["content_hash"])
    store = Store(recipe.data.path)
    try:
        mark = store.read(manifest.NAME)
    except (FileNotFoundError, NotADirectoryError):
        mark = b""  # the opening says what is missing
    return _open(recipe.model_dump_json(), None, hashlib.sha256(mark).hexdigest())


@lru_cache(maxsize=4)
def _open(recipe_json: str, generation: int | None, state: str) -> Setting:
    recipe = validate(Recipe, Recipe.model_validate_json(recipe_json).model_dump(), where="recipe")
    dataset = Dataset.open(recipe.data.path, generation)
    if generation is not None and dataset.content_hash != state:
        raise UserError(
            f"generation {generation} of the dataset is not the one that this run has pinned",
            where=recipe.data.path,
            hint="ser run RECIPE moves the run to the newest",
        )
    return Setting(recipe, dataset, load_protocol(recipe.protocol), view_policy(recipe.views))


def view_policy(values: dict[str, Any]) -> ViewPolicy:
    """The recipe's views; an empty mapping means the clean view alone."""
    return ViewPolicy.from_dict({"count": 0, **values})
