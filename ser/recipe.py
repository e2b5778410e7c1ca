"""The recipe: one YAML file that describes a whole experiment, validated before anything starts.

A teacher and a student are both entries of `models`; they differ in keys, not in code path. Values are overridden on
the command line by dotted keys (`models.student.train.steps=200`); `variants` are named sets of overrides. The
resolved recipe is written into the run directory, so a run never depends on the file again.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ser.data import DataConfig
from ser.hubs import Pinned
from ser.layout import Depth, Grid, Subset, Trained
from ser.models.config import ModelConfig, ProbeConfig
from ser.models.streams import encoders_read
from ser.resolve import RECIPES, find, resolve
from ser.stored import FeatureConfig, FramesConfig, TargetsConfig
from ser.strict import Strict, validate
from ser.sweep import SweepConfig
from ser.training import OptimizerConfig, Term, TrainConfig
from ser.truth import FIELD
from ser.values import expand
from shards.cache import scratch
from shards.errors import UserError

__all__ = [
    "RECIPES", "FeatureConfig", "FramesConfig", "OptimizerConfig", "Recipe", "TargetsConfig", "Term", "TrainConfig", "find", "load",
]  # fmt: skip


class ModelRecipe(Strict):
    """One model of the experiment.

    Attributes:
        role: teacher (its targets are stored), student, baseline (no teacher), control (must not work), encoder (hears
            speech once and for all: its frames are stored, and other models read them as an input).
        data: Which training utterances take part: those whose label shows, or all.
        label_from: Overrides the protocol's `label_from` for the training labels (a ceiling with clean labels, say).
        labelled: Overrides the protocol's `labelled` (1.0 shows every training label).
        permute_targets: Give every utterance the target of another one: the control that must lose the gain.
        cross_fit: Train that many copies, each without one part of the training speakers, and take every
            utterance's target from the copy that has not heard its speaker; 0 is off.
        search: Dotted train keys with lists of values, tried on each fold's dev set with the first seed.
        rows: {field: values}, for example {language: [fi]}: labels, training, normalisation and the choice of a
            checkpoint take these rows alone; targets, predictions and scores are of all rows. Empty is all.
        teacher_fold: LEGACY: take every teacher from this fold's training, whatever fold this model is tested on.
        keep: Dotted train keys that no chosen value replaces; `load` names here what a variant or an override gave.
        seeds: Seeds of this model; None takes the recipe's (teachers and encoders: only its first).
        frames: Of an encoder: which of its frames are stored, once some model's `streams` name it.
        layers: Of an acoustic model: store the mean of every hidden state, for probes (`ser.layers`).
        encoder_from: An acoustic model of this recipe whose encoder's weights this one's encoder starts with; one with
            fewer layers takes the first ones.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"rows", "teacher_fold", "frames", "layers", "encoder_from"})

    role: Literal["teacher", "student", "baseline", "control", "encoder"]
    model: ModelConfig
    objective: list[Term] = []
    train: TrainConfig | None = None
    data: Literal["labelled", "all"] = "labelled"
    label_from: str | None = None
    labelled: float | int | str | None = None
    permute_targets: bool = False
    cross_fit: int = Field(default=0, ge=0)
    search: dict[str, list[Any]] = {}
    rows: dict[str, list[str]] = {}
    teacher_fold: str | None = None
    keep: list[str] = []
    seeds: list[int] | None = None
    frames: FramesConfig = FramesConfig()
    layers: bool = False
    encoder_from: str | None = None

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
        names = [*self.components, *self.encoders]
        names += [self.model.encoder] if isinstance(self.model, ProbeConfig) else []
        names += [self.encoder_from] if self.encoder_from else []
        for term in self.objective:
            names += [name for name in term.sources if name not in names]
        return tuple(names)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders whose frames it reads itself (those of trained components are the components')."""
        return encoders_read(self.model)

    @property
    def target_sources(self) -> tuple[str, ...]:
        """Names of the teachers whose stored targets the objective reads."""
        return tuple(dict.fromkeys(name for term in self.objective for name in term.sources))


class Comparison(Strict):
    """A row of the report's comparison table: system minus reference on one metric.

    Attributes:
        published: What a paper says of the same pair, as a relative gain (0.79 is 79 %); the report then shows the
            relative gain measured here beside it.
        source: Where the paper says so.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"published", "source"})

    system: str
    reference: str
    metric: str = "ua"
    published: float | None = None
    source: str = ""

    @model_validator(mode="after")
    def _sourced(self) -> "Comparison":
        if self.published is not None and not self.source:
            raise ValueError("a `published` number needs its `source`")
        return self


class Composite(Strict):
    """A row of the report made of several models: each utterance is answered by the model of its own group.

    Attributes:
        by: What tells the groups: language, corpus, gender, speaker, session or extra.<field>.
        models: Group to model, every group of the test sets.
    """

    by: str = Field(default="language", pattern=FIELD)
    models: dict[str, str] = Field(min_length=1)


class ReportConfig(Strict):
    """What the report compares, and which reference labels it scores against besides the protocol's.

    Attributes:
        conditions: Name -> view policy under which the test rows are heard once more by every model, for example
            {snr5: {noise: synthetic, snr_db: [5, 5]}}; what is not named of it is off.
        compare: Rows of the comparison table; a composite may stand there like a model.
        composites: Name to systems made of several models, FT-Mono for instance.
        group_metrics: Metrics of the tables by group besides the headline.
        subsets: Name -> field and value(s), as in a protocol's `subset`: the same answers scored on those rows alone.
            The field `repeated_text` (true, false) is whether the text stands in the fold's training speech too.
        grids: Tables of models by two traits.
        depths: Figures of scores against an encoder's depth.
        trained: A score beside the parameters that training moves.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"conditions"})

    conditions: dict[str, dict[str, Any]] = {}
    compare: list[Comparison] = []
    composites: dict[str, Composite] = {}
    group_metrics: list[str] = []
    references: dict[str, str] = {}
    groups: list[Literal["language", "gender", "corpus"]] = ["language", "gender", "corpus"]
    ceilings: bool = False
    subsets: dict[str, Subset] = {}
    grids: list[Grid] = []
    depths: list[Depth] = []
    trained: Trained | None = None


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
    """Where Ray runs: None starts an embedded one. Resources are declared, not grabbed.

    Attributes:
        address: Of a running cluster: host:port of its head, or auto.
        token_file: File with that cluster's token; default what RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN say.
        cpus: CPUs of the embedded cluster; of a joined one, how many this run uses at once.
        wait: Seconds for which machines of a joined cluster are waited for that a task needs and nobody has.
    """

    address: str | None = None
    token_file: str | None = None
    cpus: int | None = None
    wait: float = 60
    cpus_per_task: float = 1
    gpus_per_task: float = 0


class Recipe(Strict):
    """A whole experiment.

    Attributes:
        reuse: Run directories whose finished trainings are taken where they are the very ones that this recipe asks for.
        sweep: What `ser sweep` varies; `ser run` takes the values as they are written.
        hub: Commits and files of hub models, as `ser fetch` found them; read from `<recipe>.hub.json` beside the recipe.
        trackers: Where metrics go besides events.jsonl and TensorBoard (`ser.trackers`).
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"reuse", "sweep", "hub", "trackers"})

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
    reuse: list[str] = []
    sweep: SweepConfig | None = None
    hub: list[Pinned] = []
    trackers: list[Literal["wandb", "mlflow"]] = []

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        from ser.fitting import check_fit  # imports what this module imports

        check_fit(self)
        self.order()
        return self

    def encoders_below(self, name: str) -> tuple[str, ...]:
        """Names of all encoders whose frames a model reads, through trained components too."""
        model = self.models[name]
        parts = [encoder for other in model.components for encoder in self.encoders_below(other)]
        return tuple(dict.fromkeys([*model.encoders, *parts]))

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
        return self.seeds[:1] if model.role in ("teacher", "encoder") else self.seeds

    @property
    def directory(self) -> Path:
        """The run directory; of a run in an object store, the folder on this machine that is kept there (`shards.mirror`)."""
        return scratch(self.run_dir) if self.is_remote else Path(self.run_dir or f"runs/{self.name}")

    @property
    def is_remote(self) -> bool:
        """Whether the run lies in an object store."""
        return "://" in self.run_dir

    @property
    def records(self) -> Path:
        """Where this machine keeps what it knows of the run's submissions."""
        return Path(f"runs/{self.name}") if self.is_remote else self.directory

    @property
    def address(self) -> str:
        """The run directory as others find it."""
        return self.run_dir.rstrip("/") if self.is_remote else str(self.directory.resolve())

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain values."""
        return self.model_dump(mode="json")


def refuse_remote(recipe: Recipe, why: str) -> None:
    """Raises a UserError where the run lies in an object store, for what needs a folder."""
    if recipe.is_remote:
        raise UserError(
            f"this needs a run directory on a file system: {why}",
            where=f"run_dir: {recipe.run_dir}",
            hint="give a folder (run_dir=FOLDER), or ser run the whole recipe",
        )


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
