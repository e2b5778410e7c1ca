"""The recipe: one YAML file that describes a whole experiment, validated before anything starts.

A teacher and a student are both entries of `models`; they differ in keys, not in code path. Values are overridden on
the command line by dotted keys (`models.student.train.steps=200`); `variants` are named sets of overrides. The
resolved recipe is written into the run directory, so a run never depends on the file again.
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ser.models.config import ModelConfig
from ser.resolve import RECIPES, find, resolve
from ser.strict import Strict, validate
from ser.training import OptimizerConfig, Term, TrainConfig
from ser.values import expand

__all__ = ["RECIPES", "OptimizerConfig", "Recipe", "Term", "TrainConfig", "find", "load"]


class CorpusConfig(Strict):
    """One corpus: which reader, where it lies, and (for the generated corpus) how to make it."""

    reader: str
    root: str
    options: dict[str, Any] = {}
    generate: dict[str, Any] | None = None


class DataConfig(Strict):
    """The packed dataset: where, from which corpora, in shards of how many seconds.

    `text: asr:<model>` reads the transcripts that `ser transcribe` wrote beside it instead of the corpora's own.
    """

    path: str
    corpora: list[CorpusConfig] = Field(min_length=1)
    shard_seconds: float = Field(default=600, gt=0)
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    text: str | None = Field(default=None, pattern=r"^asr:.+$")


class ModelRecipe(Strict):
    """One model of the experiment.

    Attributes:
        role: teacher (its targets are stored), student, baseline (no teacher), control (must not work).
        data: Which training utterances take part: those whose label shows, or all.
        label_from: Overrides the protocol's `label_from` for the training labels (a ceiling with clean labels, say).
        labelled: Overrides the protocol's `labelled` (1.0 shows every training label).
        permute_targets: Give every utterance the target of another one: the control that must lose the gain.
        cross_fit: Train that many copies, each without one part of the training speakers, and take every
            utterance's target from the copy that has not heard its speaker; 0 is off.
        search: Dotted train keys with lists of values, tried on each fold's dev set with the first seed.
        keep: Dotted train keys that no chosen value replaces; `load` names here what a variant or an override gave.
        seeds: Seeds of this model; None takes the recipe's (teachers: only its first).
    """

    role: Literal["teacher", "student", "baseline", "control"]
    model: ModelConfig
    objective: list[Term] = []
    train: TrainConfig | None = None
    data: Literal["labelled", "all"] = "labelled"
    label_from: str | None = None
    labelled: float | int | str | None = None
    permute_targets: bool = False
    cross_fit: int = Field(default=0, ge=0)
    search: dict[str, list[Any]] = {}
    keep: list[str] = []
    seeds: list[int] | None = None

    @property
    def classical(self) -> bool:
        """Fitted by scikit-learn on functionals instead of trained in steps."""
        return self.model.kind == "classical"

    @property
    def ready(self) -> bool:
        """Answers as it comes, head and all: fitted elsewhere, on what is unknown here."""
        return self.train is None and self.model.kind in ("audeering", "external")

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the recipe's models that a fused model is made of."""
        inside = getattr(self.model, "components", {})
        return tuple(name for name, config in inside.items() if config is None)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the models that must be trained (and, for terms, have targets) before this one."""
        names = list(self.components)
        for term in self.objective:
            names += [name for name in term.sources if name not in names]
        return tuple(names)

    @property
    def target_sources(self) -> tuple[str, ...]:
        """Names of the teachers whose stored targets the objective reads."""
        return tuple(dict.fromkeys(name for term in self.objective for name in term.sources))


class FeatureConfig(Strict):
    """A stored feature: computed once a view, memory-mapped while training.

    `mel` and `prosody` are frames of every view; `egemaps` and `mfcc` are functionals of the clean utterance alone,
    for classical models.
    """

    kind: Literal["mel", "prosody", "egemaps", "mfcc"]
    options: dict[str, Any] = {}
    dtype: Literal["float32", "float16"] = "float32"


class TargetsConfig(Strict):
    """What is stored of each teacher, and how the inference batches are cut (part of the fingerprint)."""

    slot_seconds: float = Field(default=120, gt=0)
    embedding: bool = True
    dtype: Literal["float32", "float16"] = "float32"


class Comparison(Strict):
    """A row of the report's comparison table: system minus reference on one metric."""

    system: str
    reference: str
    metric: str = "ua"


class ReportConfig(Strict):
    """What the report compares, and which reference labels it scores against besides the protocol's."""

    compare: list[Comparison] = []
    references: dict[str, str] = {}
    groups: list[Literal["language", "gender", "corpus"]] = ["language", "gender", "corpus"]
    ceilings: bool = False


class TunedOn(Strict):
    """What the settings as written were tuned on: `select` exposure that no code can see, so it is declared.

    Attributes:
        selection: nested (each fold's on its own training side), outside (on speakers in no fold's test), or non-nested
            (with sight of a test set; STRICT refuses it unless the recipe says `allow_non_nested: true`).
        data: The same in words, as every row of the report says it.
        speakers: Who that was, where they are in this dataset: "corpus/speaker" or "corpus/*". One that is tested in
            some fold makes the settings non-nested, whatever `selection` says.
    """

    selection: Literal["nested", "outside", "non-nested"]
    data: str = Field(min_length=3)
    speakers: list[str] = []


class ClusterConfig(Strict):
    """Where Ray runs: None starts an embedded one. Resources are declared, not grabbed."""

    address: str | None = None
    cpus: int | None = None
    cpus_per_task: float = 1
    gpus_per_task: float = 0


class Recipe(Strict):
    """A whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,60}$")
    about: str = ""
    run_dir: str = ""
    data: DataConfig
    protocol: str | dict[str, Any]
    folds: list[str] | Literal["all"] = "all"
    seeds: list[int] = Field(default=[0], min_length=1)
    views: dict[str, Any] = {}
    features: dict[str, FeatureConfig] = {}
    targets: TargetsConfig = TargetsConfig()
    allow_unknown: list[str] = []
    tuned_on: TunedOn | None = None
    allow_non_nested: bool = False
    models: dict[str, ModelRecipe] = Field(min_length=1)
    chosen: str | None = None
    report: ReportConfig = ReportConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _names_fit(self) -> "Recipe":
        for name, model in self.models.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
                raise ValueError(f"models.{name}: a model's name is [A-Za-z0-9_-]{{1,40}}")
            for other in model.needs:
                if other not in self.models:
                    near = difflib.get_close_matches(other, list(self.models), n=1)
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
                raise ValueError(
                    f"models.{name} is classical: it is fitted at once, without train and objective"
                )
            if model.train is None and not (model.components or model.classical or model.ready):
                raise ValueError(f"models.{name} is neither trained nor made of other models")
            for other in model.needs:
                if self.models[other].classical:
                    raise ValueError(
                        f"models.{name} needs {other}, which is classical: it hears the clean utterance, never a view, "
                        "so it can be neither a teacher nor a component"
                    )
            self._components_fit(name)
            for number, term in enumerate(model.objective):
                if term.loss == "embedding" and not self.targets.embedding:
                    raise ValueError(
                        f"models.{name}.objective.{number}: an embedding term needs stored embeddings: "
                        "set targets.embedding=true, or leave the term out"
                    )
        self.order()
        return self

    def _components_fit(self, name: str) -> None:
        """Refuse experts that nobody trains, and cross-fitting that would not hold."""
        model = self.models[name]
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
            if self.models[other].cross_fit != model.cross_fit:
                raise ValueError(
                    f"models.{name}.cross_fit: a copy must be made of copies that have not heard its part either; "
                    f"set models.{other}.cross_fit={model.cross_fit}"
                )
            if self.seeds_of(other)[0] != self.seeds_of(name)[0]:
                raise ValueError(
                    f"models.{name}.cross_fit: parts are dealt by the first seed, {self.seeds_of(name)[0]} here and "
                    f"{self.seeds_of(other)[0]} for {other}; set models.{other}.seeds={self.seeds_of(name)}"
                )

    def order(self) -> list[str]:
        """Model names so that each comes after the models it needs; a cycle is an error."""
        done: list[str] = []
        waiting = dict(self.models)
        while waiting:
            ready = [name for name, model in waiting.items() if all(need in done for need in model.needs)]
            if not ready:
                raise ValueError(f"models need each other in a circle: {', '.join(waiting)}")
            for name in ready:
                done.append(name)
                del waiting[name]
        return done

    def seeds_of(self, name: str) -> list[int]:
        """Seeds that model `name` is trained with."""
        model = self.models[name]
        if model.seeds is not None:
            return model.seeds
        return self.seeds[:1] if model.role == "teacher" else self.seeds

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.run_dir or f"runs/{self.name}")

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain values."""
        return self.model_dump(mode="json")


def load(name: str, overrides: list[str] | tuple[str, ...] = (), variant: str | None = None) -> Recipe:
    """Read, vary, override and validate a recipe.

    A variant has a run directory of its own, `<the recipe's>-<variant>`, unless it or an override names one. Training
    values that a variant or an override gives stand above those that a search chose.

    Args:
        name: A path, or the name of a recipe that comes with the package.
        overrides: `dotted.key=value` strings, the value in YAML.
        variant: Name of an entry of the recipe's `variants`.

    Raises:
        UserError: Unknown recipe, variant or key (naming the nearest), a value that does not fit, an override of a value
            that is searched for, or a `chosen` folder that is not there.
    """
    values, path = resolve(name, overrides, variant)
    recipe = validate(Recipe, expand(values), where=str(path))
    from ser.agreement import agree
    from ser.protocol import load_protocol

    agree(recipe, load_protocol(recipe.protocol))
    return recipe
