"""A finished run without training: a real packed dataset, real model folders, made-up answers of a known quality."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from ser.checkpoint import write_json
from ser.events import Events
from ser.exposure import of_rows
from ser.finish import table_of, write_predictions
from ser.infer import Answers
from ser.job import Job, directory, identity, jobs, write_identity
from ser.models import build, count_parameters, save
from ser.produce import teacher_spec
from ser.recipe import Recipe
from ser.setting import Setting, open_setting
from shards.targets import TargetStore
from tests.ser.small_dataset import packed

CLASSES = ("angry", "happy", "sad", "calm")
QUADRANT = {"angry": (0.2, 0.8), "happy": (0.8, 0.8), "sad": (0.2, 0.2), "calm": (0.8, 0.2)}
CONV = {"kind": "conv", "width": 8, "strides": [3], "blocks": 1, "embedding": 8}
PROSODIC = {"kind": "prosodic", "width": 8, "strides": [3], "blocks": 1, "embedding": 8}
TRAIN = {"steps": 40, "slot_seconds": 4}
LABELS = [{"loss": "cross_entropy"}, {"loss": "ccc"}]
QUALITY = {"prosody": 1.0, "voice": 1.6, "fused": 2.2, "student": 2.0, "baseline": 1.1, "permuted": 1.101}


def rows(
    speakers: int, repeats: int, dims: bool, seed: int = 0, licence: str = "CC BY-NC-SA 4.0"
) -> list[dict]:
    """Utterances of four classes; a tenth of the labels is noise, `extra.clean_label` is not."""
    rng = np.random.default_rng(seed)
    out = []
    for s in range(speakers):
        for clean in CLASSES:
            for k in range(repeats):
                label = clean if rng.random() < 0.9 else CLASSES[rng.integers(4)]
                v, a = QUADRANT[clean]
                rated = {
                    "valence": float(np.clip(v + rng.normal(0, 0.1), 0, 1)),
                    "arousal": float(np.clip(a + rng.normal(0, 0.1), 0, 1)),
                    "dominance": float(np.clip((v + 2 * a) / 3 + rng.normal(0, 0.1), 0, 1)),
                    "scale": (0, 1),
                }
                out.append(
                    {
                        "speaker": f"s{s:02d}",
                        "gender": "female" if s % 2 else "male",
                        "language": ("en", "fi", "fr")[s % 3],
                        "label": label,
                        "text": f"sentence {k}",
                        "licence": licence,
                        "extra": {
                            "clean_label": clean,
                            "split": "test" if s >= speakers // 2 else "dev" if s < 2 else "train",
                        },
                        **(rated if dims else {}),
                    }
                )
    return out


def recipe(tmp: Path, protocol: dict, dims: bool, **changes) -> Recipe:
    """Six models: two teachers, their product, a student, its baseline and its control."""
    objective = LABELS if dims else LABELS[:1]
    kl = [*objective, {"loss": "kl", "teacher": "fused", "temperature": 2.0}]
    fused = {"kind": "fused", "mode": "product", "components": {"prosody": None, "voice": None}}
    models = {
        "prosody": {"role": "teacher", "model": PROSODIC, "objective": objective, "train": TRAIN},
        "voice": {"role": "teacher", "model": CONV, "objective": objective, "train": TRAIN},
        "fused": {"role": "teacher", "model": fused},
        "student": {"role": "student", "model": CONV, "objective": kl, "train": TRAIN, "data": "all"},
        "baseline": {"role": "baseline", "model": CONV, "objective": objective, "train": TRAIN},
        "permuted": {"role": "control", "model": CONV, "objective": kl, "train": TRAIN, "permute_targets": True},
    }  # fmt: skip
    compare = [
        {"system": "student", "reference": "baseline"},
        {"system": "permuted", "reference": "baseline"},
        {"system": "student", "reference": "fused", "metric": "wa"},
    ]
    values = {
        "name": "fake",
        "about": "A run that nobody trained: its answers are drawn at random with a given quality.",
        "run_dir": str(tmp / "run"),
        "data": {"path": str(tmp / "data"), "corpora": [{"reader": "manifest", "root": str(tmp)}]},
        "protocol": {
            "name": "toy", "classes": {name: [name] for name in CLASSES}, "folds": {"kind": "k-fold", "k": 3},
            "dev": {"by": "speaker", "count": 2},
            "dimensions": ["valence", "arousal", "dominance"] if dims else [], **protocol,
        },
        "seeds": [0, 1, 2], "models": models,
        "report": {"compare": compare, "references": {"clean": "extra.clean_label"}},
    }  # fmt: skip
    return Recipe.model_validate({**values, **changes})


def make(
    tmp: Path,
    *,
    speakers: int = 12,
    repeats: int = 5,
    dims: bool = True,
    protocol: dict | None = None,
    corpus: str = "toy",
    targets: bool = True,
    data: list[dict] | None = None,
    **changes,
) -> Setting:
    """The setting of a run in which every training is finished."""
    data = rows(speakers, repeats, dims) if data is None else data
    packed(tmp, [{**row, "corpus": corpus} for row in data])
    setting = open_setting(recipe(tmp, protocol or {}, dims, **changes))
    r = setting.recipe
    r.directory.mkdir(parents=True)
    write_json(r.directory / "environment.json", {"python": "3.11", "packages": {"torch": "2"}, "cpus": 2})
    for name in r.order():
        for fold in setting.folds:
            for job in jobs(r, fold, name):
                finish(setting, job)
                if targets and r.models[name].role == "teacher" and name in QUALITY:
                    store_targets(setting, job)
    return setting


def logits(setting: Setting, rows: np.ndarray, quality: float, seed: int) -> np.ndarray:
    """Answers (n, K) that know the clean class to some degree."""
    rng = np.random.default_rng([seed, int(quality * 1000)])
    clean = setting.labels_from("extra.clean_label").classes[rows]
    return (rng.normal(0, 1, (len(rows), len(CLASSES))) + quality * np.eye(len(CLASSES))[clean]).astype(
        np.float32
    )


def dimensions(setting: Setting, rows: np.ndarray, quality: float, seed: int) -> np.ndarray:
    """Ratings (n, 3) with noise."""
    rng = np.random.default_rng([seed, 7, int(quality * 1000)])
    truth = setting.labels.dimensions[rows]
    return (truth + rng.normal(0, 0.4 / quality, truth.shape)).astype(np.float32)


def finish(setting: Setting, job: Job, state: np.ndarray | None = None) -> Path:
    """Write what a training leaves behind: identity, model, predictions, events, DONE."""
    r, fold = setting.recipe, setting.folds[job.fold]
    entry, quality = r.models[job.model], QUALITY.get(job.model, 1.0)
    folder = directory(r, job)
    write_identity(folder, identity(setting, job))
    dims = bool(setting.protocol.dimensions)
    parts = {
        name: build(r.models[name].model, len(setting.classes), dims)
        for name in entry.components
        if name is not None
    }
    model = build(entry.model, len(setting.classes), dims, components=parts)
    rows = fold.train if entry.data == "all" else fold.labelled
    heard = {"schema": 1, "fit": sorted(of_rows(setting.dataset, rows)), "unknown": []}
    heard["select"] = sorted(of_rows(setting.dataset, fold.dev))
    training = {"chosen": "step 30", "steps": 40, "dev": 0.5, "skipped": 0, "quarantined": {}}
    meta = {
        "name": job.model, "classes": setting.classes, "dimensions": "valence, arousal, dominance on [0, 1]",
        "exposure": heard, "licences": ["CC BY-NC-SA 4.0"], "parameters": count_parameters(model),
        "training": {"chosen": "assembled"} if entry.train is None else training,
    }  # fmt: skip
    save(model.eval(), folder / "model", meta)
    tables = []
    for k, (split, rows) in enumerate((("dev", fold.dev), ("test", fold.test))):
        # the order of a file is the order of inference, not that of the fold
        rows = np.random.default_rng(job.seed).permutation(rows)
        seed = 100 * (job.seed + 1) + 10 * k + list(setting.folds).index(job.fold)
        states = np.ones(len(rows), np.uint8) if state is None or split == "dev" else state[: len(rows)]
        answers = Answers(
            rows, logits(setting, rows, quality, seed) if setting.classes else None,
            dimensions(setting, rows, quality, seed) if dims else None, None, states, [],
        )  # fmt: skip
        tables.append(table_of(answers, split, setting.dataset.keys(rows)))
    write_predictions(folder / "predictions.parquet", pa.concat_tables(tables))
    if entry.train is not None:
        write_events(folder, quality, job.seed)
    write_json(folder / "DONE", {"model": "model/model.json"})
    return folder


def write_events(folder: Path, quality: float, seed: int) -> None:
    """Learning curves of a plausible shape."""
    rng = np.random.default_rng(seed)
    events = Events(folder, tensorboard=False)
    for step in range(0, 40, 2):
        done = 1 - np.exp(-step / 12)
        events.write("train", step, loss=1.4 - 0.4 * quality * done + rng.normal(0, 0.03))
        if step % 10 == 8:
            ua = 0.25 + 0.25 * quality * done + rng.normal(0, 0.01)
            events.write("dev", step, ua=ua, nll=1.4 - 0.3 * quality * done, best=ua)
    events.close()


def store_targets(setting: Setting, job: Job) -> None:
    """Stored targets of a teacher: sharper on what it was trained on."""
    store = TargetStore.create(setting.dataset, teacher_spec(setting, job))
    fold = setting.folds[job.fold]
    wanted = np.zeros(len(setting.dataset), bool)
    wanted[np.concatenate([fold.train, fold.dev])] = True
    for unit in store.due(wanted, [0]):
        arrays: dict = {}
        for output in store.spec.outputs:
            n = len(unit.rows)
            if output.name == "logits":
                sharp = np.where(np.isin(unit.rows, fold.train), 3.0, 1.0)[:, None]
                arrays["logits"] = list(
                    (sharp * logits(setting, unit.rows, 2.0, 5 + unit.shard)).astype(np.float32)
                )
            else:
                arrays[output.name] = list(np.zeros((n, *output.shape), output.numpy))
        store.write(unit, np.ones(len(unit.rows), np.uint8), arrays)
