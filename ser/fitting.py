"""Whether the models of a recipe fit together: who needs whom, encoders, probes, components, copies, teachers of other folds."""

import difflib
import re
from typing import TYPE_CHECKING

from ser.models.config import AcousticConfig, ProbeConfig
from ser.truth import FIELD

if TYPE_CHECKING:
    from ser.recipe import Recipe


def check_fit(recipe: "Recipe") -> None:
    """Refuse a recipe whose models do not fit together.

    Raises:
        ValueError: Naming the key (the recipe's validation makes a UserError of it).
    """
    for name, model in recipe.models.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            raise ValueError(f"models.{name}: a model's name is [A-Za-z0-9_-]{{1,40}}")
        for other in model.needs:
            if other not in recipe.models:
                near = difflib.get_close_matches(other, list(recipe.models), n=1)
                raise ValueError(
                    f"models.{name} names {other!r}, no model of this recipe"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                )
        terms = [term.name for term in model.objective]
        for term in terms:
            if terms.count(term) > 1:
                raise ValueError(
                    f"models.{name}.objective has two terms {term}: give one, with the sum of their weights"
                )
        if (model.train is None) != (not model.objective):
            raise ValueError(f"models.{name}: train and objective belong together")
        if model.classical and model.train is not None:
            raise ValueError(f"models.{name} is classical: it is fitted at once, without train and objective")
        _encoders_fit(recipe, name)
        whole = model.components or model.classical or model.ready or model.role == "encoder"
        if model.train is None and not whole:
            raise ValueError(f"models.{name} is neither trained nor made of other models")
        for other in model.needs:
            if recipe.models[other].classical:
                raise ValueError(
                    f"models.{name} needs {other}, which is classical: it hears the clean utterance, never a view, "
                    "so it can be neither a teacher nor a component"
                )
        _components_fit(recipe, name)
        _rows_fit(recipe, name)
        _layers_fit(recipe, name)
        for number, term in enumerate(model.objective):
            if term.loss == "embedding" and not recipe.targets.embedding:
                raise ValueError(
                    f"models.{name}.objective.{number}: an embedding term needs stored embeddings: "
                    "set targets.embedding=true, or leave the term out"
                )
    for name in recipe.report.conditions:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name == "clean":
            raise ValueError(
                f"report.conditions.{name}: a name is [A-Za-z0-9_-]{{1,40}}, and clean is there anyway"
            )
    for objective in recipe.sweep.objectives if recipe.sweep else ():
        if objective.model not in recipe.models or recipe.models[objective.model].role == "encoder":
            near = difflib.get_close_matches(objective.model, list(recipe.models), n=1)
            raise ValueError(
                f"sweep.objectives: {objective.model!r} is no model of this recipe that answers"
                + (f"; did you mean {near[0]!r}?" if near and near[0] != objective.model else "")
            )


def _layers_fit(recipe: "Recipe", name: str) -> None:
    """Refuse probes of what is no encoder or not stored, and probes where audio must be heard."""
    model = recipe.models[name]
    if model.layers and not isinstance(model.model, AcousticConfig):
        raise ValueError(f"models.{name}.layers: only an acoustic model has hidden states to store")
    if isinstance(model.model, ProbeConfig) and not recipe.models[model.model.encoder].layers:
        other = model.model.encoder
        raise ValueError(
            f"models.{name} probes {other}, whose states are not stored: set models.{other}.layers=true"
        )
    if model.encoder_from:
        other = recipe.models[model.encoder_from].model
        if not isinstance(model.model, AcousticConfig) or not isinstance(other, AcousticConfig):
            raise ValueError(f"models.{name}.encoder_from: both must be acoustic models")
        if model.model.name is not None:
            raise ValueError(
                f"models.{name}.encoder_from: it starts from {model.model.name} already; leave one out"
            )
    for other in (*model.components, *model.target_sources):
        if isinstance(recipe.models[other].model, ProbeConfig):
            raise ValueError(
                f"models.{name} needs {other}, a probe: it reads stored states, so it is neither teacher nor component"
            )


def _encoders_fit(recipe: "Recipe", name: str) -> None:
    """Refuse encoders that are none, or that would be used as something else."""
    model = recipe.models[name]
    if (model.role == "encoder") != (model.model.kind == "speech"):
        raise ValueError(
            f"models.{name}: role encoder and kind speech belong together, not {model.role} and {model.model.kind}"
        )
    losses = {term.loss for term in model.objective}
    if (model.role == "encoder" and losses - {"ctc"}) or (model.role != "encoder" and "ctc" in losses):
        raise ValueError(f"models.{name}.objective: an encoder learns by ctc, and nothing else does")
    if model.role == "encoder":
        if model.train is None and getattr(model.model, "name", None) is None:
            raise ValueError(
                f"models.{name}: nothing trains its random weights: give `objective: [{{loss: ctc}}]` and `train`, "
                "or the name of a pretrained encoder"
            )
        if model.train is not None and model.train.patience is not None:
            raise ValueError(
                f"models.{name}.train.patience: an encoder is not chosen by a dev metric; leave it out"
            )
        if model.cross_fit:
            raise ValueError(f"models.{name}.cross_fit: an encoder is heard by all copies; set it to 0")
    either = {model.encoder_from, model.model.encoder if isinstance(model.model, ProbeConfig) else None}
    for other in model.needs:
        if other not in either and (recipe.models[other].role == "encoder") != (other in model.encoders):
            raise ValueError(
                f"models.{name} names {other}, "
                + (
                    "no encoder (role: encoder)"
                    if other in model.encoders
                    else "an encoder, as something else"
                )
                + ": encoders are read as `streams`, probed or copied; other models are components or teachers"
            )
    if model.cross_fit and recipe.encoders_below(name):
        raise ValueError(
            f"models.{name}.cross_fit: its copies would hear the part they must not know through the encoder "
            f"{recipe.encoders_below(name)[0]}; set models.{name}.cross_fit=0"
        )


def _components_fit(recipe: "Recipe", name: str) -> None:
    """Refuse experts that nobody trains, and cross-fitting that would not hold."""
    model = recipe.models[name]
    inline = set(getattr(model.model, "components", {})) - set(model.components)
    if inline and getattr(model.model, "mode", "") == "product":
        raise ValueError(
            f"models.{name}.model.components: nothing trains the experts of a product: name trained models of this "
            f"recipe, {', '.join(f'`{other}: null`' for other in sorted(inline))}"
        )
    if model.cross_fit == 1:
        raise ValueError(f"models.{name}.cross_fit: one part is all speakers; 0 is off, 2 the least")
    if model.cross_fit and model.target_sources:
        raise ValueError(
            f"models.{name}.cross_fit: its copies would learn of the part they must not hear through the targets of "
            f"{', '.join(model.target_sources)}; set models.{name}.cross_fit=0"
        )
    for other in model.components if model.cross_fit else ():
        if recipe.models[other].cross_fit != model.cross_fit:
            raise ValueError(
                f"models.{name}.cross_fit: a copy must be made of copies that have not heard its part either; "
                f"set models.{other}.cross_fit={model.cross_fit}"
            )
        if recipe.seeds_of(other)[0] != recipe.seeds_of(name)[0]:
            raise ValueError(
                f"models.{name}.cross_fit: parts are dealt by the first seed, {recipe.seeds_of(name)[0]} here and "
                f"{recipe.seeds_of(other)[0]} for {other}; set models.{other}.seeds={recipe.seeds_of(name)}"
            )


def _rows_fit(recipe: "Recipe", name: str) -> None:
    """Refuse row filters, teachers of other folds and weights by language that could not work."""
    model = recipe.models[name]
    for field, values in model.rows.items():
        if not re.fullmatch(FIELD, field) or not values:
            raise ValueError(
                f"models.{name}.rows: give {{field: [values]}} with a field such as language, corpus or speaker, "
                f"not {field}: {values}"
            )
    online = recipe.targets.source == "online"
    if model.teacher_fold is not None and not (model.target_sources and online):
        raise ValueError(
            f"models.{name}.teacher_fold needs terms that name a teacher and `targets: {{source: online}}`: a fold's "
            "stored targets are of its own training and dev rows"
        )
    if online and model.target_sources and model.train is not None and model.train.loader_workers:
        raise ValueError(
            f"models.{name}.train.loader_workers: online teachers live in the training process; set it to 0"
        )
    for number, term in enumerate(model.objective):
        for teacher in term.sources if term.weights == "language" else ():
            if len(recipe.models[teacher].rows.get("language", ())) != 1:
                raise ValueError(
                    f"models.{name}.objective.{number}: weights language needs teachers of one language each; give "
                    f"models.{teacher} `rows: {{language: [...]}}` with one, or leave it out"
                )
