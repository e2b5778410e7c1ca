"""What stands around the numbers: data, licences, folds, exposure, trainings, learning curves, how sure teachers are.

Pure reading: nothing here trains, stores or changes anything.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from ser import scoring
from ser.agreement import check_tuning, tuned_in_test
from ser.exposure import Exposure, Finding, check_student, of_rows, tuning
from ser.finish import read_meta
from ser.job import Job, chosen_values, directory, finished
from ser.job import below as under
from ser.leaks import inspect
from ser.licences import restricted
from ser.produce import teacher_store
from ser.results import ANSWERED, Model, Training, voices
from ser.score import probabilities
from ser.setting import Setting, supervision
from ser.setting import restricted as restricted_to
from ser.sources import CrossFitted, parts_of
from ser.truth import field
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

CURVE_POINTS = 200
_SYNTHETIC = re.compile(r"\bsynthetic\b", re.IGNORECASE)


def data(setting: Setting) -> dict[str, Any]:
    """Counts, hours, speakers and licences by corpus, of the utterances that the protocol uses."""
    dataset, truth = setting.dataset, setting.labels
    rows = np.flatnonzero(truth.scope)
    gender = np.array(field(dataset, "gender"), dtype=object)
    licence = field(dataset, "licence")
    splits = _splits(setting)
    out = []
    for code in np.unique(np.asarray(dataset.corpus)[rows]):
        mine = rows[np.asarray(dataset.corpus)[rows] == code]
        name = dataset.corpora[code]
        licences = sorted({licence[r] for r in mine if licence[r]})
        classes = truth.classes[mine]
        packed = dataset.meta["corpora"].get(name, {})
        out.append(
            {
                "corpus": name,
                **_counts(setting, mine),
                "languages": sorted({dataset.languages[c] for c in dataset.language[mine] if c >= 0}),
                "genders": dict(Counter(str(g) for g in gender[mine] if g is not None)),
                "classes": {n: int((classes == i).sum()) for i, n in enumerate(truth.names)},
                "rated": int(np.isfinite(truth.dimensions[mine]).any(1).sum()),
                "transcribed": int((np.asarray(dataset.bits)[mine] & 8 > 0).sum()),
                "licences": licences or ["not stated"],
                "restricted": bool(restricted(licences)),
                "synthetic": any(_SYNTHETIC.search(x) for x in licences),
                "quarantined": packed.get("quarantined", 0),
                "splits": {split: _counts(setting, np.intersect1d(mine, r)) for split, r in splits.items()},
            }
        )
    return {
        "corpora": out,
        "generation": dataset.generation,
        "content_hash": dataset.content_hash,
        "withdrawn": int((~np.asarray(dataset.alive)).sum()),
        "synthetic": [corpus["corpus"] for corpus in out if corpus["synthetic"]],
        "restricted": restricted(x for corpus in out for x in corpus["licences"]),
    }


def encoders(setting: Setting) -> dict[str, Any]:
    """Encoders whose frames models read: what they are, how many numbers they have and what they have heard."""
    out = {}
    for name, entry in setting.recipe.models.items():
        jobs = [Job(fold, name, setting.recipe.seeds_of(name)[0]) for fold in setting.folds]
        there = [job for job in jobs if finished(setting, job)]
        if entry.role != "encoder" or not there:
            continue
        told = read_meta(directory(setting.recipe, there[0]))
        out[name] = {
            "source": told["config"].get("name")
            or f"{told['config']['config']['model_type']}, trained here by CTC",
            "parameters": told["parameters"]["total"],
            "size": told["skeleton"]["frame_size"],
            "rate": told["skeleton"]["frame_rate"],
            **entry.frames.model_dump(),
            "unknown": told["meta"]["exposure"].get("unknown", []),
            "read_by": [
                n
                for n, m in setting.recipe.models.items()
                if name in setting.recipe.encoders_below(n) or (name in m.needs and n != name)
            ],
        }
    return out


def _splits(setting: Setting) -> dict[str, np.ndarray]:
    """Rows of each split over all folds; with several folds a row is in several of them, so only the union is told."""
    if len(setting.folds) > 1:
        return {"tested in some fold": _union(fold.test for fold in setting.folds.values())}
    (fold,) = setting.folds.values()
    return {"train": fold.train, "train with label": fold.labelled, "dev": fold.dev, "test": fold.test}


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(list(parts)))


def _counts(setting: Setting, rows: np.ndarray) -> dict[str, Any]:
    samples = np.asarray(setting.dataset.samples)[rows]
    return {
        "utterances": len(rows),
        "hours": float(samples.sum()) / SAMPLE_RATE / 3600,
        "speakers": len(set(voices(setting, rows))),
    }


def folds(setting: Setting) -> list[dict[str, Any]]:
    """Every fold: sizes of its splits and who is tested."""
    out = []
    for fold in setting.folds.values():
        sizes = {
            split: _counts(setting, getattr(fold, split)) for split in ("train", "labelled", "dev", "test")
        }
        tested = sorted(set(voices(setting, fold.test)))
        out.append({"name": fold.name, **sizes, "test_speakers": tested})
    return out


def findings(setting: Setting, models: dict[str, Model]) -> list[Finding]:
    """What `ser.leaks` sees in the folds, and what the models' exposure says against testing them; leaks first."""
    found = inspect(setting.protocol, setting.dataset, list(setting.folds.values())) + check_tuning(setting)
    for name, model in models.items():
        below = [other for other in setting.recipe.models[name].needs if other in models]
        for fold_name, fold in setting.folds.items():
            job = Job(fold_name, name, model.seeds[0])
            teachers = {o: heard_by(models[o], under(setting.recipe, job, o).fold) for o in below}
            dev = restricted_to(setting, fold, name).dev
            # LEGACY returns what STRICT would refuse: a report must show it in either case.
            found += check_student(
                setting.dataset, fold.test, dev, heard_by(model, fold_name), teachers, "LEGACY",
                setting.recipe.allow_unknown, fold=fold_name, model=name,
            )  # fmt: skip
    if setting.recipe.targets.mode == "train":
        text = "the students' teachers answered in training mode, with their dropout on, as the released code of a paper does"
        found.append(Finding("teachers in training mode", "note", "", text))
    return sorted(_merged(found), key=lambda f: f.level != "leak")


def heard_by(model: Model, fold: str) -> Exposure:
    """Whom the model of a fold has heard, all seeds together."""
    parts = [
        Exposure.from_json(training.meta["exposure"])
        for (f, _), training in model.trainings.items()
        if f == fold
    ]
    return parts[0].union(*parts[1:])


def _merged(found: list[Finding]) -> list[Finding]:
    """Exposure notes of the same kind about several models and folds as one: they all say the same."""
    out: list[Finding] = []
    shared: dict[str, list[Finding]] = {}
    for finding in found:
        if finding.level == "note" and finding.kind == "shared dev":
            shared.setdefault(finding.kind, []).append(finding)
        else:
            out.append(finding)
    for kind, many in shared.items():
        items = tuple(sorted({item for finding in many for item in finding.items}))
        more = f" (and {len(many) - 1} more pairs of models and folds)" if len(many) > 1 else ""
        out.append(Finding(kind, "note", "", many[0].text + more, items))
    return out


def exposure(setting: Setting, model: Model) -> dict[str, Any]:
    """How many voices a model heard, by fold: fitted on, selected on; unknown hub models; how it was tuned.

    `tuning` is what a search of this run did, `declared` what the recipe says of the settings as written (null: nothing).
    """
    per_fold = {fold: heard_by(model, fold) for fold in setting.folds}
    tuned = {fold: chosen_values(setting.recipe, Job(fold, model.name, model.seeds[0])) for fold in per_fold}
    dataset = setting.dataset
    select = {
        name: of_rows(dataset, restricted_to(setting, fold, model.name).dev) if tuned[name] else frozenset()
        for name, fold in setting.folds.items()
    }
    tests = {name: of_rows(dataset, fold.test) for name, fold in setting.folds.items()}
    return {
        "fit": {name: len(x.fit) for name, x in per_fold.items()},
        "select": {name: len(x.select) for name, x in per_fold.items()},
        "unknown": sorted({hub for x in per_fold.values() for hub in x.unknown}),
        "tuning": tuning(select, tests),
        "tuned": {name: values for name, values in tuned.items() if values},
        "declared": declared_tuning(setting),
    }


def declared_tuning(setting: Setting) -> dict[str, Any] | None:
    """The recipe's `tuned_on`; speakers that are tested in some fold make it non-nested, whatever it says."""
    declared = setting.recipe.tuned_on
    if declared is None:
        return None
    return declared.model_dump() | ({"selection": "non-nested"} if tuned_in_test(setting) else {})


def licences(setting: Setting, models: dict[str, Model], name: str) -> dict[str, Any]:
    """Licences of what a model was trained on, its own data and those of every teacher below it."""
    own = {x for training in models[name].trainings.values() for x in training.meta["licences"]}
    heard = [e for t in models[name].trainings.values() for e in t.meta.get("encoders", {}).values()]
    inherited = {x for encoder in heard for x in encoder["licences"]}
    inherited |= {x for t in models[name].trainings.values() for x in t.meta.get("inherited", [])}
    waiting = list(setting.recipe.models[name].needs)
    while waiting:
        other = waiting.pop()
        waiting += setting.recipe.models[other].needs
        if other in models:
            inherited |= {x for t in models[other].trainings.values() for x in t.meta["licences"]}
    return {
        "own": sorted(own),
        "inherited": sorted(inherited - own),
        "restricted": restricted(own | inherited),
    }


def training(one: Training) -> dict[str, Any]:
    """Steps, time, which checkpoint and what went wrong in one training."""
    told = one.meta["training"]
    return {
        "fold": one.job.fold,
        "seed": one.job.seed,
        "chosen": told.get("chosen"),
        "steps": told.get("steps"),
        "dev": told.get("dev"),
        "skipped": told.get("skipped", 0),
        "quarantined": len(told.get("quarantined", {})),
        "seconds": _seconds(one.events),
    }


def _seconds(events: list[dict[str, Any]]) -> float | None:
    """Time between the first and the last event, without the pauses in which a stopped training lay still."""
    gaps = np.diff([event["time"] for event in events if "time" in event])
    if not len(gaps):
        return None
    return float(gaps[gaps <= max(60.0, 10 * np.median(gaps))].sum())


def curve(one: Training, metric: str) -> dict[str, Any]:
    """Learning curve: [step, loss] of training and [step, dev metric], thinned to `CURVE_POINTS`."""

    def points(kind: str, name: str) -> list[list[float]]:
        found = [
            [e["step"], e[name]] for e in one.events if e.get("kind") == kind and e.get(name) is not None
        ]
        return found[:: max(1, -(-len(found) // CURVE_POINTS))]

    return {
        "fold": one.job.fold,
        "seed": one.job.seed,
        "loss": points("train", "loss"),
        "dev": points("dev", metric),
        "dev_nll": points("dev", "nll"),
    }


def sureness(setting: Setting, model: Model) -> dict[str, Any]:
    """How sure a model is of dev and test, and, where its targets are stored, of what it was trained on.

    A teacher that is much surer of its own training utterances than of others gives soft targets that are hard.
    """
    truth = setting.labels.classes
    out: dict[str, Any] = {}
    for split, system in (("dev", model.dev), ("test", model.test)):
        if system is not None and system.probabilities is not None:
            each = [scoring.confidence(p, truth[system.rows]) for p in system.probabilities]
            out[split] = _averaged(each)
    if setting.recipe.models[model.name].role == "teacher" and "dev" in out:
        out |= _on_training(setting, model)
    return out


def _averaged(each: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def _on_training(setting: Setting, model: Model) -> dict[str, Any]:
    """Stored targets of the training rows: those that the teacher was fitted on and, apart, those it was not."""
    entry, seed = setting.recipe.models[model.name], setting.recipe.seeds_of(model.name)[0]
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    unseen: list[tuple[np.ndarray, np.ndarray]] = []
    crossed: list[tuple[np.ndarray, np.ndarray]] = []
    try:
        for name, fold in setting.folds.items():
            store = teacher_store(setting, Job(name, model.name, seed))
            shown, fitted = supervision(setting, fold, model.name, "none")
            heard = restricted_to(setting, fold, model.name).train
            if entry.train is None:
                # a product heard what its components heard
                fitted = fold.labelled
            elif entry.data == "all":
                fitted = heard
            seen.append(_read(setting, store, fitted, shown.classes))
            unseen.append(_read(setting, store, np.setdiff1d(heard, fitted), shown.classes))
            if entry.cross_fit:
                copies = [
                    teacher_store(setting, Job(name, model.name, seed, part=k))
                    for k in range(entry.cross_fit)
                ]
                parts = parts_of(setting.dataset, fold.train, entry.cross_fit, seed)
                crossed.append(_read(setting, CrossFitted(store, copies, parts), fitted, shown.classes))
    except (UserError, FileNotFoundError) as error:
        return {"train_reason": f"no stored targets: {str(error).splitlines()[0]}"}
    out = {}
    for split, parts in (("train", seen), ("train_unseen", unseen), ("train_cross_fitted", crossed)):
        if sum(len(p) for p, _ in parts):
            p, truth = (np.concatenate(x) for x in zip(*parts, strict=True))
            out[split] = scoring.confidence(p, truth)
    return out


def _read(setting: Setting, store: Any, rows: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors (m, K) of the stored targets of `rows` in the first training view, and their labels (m,)."""
    view = setting.train_views[0]
    rows = rows[store.state(rows, view) == ANSWERED]
    count = len(setting.classes)
    if not len(rows):
        return np.empty((0, count)), np.empty(0, dtype=np.int64)
    return probabilities(np.asarray(store.read(rows, view)["logits"], dtype=np.float32)), truth[rows]
