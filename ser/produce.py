"""Stored features and stored targets: what they are, what is still due, and how one unit of them is computed.

A feature (log-mel, prosody) and a teacher's answer are both a pure function of (utterance, view), so both are stored
by `shards.targets` under a fingerprint of all that they depend on. A unit is the due rows of one shard in one view; it
reads audio by range from the shard and writes one side-shard, so units can run anywhere, in any order, again.
"""

import json
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.exposure import Exposure
from ser.infer import answer_slot, inference_slots
from ser.inputs import FUNCTIONALS, needs_of
from ser.job import Job, below, directory, text_facts
from ser.models import SERModel, load
from ser.protocol import Fold
from ser.quarantine import MOST_NAMED, Quarantine, refuse_share
from ser.recipe import FeatureConfig, Recipe
from ser.setting import Setting, open_setting
from ser.sources import parts_of, refuse_heard
from shards.batch import load_slot
from shards.loader import Needs
from shards.targets import PRESENT, QUARANTINED, VIEW_POLICY, Output, TargetSpec, TargetStore, Unit
from shards.utterance import SAMPLE_RATE

FEATURE_SECONDS = 60.0
FEATURE_VERSION = 1


# -- what they are -------------------------------------------------------------------------------------------------


def extractor(config: FeatureConfig) -> Any:
    """The module or function that turns (waveform (B, T), lengths (B,)) into (frames, frame lengths)."""
    if config.kind == "mel":
        from ser.features.mel import LogMel

        return LogMel(**config.options)
    if config.kind in FUNCTIONALS:
        from ser.features import functionals

        return partial(functionals.extract, config.kind)
    from ser.features import prosody

    return prosody.extract


def feature_spec(setting: Setting, name: str) -> TargetSpec:
    """What a stored feature of the recipe is."""
    config = setting.recipe.features[name]
    if config.kind in FUNCTIONALS:
        from ser.classical import functionals_spec  # imports this module

        return functionals_spec(setting, name)
    if config.kind == "mel":
        size = int(config.options.get("bands", 64))
    else:
        from ser.features.prosody import NAMES

        size = len(NAMES)
    return TargetSpec(
        teacher=name,
        outputs=(Output(name, "frame", (size,), config.dtype),),
        fields={
            "kind": config.kind,
            "options": config.options,
            "version": FEATURE_VERSION,
            VIEW_POLICY: setting.policy.hash(),
        },
        informative=machine(),
    )


def kinds_read(recipe: Recipe, config: Any) -> set[str]:
    """Kinds of feature that a model reads, through its components too."""
    if config.kind == "fused":
        parts = [part or recipe.models[name].model for name, part in config.components.items()]
        return {kind for part in parts for kind in kinds_read(recipe, part)}
    if config.kind == "classical":
        return {config.features}
    if config.kind == "tcgru":
        mel = {"mel" if config.features == "stored" else "mel on the spot"}
        return mel if "mel" in config.streams else set()
    if config.kind == "conv":
        return {"mel" if config.features == "stored" else "mel on the spot"}
    return {"prosody"} if config.kind == "prosodic" else set()


def features_of(setting: Setting, name: str) -> dict[str, Any]:
    """What the features that model `name` reads are: the extractors' version and the fingerprints of stored ones, by kind."""
    recipe = setting.recipe
    frames = {encoder: recipe.models[encoder].frames.model_dump() for encoder in recipe.encoders_below(name)}
    return frames | {
        kind: {
            "version": FEATURE_VERSION,
            "stored": {
                stored: feature_spec(setting, stored).fingerprint
                for stored, config in recipe.features.items()
                if config.kind == kind
            },
        }
        for kind in sorted(kinds_read(recipe, recipe.models[name].model))
    }


def teacher_spec(setting: Setting, job: Job) -> TargetSpec:
    """What the stored targets of a finished teacher are."""
    facts = json.loads((directory(setting.recipe, job) / "model" / "model.json").read_text())
    meta, targets = facts["meta"], setting.recipe.targets
    outputs = []
    if facts["classes"]:
        outputs.append(Output("logits", "utterance", (facts["classes"],), "float32"))
    if facts["dimensions"]:
        outputs.append(Output("dimensions", "utterance", (3,), "float32"))
    if targets.embedding and facts["embedding_size"]:
        outputs.append(Output("embedding", "utterance", (facts["embedding_size"],), targets.dtype))
    invariant = facts["inputs"] in (["text"], [])  # nothing: its answers were read from files
    fields = {
        "weights": facts["files"],
        "model": facts["config"],
        "classes": meta["classes"],
        "dimensions": meta["dimensions"],
        "features": features_of(setting, job.model),
        "batch": {"slot_seconds": targets.slot_seconds},
        "precision": "fp32",
        "exposure": meta["exposure"],
        "licences": sorted({*meta["licences"], *meta.get("inherited", [])}),
    }
    if said := heard_texts(setting, job):
        fields["text"] = said
    if not invariant:
        fields[VIEW_POLICY] = setting.policy.hash()
    return TargetSpec(job.model, tuple(outputs), fields, machine(), invariant)


def heard_texts(setting: Setting, job: Job) -> dict[str, str]:
    """Recognisers whose transcripts a model reads, through its components too: source to a digest of what they said."""
    recipe = setting.recipe
    found = text_facts(setting, job).get("text", {})
    for name in recipe.models[job.model].components:
        found = found | heard_texts(setting, below(recipe, job, name))
    return found


def machine() -> dict[str, Any]:
    """Library versions and the kind of device: recorded with targets, not part of their fingerprint."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def feature_stores(setting: Setting) -> dict[str, TargetStore]:
    """The recipe's stored features, opened; what they must be is checked.

    Raises:
        UserError: They were not computed yet, or on other views.
    """
    return {
        name: TargetStore.open(setting.dataset, expect=feature_spec(setting, name))
        for name in setting.recipe.features
    }


def stores_read(setting: Setting, job: Job) -> dict[str, TargetStore]:
    """Stored features and encoders' frames that a training may read, by name."""
    from ser.frames import frame_stores

    return feature_stores(setting) | frame_stores(setting, job)


def teacher_store(setting: Setting, job: Job) -> TargetStore:
    """Stored targets of a finished teacher, opened; a fingerprint that does not fit is refused by field."""
    return TargetStore.open(setting.dataset, expect=teacher_spec(setting, job))


# -- what is due ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One unit to compute.

    Attributes:
        teacher: The teacher's training, or None for features.
        shard, view: Which side-shard.
        rows: Due rows, one array a store name: a feature, a teacher, or "NAME/layers" for an encoder's hidden states.
    """

    teacher: Job | None
    shard: int
    view: int
    rows: dict[str, np.ndarray]


def wanted_by_view(setting: Setting) -> dict[int, np.ndarray]:
    """View -> bool (n,) rows that this recipe reads in that view, over all its folds."""
    each = [read_in(setting, fold) for fold in setting.folds.values()]
    return {view: np.any([wanted[view] for wanted in each], axis=0) for view in each[0]}


def read_in(setting: Setting, fold: Fold) -> dict[int, np.ndarray]:
    """View -> bool (n,) rows of a fold that are heard in it: train rows in the training views, dev and test in the clean one."""
    wanted = {view: np.zeros(len(setting.dataset), bool) for view in sorted({0, *setting.train_views})}
    for view in setting.train_views:
        wanted[view][fold.train] = True
    wanted[0][fold.dev] = wanted[0][fold.test] = True
    return wanted


def feature_work(setting: Setting) -> list[Work]:
    """Features still to be computed for all folds, one unit a (shard, view), all features of it together."""
    due: dict[tuple[int, int], dict[str, np.ndarray]] = defaultdict(dict)
    assert setting.folds, "folds that are not there are refused here, features or none"
    for name in setting.recipe.features:
        store = TargetStore.create(setting.dataset, feature_spec(setting, name))
        wanted = wanted_by_view(setting)
        if store.spec.view_invariant:
            wanted = {0: np.any(list(wanted.values()), axis=0)}
        for view, rows in wanted.items():
            for unit in store.due(rows, [view]):
                due[unit.shard, unit.view][name] = unit.rows
        refuse_unreadable(setting, store, wanted)
    return [Work(None, shard, view, rows) for (shard, view), rows in sorted(due.items())]


def teacher_work(setting: Setting, job: Job) -> list[Work]:
    """Targets of one teacher still to be computed: its fold's train keys in every view, dev keys in the clean one.

    A cross-fitted copy answers for the part of the speakers that it has not heard, and for nobody else.
    """
    fold = setting.folds[job.fold]
    store = TargetStore.create(setting.dataset, teacher_spec(setting, job))
    train, dev = np.zeros(len(setting.dataset), bool), np.zeros(len(setting.dataset), bool)
    train[fold.train], dev[fold.dev] = True, True
    if job.part is not None:
        parts = parts_of(setting.dataset, fold.train, setting.recipe.models[job.model].cross_fit, job.seed)
        train, dev = parts == job.part, np.zeros_like(dev)
        heard = Exposure.from_json(store.spec.fields["exposure"])
        refuse_heard(setting.dataset, np.flatnonzero(train), heard, str(job))
    by_view = {view: train.copy() for view in setting.train_views}
    by_view[0] = by_view.get(0, np.zeros_like(train)) | dev
    if store.spec.view_invariant:
        by_view = {0: train | dev}
    work = []
    for view, rows in sorted(by_view.items()):
        work += [Work(job, unit.shard, unit.view, {job.model: unit.rows}) for unit in store.due(rows, [view])]
    refuse_unreadable(setting, store, by_view)
    return work


def refuse_unreadable(setting: Setting, store: TargetStore, wanted: dict[int, np.ndarray]) -> None:
    """Refuse to go on with a store in which too many of the wanted utterances were given up, in whatever call."""
    bad, every = np.zeros(len(setting.dataset), bool), np.zeros(len(setting.dataset), bool)
    for view, rows in wanted.items():
        asked = np.flatnonzero(rows & np.asarray(setting.dataset.alive))
        every[asked] = True
        bad[asked[store.state(asked, view) == QUARANTINED]] = True
    keys = setting.dataset.keys(np.flatnonzero(bad)[:MOST_NAMED]) if bad.any() else []
    refuse_share(setting.recipe, int(bad.sum()), int(every.sum()), keys, store.spec.teacher)


# -- how a unit is computed ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What a unit gave: answers written, and utterances that could not be read."""

    answers: int
    seconds: float
    quarantined: list[tuple[str, str]]


def compute(recipe: Recipe, work: Work) -> Done:
    """Compute and commit one unit. Runs in any process; computing it twice writes the same answers."""
    setting = open_setting(recipe)
    if work.teacher is None:
        return _features(setting, work)
    if work.teacher.model not in work.rows:
        from ser.layers import compute_layers  # imports this module

        return compute_layers(setting, work)
    if recipe.models[work.teacher.model].role == "encoder":
        from ser.frames import compute_frames  # imports this module

        return compute_frames(setting, work)
    return _targets(setting, work)


@torch.inference_mode()
def _features(setting: Setting, work: Work) -> Done:
    torch.set_num_threads(1)
    rows = np.unique(np.concatenate(list(work.rows.values())))
    found: dict[str, dict[int, np.ndarray]] = {name: {} for name in work.rows}
    quarantined: list[tuple[str, str]] = []
    slots = inference_slots(setting.dataset, rows, setting.policy, work.view, FEATURE_SECONDS, False)
    for slot in slots:
        batch = load_slot(setting.dataset, slot, Needs(waveform=True), setting.policy)
        quarantined += batch.quarantined
        for name in work.rows:
            frames, counts = _extractor(setting.recipe.features[name].model_dump_json())(
                batch.waveform, batch.lengths
            )
            for i, row in enumerate(slot.rows):
                if batch.present[i]:
                    found[name][int(row)] = frames[i, : int(counts[i])].numpy()
    for name, due in work.rows.items():
        store = TargetStore.create(setting.dataset, feature_spec(setting, name))
        arrays = [found[name].get(int(row)) for row in due]
        states = np.array([QUARANTINED if a is None else PRESENT for a in arrays], np.uint8)
        lost = store.write(Unit(work.shard, work.view, due), states, {name: arrays})
        quarantined += [(key, f"its {name} is not finite") for key in setting.dataset.keys(lost)]
    return Done(sum(map(len, work.rows.values())), _seconds(setting, rows), quarantined)


@lru_cache(maxsize=8)
def _extractor(config_json: str) -> Any:
    return extractor(FeatureConfig.model_validate_json(config_json))


@torch.inference_mode()
def _targets(setting: Setting, work: Work) -> Done:
    torch.set_num_threads(1)
    assert work.teacher is not None
    (rows,) = work.rows.values()
    spec = teacher_spec(setting, work.teacher)
    store = TargetStore.create(setting.dataset, spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _teacher(str(directory(setting.recipe, work.teacher) / "model"), spec.fingerprint, str(device))
    assert not model.training
    stored = {key: value for key, value in stores_read(setting, work.teacher).items() if key in model.inputs}
    needs = needs_of(model, stored)
    slots = inference_slots(
        setting.dataset,
        rows,
        setting.policy,
        work.view,
        setting.recipe.targets.slot_seconds,
        model.needs_equal_lengths,
    )
    parts = [answer_slot(model, setting.dataset, slot, needs, setting.policy, device, True) for slot in slots]
    order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
    arrays = {
        output.name: list(np.concatenate([getattr(part, output.name) for part in parts])[order])
        for output in spec.outputs
    }
    states = np.concatenate([part.state for part in parts])[order]
    lost = store.write(Unit(work.shard, work.view, np.sort(rows)), states, arrays)
    quarantined = [item for part in parts for item in part.quarantined]
    quarantined += [(key, "its answer is not finite") for key in setting.dataset.keys(lost)]
    return Done(len(rows), _seconds(setting, rows), quarantined)


@lru_cache(maxsize=4)
def _teacher(folder: str, fingerprint: str, device: str) -> SERModel:
    # The fingerprint is part of the key: a teacher that was trained again is loaded again.
    model, _ = load(Path(folder))
    return model.to(device).eval()


def _seconds(setting: Setting, rows: np.ndarray) -> float:
    return float(setting.dataset.samples[rows].sum()) / SAMPLE_RATE


def serial(recipe: Recipe, work: Sequence[Work]) -> Iterator[Done]:
    """Compute units one after the other in this process (Ray does the same over many)."""
    quarantine = Quarantine(recipe, work)
    for item in work:
        done = compute(recipe, item)
        quarantine.add(done)
        yield done
