"""What a model on frames takes from its training rows before the first step, and whether its log-mel is the stored one.

Guarantees: mean and deviation come from (a sample of) the training rows alone: they are `fit` exposure.
"""

from typing import Any

import numpy as np
import torch

from ser.inputs import complete, needs_of
from ser.models import SERModel
from ser.models.config import ConvConfig, FusedConfig, TCGRUConfig
from ser.models.fused import Fused
from ser.models.probe import LAYERS, Probe
from ser.models.prosodic import FrameModel
from ser.models.tcgru import TCGRU
from ser.recipe import Recipe
from ser.setting import Setting
from shards.dataset import Dataset
from shards.errors import UserError
from shards.loader import load_slot
from shards.slots import Slot
from shards.targets import PRESENT, TargetStore

NORMALISATION_ROWS = 2000


def fit_normalisation(
    model: SERModel, dataset: Dataset, rows: np.ndarray, features: dict[str, TargetStore], setting: Setting
) -> None:
    """Fit mean and deviation of the frames a model reads, over its training rows only (they are `fit` exposure)."""
    from ser.features.normalise import Moments

    if isinstance(model, Probe):
        return _fit_states(model, features[LAYERS], rows, setting)
    if not isinstance(model, FrameModel):
        for part in tcgrus(model):
            _fit_streams(part, dataset, rows, features, setting)
        return
    chosen = np.sort(rows)[:: max(1, len(rows) // NORMALISATION_ROWS)]
    views = np.full(len(chosen), setting.train_views[0], np.int64)
    needs = needs_of(model, features)
    moments, whole = None, None
    for start in range(0, len(chosen), 64):
        slot = Slot(chosen[start : start + 64], views[start : start + 64])
        frames, lengths = model.frames(complete(load_slot(dataset, slot, needs, setting.policy), model))
        moments = (moments or Moments.empty(frames.shape[2])).add(frames, lengths)
        if model.functionals is not None:
            values = model.functionals.raw(frames, lengths)[:, None]
            whole = (whole or Moments.empty(values.shape[2])).add(values, (lengths > 0).long())
    assert moments is not None
    if model.config.normalise in ("fitted", "level"):
        fitted = moments.normaliser()
        model.fit_normalisation(fitted.mean, fitted.deviation)
    if model.functionals is not None and whole is not None:
        fitted = whole.normaliser()
        model.functionals.fit(fitted.mean, fitted.deviation)


def tcgrus(model: SERModel) -> list[TCGRU]:
    """The TC-GRUs in a model that are trained with it."""
    if isinstance(model, Fused):
        return [] if model.config.frozen else [t for part in model.parts.values() for t in tcgrus(part)]
    return [model] if isinstance(model, TCGRU) else []


def _fit_streams(
    model: TCGRU, dataset: Dataset, rows: np.ndarray, features: dict[str, TargetStore], setting: Setting
) -> None:
    """Fit mean and deviation of every stream that wants them, over (a sample of) the training rows."""
    from ser.features.normalise import Moments

    if not model.fitted():
        return
    chosen = np.sort(rows)[:: max(1, len(rows) // NORMALISATION_ROWS)]
    views = np.full(len(chosen), setting.train_views[0], np.int64)
    needs, moments = needs_of(model, features), {}
    for start in range(0, len(chosen), 64):
        slot = Slot(chosen[start : start + 64], views[start : start + 64])
        batch = complete(load_slot(dataset, slot, needs, setting.policy), model)
        for name in model.fitted():
            frames, lengths = model.frames(batch, name)
            moments[name] = moments.get(name, Moments.empty(frames.shape[2])).add(frames, lengths)
    for name, found in moments.items():
        model.fit_stream(name, found.normaliser().mean, found.normaliser().deviation)


def _fit_states(model: Probe, store: TargetStore, rows: np.ndarray, setting: Setting) -> None:
    """Mean and deviation of every hidden state over (a sample of) the training rows."""
    chosen = np.sort(rows)[:: max(1, len(rows) // NORMALISATION_ROWS)]
    views = np.full(len(chosen), setting.train_views[0], np.int64)
    present = store.state(chosen, views) == PRESENT
    states = np.asarray(store.read(chosen, views)[LAYERS], np.float64)[present]
    mean, deviation = states.mean(0), states.std(0)
    model.fit_normalisation(torch.from_numpy(mean).float(), torch.from_numpy(deviation).float())


def _mel_configs(recipe: Recipe, config: Any) -> list[Any]:
    """Configurations of the networks on stored log-mels inside a model's own."""
    if isinstance(config, FusedConfig):
        parts = [part for part in config.components.values() if part is not None]
        return [found for part in parts for found in _mel_configs(recipe, part)]
    reads = isinstance(config, ConvConfig) or (isinstance(config, TCGRUConfig) and "mel" in config.streams)
    return [config] if reads and config.features == "stored" else []


def check_mel(recipe: Recipe, name: str) -> None:
    """Refuse a model that would hear other log-mels alone than the stored ones it is trained on."""
    for config in _mel_configs(recipe, recipe.models[name].model):
        _check_mel(recipe, name, config)


def _check_mel(recipe: Recipe, name: str, config: Any) -> None:
    stored = recipe.features.get("mel")
    if stored is None:
        raise UserError(
            f"{name} reads stored log-mels, and the recipe stores none",
            where=recipe.name,
            hint="add `features: {mel: {kind: mel}}`, or set the model's `features: online`",
        )
    given = ConvConfig(**stored.options).mel
    other = {key: (value, given[key]) for key, value in config.mel.items() if value != given[key]}
    if other:
        says = ", ".join(f"{key} {a} (stored: {b})" for key, (a, b) in other.items())
        raise UserError(
            f"{name} and the stored log-mel differ: {says}", where=recipe.name, hint="make them agree"
        )
