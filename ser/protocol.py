"""The protocol of a benchmark: classes, scales, folds, who is dev, which checkpoint and which metric, in one YAML file.

Guarantees: every own label of the data is either mapped to a class or ignored by name, else it is refused; labels and
folds are pure functions of (protocol, dataset); withdrawn utterances are in no fold. Under STRICT no speaker,
recording (or session, where folds are by session) is in two splits, no checkpoint is chosen on test, and no split is
drawn over utterances.
Gives up: it knows persons by "corpus/speaker"; nothing notices one voice under two names.

LEGACY exists to reproduce a published number with its flaws, and every table row names which of the two it is.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ser.folds import Fold, make_folds, shown_rows
from ser.leaks import inspect
from ser.strict import Strict, read_yaml, validate
from ser.truth import DIMENSIONS, FIELD, Labels, labels
from shards.errors import UserError

__all__ = [
    "DIMENSIONS",
    "Fold",
    "Labels",
    "Protocol",
    "folds",
    "inspect",
    "labels",
    "load_protocol",
    "shown_rows",
]

PROTOCOLS = Path(__file__).parent / "protocols"


class FoldsConfig(Strict):
    """How test sets are made.

    Attributes:
        by: What is kept whole: speaker, session, corpus, language, gender, recording, official (= extra.split) or
            extra.<field>. Ignored by `files` and `random`.
        kind: leave-one-out (a fold a value), k-fold (k groups of values), groups (values of each test set, listed),
            fixed (values of train, dev and test, one fold), files (test_fold_<k>.txt with file stems), random
            (utterances by hash of their key; LEGACY).
        k: Number of folds of k-fold and random.
        balance: k-fold deals values so that the folds are alike in classes, or in this field, or not at all.
        groups: Lists of values, "03" or "corpus/03".
        train, dev, test: Values of `fixed`; rows of other values are in no split.
        folder: Folder of `files`; `${SER_CORPORA}` is expanded.
        exclude: Training rows that share one of these with a test or dev row, and dev rows that share it with a
            test row, are left out.
        seed: Of k-fold and random.
    """

    by: str = Field("speaker", pattern=FIELD)
    kind: Literal["leave-one-out", "k-fold", "groups", "fixed", "files", "random"]
    k: int | None = Field(None, ge=2)
    balance: str = Field(
        "classes", pattern=r"^(classes|none|gender|language|corpus|session|extra\.[A-Za-z0-9_]+)$"
    )
    groups: list[list[str]] = []
    train: list[str] = []
    dev: list[str] = []
    test: list[str] = []
    folder: str = ""
    exclude: list[Literal["session", "recording", "text"]] = []
    seed: int = 0

    @model_validator(mode="after")
    def _complete(self) -> "FoldsConfig":
        needs = {
            "k-fold": ["k"],
            "random": ["k"],
            "groups": ["groups"],
            "fixed": ["train", "test"],
            "files": ["folder"],
        }
        for name in needs.get(self.kind, []):
            if not getattr(self, name):
                raise ValueError(f"kind {self.kind} needs `{name}`")
        for name in ("k", "groups", "train", "dev", "test", "folder"):
            allowed = {**needs, "fixed": ["train", "dev", "test"]}.get(self.kind, [])
            if getattr(self, name) and name not in allowed:
                raise ValueError(f"`{name}` says nothing with kind {self.kind}")
        for listed in ([*self.train, *self.dev, *self.test], *self.groups):
            self._refuse_twice(listed)
        return self

    def _refuse_twice(self, listed: list[str]) -> None:
        twice = sorted({value for value in listed if listed.count(value) > 1})
        if twice:
            raise ValueError(f"listed twice: {', '.join(twice)}")


class DevConfig(Strict):
    """Who of the training side chooses the checkpoint.

    Attributes:
        by: What is kept whole (as in folds), "fold" (the next fold's test set), "utterance" (by hash; LEGACY), or
            "test" (the test set itself; LEGACY).
        count, share: How many values, or which part of them (at least one); exactly one of the two, none for
            "fold" and "test".
        rotate: Take the values that follow the test set's in order, so that every fold has another dev set; else
            they are drawn by hash of (seed, fold, value).
        within: Do so within each corpus or language.
    """

    by: str = Field("speaker", pattern=FIELD.replace("official", "fold|utterance|test|official"))
    count: int | None = Field(None, ge=1)
    share: float | None = Field(None, gt=0, lt=1)
    rotate: bool = True
    within: Literal["corpus", "language"] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _one_size(self) -> "DevConfig":
        given = (self.count is not None) + (self.share is not None)
        if given != (0 if self.by in ("fold", "test") else 1):
            none = self.by in ("fold", "test")
            raise ValueError(
                f"by {self.by} takes {'neither count nor share' if none else 'count or share, one of them'}"
            )
        if self.by == "utterance" and self.share is None:
            raise ValueError("by utterance takes a share")
        return self


class Proxy(Strict):
    """A field that stands for a dimension which nobody rated: no rating, and the report says so.

    Attributes:
        field: `extra.<field>` of the utterance.
        values: Its values on [0, 1]; others are not rated.
    """

    field: str = Field(pattern=r"^extra\.[A-Za-z0-9_]+$")
    values: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(min_length=2)


class Protocol(Strict):
    """A benchmark's rules. See `ser/protocols/*.yaml` for examples.

    Attributes:
        strictness: STRICT or LEGACY.
        corpora: Corpora that take part; empty for all.
        subset: {field or extra.<field>: value or values} that rows must have (improvised only, say).
        classes: Class to its own labels, in order: "anger" or, for one corpus alone, "corpus/anger".
        ignored: Own labels that are no class here.
        ignored_rows: What becomes of them: `drop`, or `unlabelled` training speech.
        label_from: label, votes (the class of most votes, ties are unlabelled) or extra.<field>.
        soft_from: votes adds the distribution of votes over the classes (default with label_from: votes).
        dimensions: Which of valence, arousal, dominance; mapped from the native scale to [0, 1].
        proxies: Dimension to what stands for it where the corpus has no ratings (acted intensity for arousal, say).
        scales: Native (lowest, highest) per corpus, where it is not that of the data.
        labelled: Training labels that show: a share (0.2; 1 is all), a count a fold (900), or a file of keys, a line
            each. Share and count go by the hash of (labelled_seed, key), so a larger one contains a smaller one, and
            a share shows a key in every fold that trains on it or in none. Dev and test always show theirs.
        checkpoint: best-dev, last, or best-test (LEGACY).
        select_metric: What chooses the checkpoint.
        pool: Which number is the headline: the metric over all folds' test rows together, or the mean over folds.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"proxies"})

    name: str
    about: str = ""
    strictness: Literal["STRICT", "LEGACY"] = "STRICT"
    corpora: list[str] = []
    subset: dict[str, Any] = {}
    classes: dict[str, list[str]] = {}
    ignored: list[str] = []
    ignored_rows: Literal["drop", "unlabelled"] = "drop"
    label_from: str = Field("label", pattern=r"^(label|votes|extra\.[A-Za-z0-9_]+)$")
    soft_from: Literal["none", "votes"] | None = None
    dimensions: list[Literal["valence", "arousal", "dominance"]] = []
    scales: dict[str, tuple[float, float]] = {}
    proxies: dict[Literal["valence", "arousal", "dominance"], Proxy] = {}
    folds: FoldsConfig
    dev: DevConfig | None = None
    labelled: float | int | str = 1.0
    labelled_seed: int = 0
    checkpoint: Literal["best-dev", "last", "best-test"] = "best-dev"
    select_metric: Literal[
        "ua", "wa", "macro_f1", "ccc", "ccc_valence", "ccc_arousal", "ccc_dominance", "loss"
    ] = "ua"
    pool: Literal["pooled", "mean"] = "pooled"

    @model_validator(mode="after")
    def _sound(self) -> "Protocol":
        if not self.classes and not self.dimensions:
            raise ValueError("give classes, dimensions or both")
        if len(self.classes) == 1:
            raise ValueError("one class alone cannot be told from anything")
        taken: dict[str, str] = {}
        for name, own in [*self.classes.items(), ("ignored", self.ignored)]:
            for label in own:
                if label in taken:
                    raise ValueError(f"label {label!r} stands under {taken[label]!r} and under {name!r}")
                taken[label] = name
        if not isinstance(self.labelled, str) and self.labelled <= 0:
            raise ValueError("labelled must be above 0")
        if isinstance(self.labelled, float) and self.labelled > 1 and self.labelled % 1:
            raise ValueError(f"labelled {self.labelled} is neither a share nor a count")
        strange = sorted(set(self.proxies) - set(self.dimensions))
        if strange:
            raise ValueError(f"proxies for {', '.join(strange)}, which `dimensions` does not name")
        if any(low >= high for low, high in self.scales.values()):
            raise ValueError("a scale is (lowest, highest)")
        if self.dev is not None and self.folds.dev:
            raise ValueError("folds.dev names the dev values already: leave out `dev`")
        if self.checkpoint == "best-dev" and self.dev is None and not self.folds.dev:
            raise ValueError("checkpoint best-dev needs `dev`")
        if self.strictness == "STRICT":
            # LEGACY may test the same speaker in several folds, as some released code does
            self.folds._refuse_twice([value for group in self.folds.groups for value in group])
            for bad, what in (
                (
                    self.folds.kind == "random",
                    "folds.kind random draws utterances, so speakers are on both sides",
                ),
                (self.checkpoint == "best-test", "checkpoint best-test chooses on the test set"),
                (self.dev is not None and self.dev.by == "test", "dev.by test chooses on the test set"),
                (
                    self.dev is not None and self.dev.by == "utterance",
                    "dev.by utterance shares speakers with train",
                ),
            ):
                if bad:
                    raise ValueError(f"{what}: only strictness LEGACY may do that")
        if self.checkpoint == "best-test" and (self.dev is None or self.dev.by != "test"):
            raise ValueError("checkpoint best-test needs `dev: {by: test}`: dev is what chooses")
        return self

    @property
    def soft(self) -> bool:
        """Whether labels carry a distribution of votes."""
        return self.soft_from == "votes" or (self.soft_from is None and self.label_from == "votes")


def load_protocol(source: str | Path | Mapping[str, Any]) -> Protocol:
    """A protocol from its name in `ser/protocols`, a YAML file, or plain values.

    Plain values may say `extends: NAME` and give only what differs (mappings merge).

    Raises:
        UserError: No such protocol, or a key or value that does not fit, naming the nearest.
    """
    if isinstance(source, Mapping):
        values, where = dict(source), str(source.get("name", "protocol"))
    else:
        path = _find(str(source))
        values, where = read_yaml(path), str(path)
        if not isinstance(values, dict):
            raise UserError("a protocol is a mapping of keys", where=where)
        values.setdefault("name", path.stem)
    base = values.pop("extends", None)
    if base is not None:
        values.setdefault("name", f"{base}-changed")
        values = _merge(load_protocol(base).model_dump(exclude_unset=True), values)
    return validate(Protocol, values, where=where)


def _merge(base: Mapping, over: Mapping) -> dict:
    """`over` laid upon `base`. The classes are replaced whole: merged, they would lose their order."""
    both = {k for k, v in over.items() if isinstance(v, Mapping) and isinstance(base.get(k), Mapping)} - {
        "classes"
    }
    return {**base, **over, **{k: _merge(base[k], over[k]) for k in both}}


def _find(name: str) -> Path:
    for path in (PROTOCOLS / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"no protocol {name!r}", hint=f"{hint}known protocols: {', '.join(known)}; or give a YAML file"
    )


def folds(protocol: Protocol, dataset: Any) -> list[Fold]:
    """The protocol's folds, the same at every call. Rows of each split ascend.

    Raises:
        UserError: Under STRICT, speakers, sessions or recordings in two splits of a fold, by name; an empty split;
            values that the data do not have.
    """
    return make_folds(protocol, dataset, labels(protocol, dataset))
