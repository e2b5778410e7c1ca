"""Keys of one training: how long, in what batches, by which optimizer, and the terms of its objective."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ser.strict import Strict


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
    `checkpoint_every` is a number of steps, or wall time ("90 s", "10 min", "2 h"); a checkpoint changes no result. With
    `checkpoint_background` the training waits for a copy of its state in host memory only, and goes on while that is
    written; it is committed at the first step by which every rank has written.
    `workers_min` lets a training on Ray go on with fewer workers where machines are lost and none comes within `cluster.wait`:
    with the most that find room and divide the slots, until it starts again and there is room for more.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"workers_min"})

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
    checkpoint_every: int | str | None = "10 min"
    checkpoint_background: bool = False
    keep_checkpoints: int = Field(default=2, gt=0)
    log_every: int = Field(default=20, gt=0)
    workers: int = Field(default=1, gt=0)
    workers_min: int | None = Field(default=None, gt=0)
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
        if self.slots % self.least or self.least > self.workers:
            fit = [w for w in range(1, self.workers + 1) if self.slots % w == 0]
            raise ValueError(
                f"workers_min {self.least} must divide slots {self.slots} and be no more than workers {self.workers}; "
                f"these are: {fit}"
            )
        every = self.checkpoint_every
        if (every <= 0) if isinstance(every, int) else (every is not None and not self.checkpoint_seconds):
            raise ValueError(
                f'checkpoint_every {every!r} is neither a number of steps nor a time such as "10 min"'
            )
        lowest = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(
                f"offload {self.offload} needs zero_stage {lowest} or more, not {self.zero_stage}"
            )
        return self

    @property
    def least(self) -> int:
        """Workers without which it does not go on."""
        return self.workers if self.workers_min is None else self.workers_min

    @property
    def checkpoint_seconds(self) -> float | None:
        """Wall time between checkpoints, where `checkpoint_every` is a time."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", str(self.checkpoint_every))
        return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else None


# Keys of a term, and the losses that read them.
MEANS_SOMETHING_FOR = {
    "teacher": ("kl", "embedding", "dimensions"),
    "teachers": ("multi_kl",),
    "temperature": ("kl", "multi_kl"),
    "direction": ("kl", "multi_kl"),
    "reduction": ("kl", "multi_kl"),
    "distance": ("embedding",),
    "standardise": ("embedding",),
    "weights": ("multi_kl",),
    "tau": ("multi_kl",),
    "scope": ("ccc",),
    "mix": ("ccc",),
    "memory": ("ccc",),
    "projector": ("embedding",),
    "rows": ("kl", "multi_kl", "embedding", "dimensions"),
}


class Term(Strict):
    """One term of an objective.

    `cross_entropy` and `ccc` learn from labels; `kl`, `embedding`, `multi_kl` and `dimensions` from stored targets of
    the named teacher(s), with `rows: unlabelled` only where no label shows. `standardise` takes mean and deviation over
    the training rows out of a teacher's embedding first (raw embeddings share a large direction that a cosine rewards
    for nothing). `scope: slot` computes CCC per micro-batch as some released code does (LEGACY). `mix` weighs the
    dimensions of a CCC (alpha, beta, 1 - alpha - beta of Mitra et al. 2022); without it they count alike. `memory` in (0, 1)
    takes CCC over the outputs of recent steps too, one that lies n steps back weighing memory^n: approximate, because those
    are outputs of older weights, and the gradient is that of the step's own rows in the larger set. `projector:
    none` compares embeddings of one size as they are. `ctc` teaches an encoder to transcribe (Graves et al. 2006).

    `weights` of multi_kl: `cosine` (softmax of the cosine of student and teacher logits over `tau`, each utterance on its
    own: Bijoy et al. 2025, equation 1), `batch_cosine` (of the batch's mean cosine, as their released code; LEGACY),
    `uniform`, `language` (the teacher of the utterance's own language alone: an oracle that needs the language),
    `uncertainty` (who is sure of the utterance counts for more) and `agreement` (who stands alone counts for less), both
    softmaxes over `tau`.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"mix", "projector", "memory"})

    loss: Literal["cross_entropy", "ccc", "kl", "multi_kl", "embedding", "dimensions", "ctc"]
    weight: float = Field(default=1.0, ge=0)
    teacher: str | None = None
    teachers: list[str] = []
    temperature: float = Field(default=1.0, gt=0)
    direction: Literal["forward", "reverse"] = "forward"
    reduction: Literal["batchmean", "mean"] = "batchmean"
    distance: Literal["cosine", "mse", "l1"] = "cosine"
    weights: Literal["cosine", "batch_cosine", "uniform", "language", "uncertainty", "agreement"] = "cosine"
    tau: float = Field(default=0.25, gt=0)
    scope: Literal["step", "slot"] = "step"
    rows: Literal["all", "unlabelled"] = "all"
    standardise: bool = False
    mix: dict[Literal["valence", "arousal", "dominance"], Annotated[float, Field(ge=0)]] | None = None
    projector: Literal["linear", "none"] = "linear"
    memory: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _teachers_named(self) -> "Term":
        if self.loss in ("kl", "embedding", "dimensions") and not self.teacher:
            raise ValueError(f"loss {self.loss} needs `teacher: NAME`")
        if self.loss == "multi_kl" and len(self.teachers) < 2:
            raise ValueError("loss multi_kl needs `teachers: [NAME, NAME, ...]`")
        for key, losses in MEANS_SOMETHING_FOR.items():
            # a resolved recipe spells out every default, which says nothing
            if self.loss not in losses and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` says nothing with loss {self.loss}, only with {', '.join(losses)}")
        if self.memory and self.scope == "slot":
            raise ValueError("`memory` adds recent steps to a step: it says nothing with scope slot")
        if self.mix is not None and abs(sum(self.mix.values()) - 1) > 1e-3:
            raise ValueError(f"the weights of `mix` must sum to 1, not {sum(self.mix.values()):g}")
        return self

    @property
    def name(self) -> str:
        """What the term is called in the log; no two terms of an objective share it."""
        return "/".join([self.loss, *self.sources, *(["unlabelled"] if self.rows == "unlabelled" else [])])

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the teachers whose stored targets this term reads."""
        return (self.teacher,) if self.teacher else tuple(self.teachers)
