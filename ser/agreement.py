"""Whether a recipe agrees with its protocol: whatever is trained, compared, chosen or distilled is there to begin with.

Guarantees: a model has a head only if a term of its objective trains it (a product: if a component has it); a term on an
output that a teacher lacks, a metric that a model cannot be chosen by, and an option that only LEGACY may use are
refused by key when the recipe is read, before anything is made.
Gives up: what only the data can tell (a dev set without ratings, say) is seen when a training gathers its rows.
"""

import difflib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ser.early import check_values
from ser.exposure import Finding, called, count, overlap, some
from ser.models.config import FusedConfig
from ser.protocol import DIMENSIONS, Fold, Labels, Protocol
from ser.recipe import ModelRecipe, Recipe, Term
from shards.errors import UserError

if TYPE_CHECKING:
    from ser.job import Job
    from ser.loss import Supervision
    from ser.setting import Setting

CLASS_TERMS = frozenset({"cross_entropy", "kl", "multi_kl"})
DIMENSION_TERMS = frozenset({"ccc", "dimensions"})
TRAINED_BY = {"classes": "cross_entropy", "dimensions": "ccc"}
LEGACY_OPTIONS = (
    ("scope", "slot", "takes CCC over a micro-batch"),
    ("reduction", "mean", "divides a divergence by the number of classes once more"),
    ("weights", "batch_cosine", "weighs an utterance's teachers by the batch it happens to be in"),
)


class Outputs(NamedTuple):
    """What a model answers beside its embedding."""

    classes: bool
    dimensions: bool


def outputs(recipe: Recipe, name: str) -> Outputs:
    """What model `name` answers: what its terms train; a product has no head of its own and answers what its experts do."""
    entry = recipe.models[name]
    if entry.classical:
        return Outputs(True, False)
    if isinstance(entry.model, FusedConfig) and entry.model.mode == "product":
        experts = [outputs(recipe, other) for other in entry.components]
        return Outputs(any(e.classes for e in experts), any(e.dimensions for e in experts))
    if entry.model.kind == "external":
        return Outputs(bool(entry.model.labels), bool(entry.model.dimensions))
    if entry.ready:
        return Outputs(False, True)
    losses = {term.loss for term in entry.objective if term.weight > 0}
    return Outputs(bool(losses & CLASS_TERMS), bool(losses & DIMENSION_TERMS))


def agree(recipe: Recipe, protocol: Protocol) -> None:
    """Refuse a recipe that its protocol cannot carry.

    Raises:
        UserError: Naming the key that is wrong and what to type.
    """
    check_values(recipe)
    declared = recipe.tuned_on
    if declared is not None and declared.selection == "non-nested":
        _refuse_non_nested(recipe, protocol, declared.data)
    if recipe.targets.mode == "train" and protocol.strictness == "STRICT":
        raise UserError(
            "`mode: train` leaves the teachers' dropout on, as some released code does: only strictness LEGACY may do that",
            where=f"{recipe.name}: targets.mode",
            hint="set targets.mode=eval, or protocol.strictness=LEGACY to reproduce a published number",
        )
    for name, entry in recipe.models.items():
        own, where = outputs(recipe, name), f"{recipe.name}: models.{name}"
        if entry.role == "encoder":
            continue
        if protocol.strictness == "STRICT" and getattr(entry.model, "pad_seconds", None) is not None:
            raise UserError(
                "`pad_seconds` takes silence for speech, as some released code does: only strictness LEGACY may do that",
                where=f"{where}.model.pad_seconds",
                hint="leave it out, or protocol.strictness=LEGACY to reproduce a published number",
            )
        if entry.classical and not protocol.classes:
            raise UserError(
                f"a classical model tells classes apart, and protocol {protocol.name} has none",
                where=where,
                hint=f"leave {name} out, or give the protocol `classes`",
            )
        for number, term in enumerate(entry.objective):
            _check_term(recipe, protocol, term, own, name, f"{where}.objective.{number}")
        if entry.train is not None:
            if not any(own):
                raise UserError(
                    "no term trains classes or dimensions, so there would be nothing to score",
                    where=f"{where}.objective",
                    hint="add {loss: cross_entropy} or {loss: ccc}, or a kl or dimensions term",
                )
            _check_choice(protocol, entry, own, where)


def _check_term(recipe: Recipe, protocol: Protocol, term: Term, own: Outputs, name: str, where: str) -> None:
    needs = "classes" if term.loss in CLASS_TERMS else "dimensions" if term.loss in DIMENSION_TERMS else None
    if needs is not None:
        if not getattr(protocol, needs):
            raise UserError(
                f"{term.loss} needs {needs}, and protocol {protocol.name} has none",
                where=where,
                hint=f"leave the term out, or give the protocol `{needs}`",
            )
        if not getattr(own, needs):
            why = "weight 0 trains nothing" if not term.weight else "no expert of the product answers them"
            raise UserError(
                f"{term.loss} needs {needs}, which {name} does not answer: {why}",
                where=where,
                hint="leave the term out" + ("" if term.weight else ", or set its weight above 0"),
            )
        for teacher in term.sources:
            if not getattr(outputs(recipe, teacher), needs):
                raise UserError(
                    f"{term.loss} reads {needs} of {teacher}, which has none: no term of {teacher} trains them",
                    where=where,
                    hint=f"add {{loss: {TRAINED_BY[needs]}}} to models.{teacher}.objective, or leave this term out",
                )
    for key, value, what in LEGACY_OPTIONS:
        if protocol.strictness == "STRICT" and getattr(term, key) == value:
            default = Term.model_fields[key].default
            raise UserError(
                f"`{key}: {value}` {what}, as some released code does: only strictness LEGACY may do that",
                where=where,
                hint=f"set it to {default}, or protocol.strictness=LEGACY to reproduce a published number",
            )


def has_dev(protocol: Protocol) -> bool:
    """Whether folds have a dev set."""
    return protocol.dev is not None or bool(protocol.folds.dev)


def is_chosen(protocol: Protocol, entry: ModelRecipe) -> bool:
    """Whether the dev metric decides anything about a model."""
    train = entry.train
    stops = train is not None and train.patience is not None
    return protocol.checkpoint != "last" or stops or bool(entry.search)


def _check_choice(protocol: Protocol, entry: ModelRecipe, own: Outputs, where: str) -> None:
    """The metric that chooses among versions of a model must be one that it answers, and there must be a dev set."""
    if not is_chosen(protocol, entry):
        return
    if not has_dev(protocol):
        what = (
            "search" if entry.search else "train.patience" if protocol.checkpoint == "last" else "checkpoint"
        )
        raise UserError(
            f"`{what}` needs dev rows, and protocol {protocol.name} has none",
            where=where,
            hint=f"give the protocol `dev`, for example dev: {{by: speaker, count: 1}}, or leave out `{what}`",
        )
    metric = protocol.select_metric
    needs = "dimensions" if metric.startswith("ccc") else "classes"
    if not getattr(protocol, needs) or (
        metric[4:] and needs == "dimensions" and metric[4:] not in protocol.dimensions
    ):
        fits = "ua" if protocol.classes else "ccc"
        raise UserError(
            f"select_metric {metric} needs {metric[4:] if metric[4:] in DIMENSIONS else needs}, and protocol "
            f"{protocol.name} has none",
            where=f"protocol {protocol.name}",
            hint=f"set protocol.select_metric={fits}",
        )
    if not getattr(own, needs):
        raise UserError(
            f"select_metric {metric} of protocol {protocol.name} needs {needs}, which no term of this model trains",
            where=f"{where}.objective",
            hint=f"add {{loss: {TRAINED_BY[needs]}}}, or choose by what it answers: protocol: {{extends: {protocol.name}, "
            f"select_metric: {'ua' if own.classes else 'ccc'}}}",
        )


def check_dev(protocol: Protocol, entry: ModelRecipe, labels: Labels, fold: Fold) -> None:
    """Refuse a fold whose dev rows have no label of the kind that the metric needs.

    Raises:
        UserError: Naming the metric and the fold.
    """
    if entry.train is None or entry.role == "encoder" or not is_chosen(protocol, entry):
        return
    metric = protocol.select_metric
    known = labels.classes[fold.dev] >= 0
    if metric.startswith("ccc"):
        which = [DIMENSIONS.index(metric[4:])] if metric[4:] else [0, 1, 2]
        known = np.isfinite(labels.dimensions[fold.dev][:, which]).any(1)
    if not known.any():
        raise UserError(
            f"no dev utterance has a label that select_metric {metric} needs",
            where=f"protocol {protocol.name}, {called(fold.name)}",
            hint="choose other dev speakers, or another protocol.select_metric",
        )


def check_classes(entry: ModelRecipe, names: list[str], shown: "Supervision", fold: Fold) -> None:
    """Refuse to teach classes by labels that are all of one.

    Args:
        shown: Labels as the model may see them: those of the training rows whose label shows.

    Raises:
        UserError: Naming the class and the fold.
    """
    if not any(term.loss == "cross_entropy" for term in entry.objective) or shown.soft is not None:
        return
    found = np.unique(shown.classes[shown.classes >= 0])
    if len(found) == 1:
        raise UserError(
            f"every training label is {names[found[0]]}: one class alone cannot be told from anything",
            where=called(fold.name),
            hint="choose folds, `rows` or `labelled` that leave two classes or more to learn from",
        )


# -- settings tuned with a test set in view --------------------------------------------------------------------------


def _refuse_non_nested(recipe: Recipe, protocol: Protocol, text: str) -> None:
    if protocol.strictness == "STRICT" and not recipe.allow_non_nested:
        raise UserError(
            f"STRICT: the settings were tuned with sight of a test set (non-nested): {text}",
            where=f"{recipe.name}: tuned_on",
            hint="allow_non_nested: true lets it pass and says non-nested in red in every row; without it, `search` the "
            "settings inside each fold, or tune on speakers of no fold's test",
        )


def tuned_in_test(setting: "Setting") -> tuple[str, ...]:
    """Entries of `tuned_on.speakers` that are tested in some fold."""
    declared = setting.recipe.tuned_on
    if declared is None or not declared.speakers:
        return ()
    tested = np.unique(np.concatenate([fold.test for fold in setting.folds.values()]))
    return overlap(setting.dataset, tested, frozenset(declared.speakers))


def check_tuning(setting: "Setting") -> list[Finding]:
    """What the declared tuning says against the folds' tests.

    Raises:
        UserError: Under STRICT, settings tuned on a test speaker, unless the recipe allows it by name.
    """
    declared, shared = setting.recipe.tuned_on, tuned_in_test(setting)
    if declared is None or not (shared or declared.selection == "non-nested"):
        return []
    heard = f" ({count(len(shared), 'test entry', 'test entries')}: {some(shared)})" if shared else ""
    _refuse_non_nested(setting.recipe, setting.protocol, declared.data + heard)
    level = "note" if setting.recipe.allow_non_nested else "leak"
    text = f"settings were tuned with sight of a test set: {declared.data}{heard}"
    return [Finding("non-nested", level, "", text, shared)]


# -- one training ------------------------------------------------------------------------------------------------------


def check_job(setting: "Setting", job: "Job") -> None:
    """Refuse a training that the recipe does not have.

    Raises:
        UserError: No such model or fold (naming the nearest), or a part that is not cross-fitted.
    """
    recipe = setting.recipe
    _known("model", job.model, list(recipe.models), recipe.name)
    _known("fold", job.fold, list(setting.folds), setting.protocol.name)
    parts = recipe.models[job.model].cross_fit
    if job.part is not None and not 0 <= job.part < parts:
        raise UserError(
            f"no part {job.part} of {job.model}: it has {parts}", where=recipe.name,
            hint=f"set models.{job.model}.cross_fit to 2 or more",
        )  # fmt: skip


def _known(what: str, name: str, names: list[str], where: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no {what} {name!r}", where=where, hint=f"{hint}{what}s: {', '.join(names)}")
