"""Keys of a recipe's `sweep`: what is varied, what is judged, who proposes values, and when a trial is given up.

Guarantees: a sampler's and a pruner's options are named and pinned here, so that another version of Optuna with other
defaults proposes and prunes by the same rules; what Optuna would refuse, ignore or fall back from in silence (a pruner
with several objectives, a grid over conditions) is refused when the recipe is read.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ser.strict import Strict
from shards.errors import UserError

QUALITY = (
    "ua", "wa", "macro_f1", "ccc", "ccc_valence", "ccc_arousal", "ccc_dominance", "ece", "brier", "nll", "soft_nll",
)  # fmt: skip
ON_THE_WAY = tuple(name for name in QUALITY if name != "soft_nll")  # what `ser.score` gives at an evaluation
COST = ("parameters", "bytes", "macs", "latency")
LOWER_IS_BETTER = frozenset({"ece", "brier", "nll", "soft_nll", *COST})
WORDS = {
    "parameters": "parameters",
    "bytes": "bytes on disk",
    "macs": "multiply-accumulates a second of speech",
    "latency": "seconds of one CPU thread a second of speech",
}

# Options of each sampler and pruner with the values that hold unless the recipe says otherwise.
SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 10, "n_ei_candidates": 24, "multivariate": True, "constant_liar": True},
    "gp": {"n_startup_trials": 10, "deterministic_objective": False},
    "cmaes": {
        "n_startup_trials": 1,
        "sigma0": None,
        "popsize": None,
        "with_margin": False,
        "use_separable_cma": False,
    },
    "nsga2": {"population_size": 50, "mutation_prob": None, "crossover_prob": 0.9, "swapping_prob": 0.5},
    "random": {},
    "grid": {},
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    "median": {"n_startup_trials": 5, "n_warmup_steps": 0, "interval_steps": 1, "n_min_trials": 1},
    "asha": {"min_resource": 1, "reduction_factor": 3, "min_early_stopping_rate": 0, "bootstrap_count": 0},
    "hyperband": {"min_resource": 1, "reduction_factor": 3},
    "wilcoxon": {"p_threshold": 0.1, "n_startup_steps": 2},
}


class Dimension(Strict):
    """What one dotted key of the recipe may be: a number in a range, or one of some values.

    Attributes:
        low, high: Ends of the range, both included.
        log: The range is drawn from on a logarithmic scale.
        step: Distance between the values of a range.
        choice: The values, or {name: value} where they are not plain; a name is what the study and `when` say.
        when: {other key: value or values}: this key is only varied where the other one, a `choice`, has been given one
            of them; elsewhere it stays as the recipe has it.
        int: Whole numbers.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = Field(default=None, gt=0)
    choice: list[Any] | dict[str, Any] | None = None
    when: dict[str, Any] = {}
    int: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "Dimension":
        if self.choice is not None:
            if (self.low, self.high, self.log, self.step, self.int) != (None, None, False, None, False):
                raise ValueError("a choice has no low, high, log, step or int")
            if not self.choice:
                raise ValueError("nothing to choose from")
            if len({str(label) for label in self.labels}) < len(self.choice):
                raise ValueError("a choice names the same value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give `choice`, or both `low` and `high`")
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("a logarithmic range has no step")
        if self.int and any(x is not None and x != round(x) for x in (self.low, self.high, self.step)):
            raise ValueError("int: true needs whole low, high and step")
        return self

    @property
    def labels(self) -> list[Any]:
        """What the study calls the values of a choice: plain ones are themselves, others their name or their JSON."""
        if isinstance(self.choice, dict):
            return list(self.choice)
        return [_label(value) for value in self.choice or ()]

    def value(self, label: Any) -> Any:
        """The recipe's value behind a label of a choice, or a number of a range."""
        if self.choice is None:
            return label
        values = self.choice.values() if isinstance(self.choice, dict) else self.choice
        return dict(zip(self.labels, values, strict=True))[label]


def _label(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, sort_keys=True)


class Objective(Strict):
    """What a trial is judged by: a metric of a model on the dev rows of the sweep's folds, or what the model costs.

    Attributes:
        metric: A score (over all dev rows of the sweep's folds together, the mean over seeds), or parameters, bytes,
            macs, latency of the model of the first fold and seed.
        direction: Default by the metric.
    """

    model: str
    metric: str
    direction: Literal["maximize", "minimize"] | None = None

    @model_validator(mode="after")
    def _known(self) -> "Objective":
        _require("metric", self.metric, (*QUALITY, *COST))
        return self

    @property
    def towards(self) -> Literal["minimize", "maximize"]:
        """maximize or minimize."""
        return self.direction or ("minimize" if self.metric in LOWER_IS_BETTER else "maximize")

    @property
    def title(self) -> str:
        """Model and metric in a word."""
        return f"{self.model} {self.metric}"


class Sampler(Strict):
    """Who proposes values. The seed and a trial's number alone decide what is drawn, whatever was killed in between."""

    kind: Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid"] = "tpe"
    seed: int = Field(default=0, ge=0)
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known(self) -> "Sampler":
        for name in self.options:
            _require(f"option of {self.kind}", name, tuple(SAMPLERS[self.kind]))
        return self


class Pruner(Strict):
    """Which trials are ended early.

    Attributes:
        by: folds (the folds run one after the other; after each one the trial is judged) or steps (at every evaluation of
            the one training that is judged).
    """

    kind: Literal["none", "median", "asha", "hyperband", "wilcoxon"] = "none"
    by: Literal["folds", "steps"] = "folds"
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known(self) -> "Pruner":
        for name in self.options:
            _require(f"option of {self.kind}", name, tuple(PRUNERS[self.kind]))
        if self.kind == "wilcoxon" and self.by == "steps":
            raise ValueError("wilcoxon compares trials fold by fold: by is folds")
        return self


class Resources(Strict):
    """What one trial takes of the cluster."""

    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory_gb: float | None = Field(default=None, gt=0)


class SweepConfig(Strict):
    """A search over keys of the recipe, a whole run of it a trial.

    Attributes:
        space: Dotted key of the recipe -> what it may be.
        objectives: What trials are judged by; several give a front instead of a best trial.
        trials: How many, those that were pruned or failed included.
        folds: Which of the recipe's folds a trial runs: all, or some (a racing subset).
        per: recipe (one choice for all folds) or fold (a study a fold, judged on that fold's dev rows alone: nested).
        parallel: Most trials at once; default what the cluster holds.
        retries: Times that a trial is started again after it died by itself.
        storage: Default a journal in the sweep's folder; else a file, sqlite:///FILE, or env:NAME where the variable NAME
            holds the URL of a PostgreSQL or MySQL database.
    """

    # Changing these goes on with the same study.
    OPERATIONAL: ClassVar[frozenset[str]] = frozenset(
        {"trials", "resources", "parallel", "retries", "storage"}
    )

    space: dict[str, Dimension] = Field(min_length=1)
    objectives: list[Objective] = Field(min_length=1)
    trials: int = Field(default=20, ge=1)
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    folds: list[str] | Literal["all"] = "all"
    per: Literal["recipe", "fold"] = "recipe"
    resources: Resources = Resources()
    parallel: int | None = Field(default=None, ge=1)
    retries: int = Field(default=3, ge=0)
    storage: str | None = None

    @property
    def conditional(self) -> bool:
        """Whether some key is varied in some trials only."""
        return any(dimension.when for dimension in self.space.values())

    @model_validator(mode="after")
    def _fits(self) -> "SweepConfig":
        many = len(self.objectives) > 1
        if len({(o.model, o.metric) for o in self.objectives}) < len(self.objectives):
            raise ValueError("an objective stands twice")
        if all(o.metric in COST for o in self.objectives):
            raise ValueError("nothing is judged but cost: add a score, or the smallest model wins untrained")
        if many and self.pruner.kind != "none":
            raise ValueError(
                "a pruner needs one objective: with several, a trial that is behind in one may lead in another, and "
                "Optuna does not prune there; set sweep.pruner.kind=none, or keep one objective"
            )
        if self.pruner.kind != "none" and self.objectives[0].metric in COST:
            raise ValueError("a pruner compares scores, and the objective is a cost")
        metric = self.objectives[0].metric
        if self.pruner.kind != "none" and self.pruner.by == "steps" and metric not in ON_THE_WAY:
            raise ValueError(
                f"{metric} is not known before a training has ended, so no step is pruned by it: "
                f"take one of {', '.join(ON_THE_WAY)}, or pruner.by=folds"
            )
        if many and self.sampler.kind == "cmaes":
            raise ValueError("cmaes knows one objective: take tpe, gp, nsga2, random or grid")
        if many and self.per == "fold":
            raise ValueError("per: fold chooses one best trial a fold, so it needs one objective")
        strange = [key for key in self.space if not re.fullmatch(r"models\.[^.]+\.train\..+", key)]
        if self.per == "fold" and strange:
            raise ValueError(
                f"per: fold writes each fold's own train keys, and {strange[0]} is none: a model has one shape in all folds"
            )
        if self.per == "fold" and self.pruner.kind != "none" and self.pruner.by == "folds":
            raise ValueError("per: fold runs one fold a study, so there is none to prune by: pruner.by=steps")
        if self.sampler.kind == "grid":
            _grid_fits(self)
        if self.sampler.kind in ("cmaes", "gp") and self.conditional:
            raise ValueError(
                f"{self.sampler.kind} models a space of fixed keys and would draw conditional ones at random: "
                "take tpe, nsga2 or random, or drop `when`"
            )
        if self.sampler.kind == "cmaes" and self.storage is not None:
            # It keeps its state pickled in the study, and Optuna unpickles it.
            raise ValueError(
                "cmaes runs what it reads from the study, so the study must be the sweep's own file: leave storage out"
            )
        if self.storage is not None and "://" in self.storage and not self.storage.startswith("sqlite"):
            # not a ValueError, whose message would show what was given
            raise UserError(
                "a database's URL holds a password, and recipes are written down",
                where="sweep.storage",
                hint="export it, and give the variable's name: storage: env:NAME",
            )
        return self


def _grid_fits(sweep: SweepConfig) -> None:
    if sweep.conditional:
        raise ValueError("a grid visits every combination, and `when` leaves some out: take tpe or random")
    for key, dimension in sweep.space.items():
        if dimension.choice is None and not dimension.int and dimension.step is None:
            raise ValueError(f"space.{key}: a grid needs values: give choice, int: true or a step")
        if dimension.choice is None and dimension.log:
            raise ValueError(f"space.{key}: a grid over a logarithmic range has no end: give choice")


def grid_of(space: Mapping[str, Dimension]) -> dict[str, list[Any]]:
    """Every key's values, for a grid."""
    out: dict[str, list[Any]] = {}
    for key, one in space.items():
        if one.choice is not None:
            out[key] = one.labels
            continue
        assert one.low is not None and one.high is not None
        step = one.step or 1
        count = math.floor((one.high - one.low) / step + 1e-9) + 1
        values = [one.low + i * step for i in range(count)]
        out[key] = [round(x) for x in values] if one.int else values
    return out


def _require(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"no {what} {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else f": {', '.join(known) or 'there is none'}")
        )
