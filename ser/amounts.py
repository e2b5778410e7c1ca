"""How much speech a recipe works through: counted in its packed dataset, or taken from the hours that somebody states.

Gives up: where hours are stated, utterances of `MEAN_SECONDS`, folds of 80 % train, 10 % dev and 10 % test, and FLAC of
`FLAC_RATIO` of 16-bit PCM are assumed; shards and folds of a packed dataset are counted.
"""

import math
from dataclasses import dataclass

import numpy as np

from ser.job import Job, train_config
from ser.recipe import Recipe
from ser.setting import Setting, supervision
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

MEAN_SECONDS = 4.0
FLAC_RATIO = 0.65
FOLDS = 5


@dataclass(frozen=True)
class Heard:
    """Utterances, and their seconds on the clean view."""

    rows: int
    seconds: float


@dataclass(frozen=True)
class Part:
    """One fold."""

    train: Heard
    dev: Heard
    test: Heard


@dataclass(frozen=True)
class Amount:
    """What a recipe's trainings, targets and features read.

    Attributes:
        whole: All utterances of the dataset.
        trained, held: Utterances that some fold trains on, and that some fold has in dev or test.
        folds: Name to fold.
        shards, shard_bytes: Number of shards; bytes of shards and index.
        counted: In a packed dataset; else from stated hours.
    """

    whole: Heard
    trained: Heard
    held: Heard
    folds: dict[str, Part]
    shards: int
    shard_bytes: int
    counted: bool

    @property
    def mean_seconds(self) -> float:
        """Duration of an utterance."""
        return self.whole.seconds / max(1, self.whole.rows)


def of_dataset(setting: Setting) -> Amount:
    """Counted in the packed dataset, over the recipe's folds."""
    dataset = setting.dataset
    samples = np.asarray(dataset.samples)

    def heard(rows: np.ndarray) -> Heard:
        return Heard(len(rows), float(samples[rows].sum()) / SAMPLE_RATE)

    def union(which: list[np.ndarray]) -> Heard:
        return heard(np.unique(np.concatenate(which)))

    every = setting.folds
    store = dataset.store
    names = [name for folder in ("shards", "index") for name in store.list(folder)]
    return Amount(
        heard(np.arange(len(dataset))),
        union([fold.train for fold in every.values()]),
        union([rows for fold in every.values() for rows in (fold.dev, fold.test)]),
        {name: Part(heard(fold.train), heard(fold.dev), heard(fold.test)) for name, fold in every.items()},
        len(dataset.shards),
        sum(map(store.size, names)),
        True,
    )


def stated(recipe: Recipe, hours: float, folds: int | None = None) -> Amount:
    """What so many hours of speech come to.

    Raises:
        UserError: Hours or folds that are not positive.
    """
    names = list(recipe.folds) if recipe.folds != "all" else []
    count = folds or len(names) or FOLDS
    if not hours > 0 or count < 1:
        raise UserError(
            f"{hours} hours in {count} folds are nothing to plan for", hint="--hours 100 --folds 5"
        )
    seconds = hours * 3600

    def share(part: float) -> Heard:
        return Heard(round(seconds * part / MEAN_SECONDS), seconds * part)

    names = names if len(names) == count else [f"fold {i}" for i in range(1, count + 1)]
    one = Part(share(0.8), share(0.1), share(0.1))
    return Amount(
        share(1.0),
        share(min(1.0, 0.8 + 0.2 * (count > 1))),
        share(min(1.0, 0.2 * count)),
        dict.fromkeys(names, one),
        math.ceil(seconds / recipe.data.shard_seconds),
        round(seconds * 2 * SAMPLE_RATE * FLAC_RATIO),
        False,
    )


def steps(recipe: Recipe, amount: Amount, job: Job, setting: Setting | None = None) -> int:
    """Global steps of one training: the recipe's, or those of its epochs (to the step where the dataset is there)."""
    config = train_config(recipe, job)
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    if setting is None:
        seconds = amount.folds[job.fold].train.seconds
        return config.epochs * math.ceil(seconds / (config.slots * config.slot_seconds))
    from ser.build import plan_of

    fold = setting.folds[job.fold]
    labels, labelled = supervision(setting, fold, job.model, "none")
    rows = fold.train if recipe.models[job.model].data == "all" else labelled
    return plan_of(setting, job, config, rows if len(rows) else fold.train, labels).total_steps(config.epochs)
