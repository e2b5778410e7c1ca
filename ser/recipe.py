"""The recipe: one YAML file that describes a whole experiment, validated before anything starts.

A teacher and a student are both entries of `models`; they differ in keys, not in code path. Values are overridden on
the command line by dotted keys (`models.student.train.steps=200`); `variants` are named sets of overrides. The
resolved recipe is written into the run directory, so a run never depends on the file again.
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from ser.models.config import ModelConfig
from ser.strict import Strict, read_yaml, validate
from ser.values import expand, merge, set_dotted, unshared
from shards.errors import UserError

RECIPES = Path(__file__).parent / "recipes"


class CorpusConfig(Strict):
    """One corpus: which reader, where it lies, and (for the generated corpus) how to make it."""

    reader: str
    root: str
    options: dict[str, Any] = {}
    generate: dict[str, Any] | None = None


class DataConfig(Strict):
    """The packed dataset: where, from which corpora, in shards of how many seconds."""

    path: str
    corpora: list[CorpusConfig] = Field(min_length=1)
    shard_seconds: float = Field(default=600, gt=0)
    max_quarantined: float = Field(default=0.01, ge=0, le=1)


class OptimizerConfig(Strict):
    """AdamW. `encoder_lr` is for pre-trained encoder weights; None means `lr` for all."""

    lr: float = Field(default=1e-3, gt=0)
    encoder_lr: float | None = None
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8


class TrainConfig(Strict):
    """How a model is trained. A global step is `slots` micro-batches of at most `slot_seconds` padded seconds each.

    `jitter` (in 1/1024) blurs durations before they are sorted into slots. Little of it saves padding; but where
    duration goes with the class (fast speech is aroused speech), tight slots are one-sided, and learning suffers.
    """

    steps: int | None = Field(default=None, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    slot_seconds: float = Field(default=60, gt=0)
    slots: int = Field(default=1, gt=0)
    pool_shards: int = Field(default=16, gt=0)
    jitter: int = Field(default=256, ge=0, le=1024)
    law: Literal["uniform", "temperature"] = "uniform"
    alpha: float = Field(default=0.5, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    init_from: str | None = None
    evaluate_every: int | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, gt=0)
    checkpoint_every: int | None = Field(default=None, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    log_every: int = Field(default=20, gt=0)
    workers: int = Field(default=1, gt=0)
    loader_workers: int = Field(default=0, ge=0)
    threads: int = Field(default=1, gt=0)
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    tensorboard: bool = True

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.slots % self.workers:
            fit = [w for w in range(1, self.slots + 1) if self.slots % w == 0]
            raise ValueError(f"workers {self.workers} must divide slots {self.slots}; these do: {fit}")
        return self


class Term(Strict):
    """One term of an objective.

    `cross_entropy` and `ccc` learn from labels; `kl`, `embedding`, `multi_kl` and `dimensions` from stored targets of
    the named teacher(s); `standardise` takes mean and deviation over the training rows out of a teacher's embedding
    first (raw embeddings share a large direction that a cosine rewards for nothing); with `rows: unlabelled` only where no label shows. `scope: slot` computes CCC per micro-batch as some released code does (LEGACY).
    """

    loss: Literal["cross_entropy", "ccc", "kl", "multi_kl", "embedding", "dimensions"]
    weight: float = Field(default=1.0, ge=0)
    teacher: str | None = None
    teachers: list[str] = []
    temperature: float = Field(default=1.0, gt=0)
    direction: Literal["forward", "reverse"] = "forward"
    reduction: Literal["batchmean", "mean"] = "batchmean"
    distance: Literal["cosine", "mse", "l1"] = "cosine"
    weights: Literal["cosine", "batch_cosine", "uniform"] = "cosine"
    tau: float = Field(default=0.25, gt=0)
    scope: Literal["step", "slot"] = "step"
    rows: Literal["all", "unlabelled"] = "all"
    standardise: bool = False

    @model_validator(mode="after")
    def _teachers_named(self) -> "Term":
        if self.loss in ("kl", "embedding", "dimensions") and not self.teacher:
            raise ValueError(f"loss {self.loss} needs `teacher: NAME`")
        if self.loss == "multi_kl" and len(self.teachers) < 2:
            raise ValueError("loss multi_kl needs `teachers: [NAME, NAME, ...]`")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the teachers whose stored targets this term reads."""
        return (self.teacher,) if self.teacher else tuple(self.teachers)


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
    seeds: list[int] | None = None

    @property
    def classical(self) -> bool:
        """Fitted by scikit-learn on functionals instead of trained in steps."""
        return self.model.kind == "classical"

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
            if (model.train is None) != (not model.objective):
                raise ValueError(f"models.{name}: train and objective belong together")
            if model.classical and model.train is not None:
                raise ValueError(
                    f"models.{name} is classical: it is fitted at once, without train and objective"
                )
            if model.train is None and not model.components and not model.classical:
                raise ValueError(f"models.{name} is neither trained nor made of other models")
            for other in model.needs:
                if self.models[other].classical:
                    raise ValueError(
                        f"models.{name} needs {other}, which is classical: it hears the clean utterance, never a view, "
                        "so it can be neither a teacher nor a component"
                    )
        self.order()
        return self

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


def find(name: str) -> Path:
    """Path of a recipe: a file, or the name of one that comes with the package."""
    for path in (Path(name), RECIPES / f"{name}.yaml", RECIPES / name / "recipe.yaml"):
        if path.is_file():
            return path
    known = sorted(
        [p.stem for p in RECIPES.glob("*.yaml")] + [p.parent.name for p in RECIPES.glob("*/recipe.yaml")]
    )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"no recipe {name!r}", where=str(Path.cwd()), hint=f"{hint}known recipes: {', '.join(known)}"
    )


def load(name: str, overrides: list[str] | tuple[str, ...] = (), variant: str | None = None) -> Recipe:
    """Read, vary, override and validate a recipe.

    Args:
        name: A path, or the name of a recipe that comes with the package.
        overrides: `dotted.key=value` strings, the value in YAML.
        variant: Name of an entry of the recipe's `variants`.

    Raises:
        UserError: Unknown recipe, variant or key (naming the nearest), or a value that does not fit.
    """
    path = find(name)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError("a recipe is a mapping of keys", where=str(path))
    # YAML anchors share objects: an override of one model must not reach another through them.
    values = unshared({key: value for key, value in values.items() if not key.startswith("x-")})
    variants = values.pop("variants", {}) or {}
    if variant is not None:
        if variant not in variants:
            raise UserError(
                f"no variant {variant!r}", where=str(path), hint=f"variants: {', '.join(variants) or 'none'}"
            )
        values = merge(values, variants[variant])
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(
                f"override {text!r} is not key=value", hint="for example models.student.train.steps=200"
            )
        try:
            plain = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"override {text!r}: the value is not YAML ({getattr(error, 'problem', error)})",
                hint="quote it for the shell, for example 'seeds=[0, 1]'",
            ) from None
        set_dotted(values, key, plain, where=str(path))
    values.setdefault("name", path.parent.name if path.name == "recipe.yaml" else path.stem)
    if values.get("chosen"):
        values["chosen"] = str((path.parent / values["chosen"]).resolve())
    return validate(Recipe, expand(values), where=str(path))
