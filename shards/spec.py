"""What goes into which shard: decided from keys and stated durations before any audio is decoded.

Guarantees: the shards are a function of the set of utterances, not of their order; one corpus a shard; keys are unique ignoring
case; each spec carries a digest of all that its bytes depend on, the source files' sizes included, so that a resumed
run knows what is still valid. Paths are not in the digest: a corpus may move.
Gives up: a source file that changed but kept its size looks unchanged.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import soundfile

from shards.audio import MAX_SECONDS
from shards.errors import UserError
from shards.index import FORMAT, canonical, facts
from shards.store import Store, opened
from shards.utterance import Utterance

SHARD_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Source:
    """An utterance to pack, the seconds its source states, and a digest of it and its source file's size."""

    utterance: Utterance
    seconds: float
    digest: str


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """All that a worker needs to make one shard: no audio, so it travels cheaply."""

    number: int
    corpus: str
    sources: tuple[Source, ...]
    max_seconds: float
    digest: str


def measure(utterances: Iterable[Utterance]) -> list[Source]:
    """Looks at every source once: stated duration, size; in order of corpus and sha256(key).

    Raises:
        UserError: A key occurs twice (ignoring case), or a field is NaN or infinite.
    """
    sizes: dict[str, int] = {}
    lengths: dict[str, float] = {}
    seen: dict[str, str] = {}
    out = []
    for utterance in utterances:
        folded = utterance.key.lower()
        if folded in seen:
            raise UserError(
                f"the key {utterance.key!r} occurs twice (keys are compared ignoring case)",
                where=f"{seen[folded]} and {where(utterance)}",
                hint="give each utterance its own key in the reader or manifest",
            )
        seen[folded] = where(utterance)
        if utterance.audio not in sizes:
            sizes[utterance.audio] = _size(utterance.audio)
        try:
            stated = canonical([facts(utterance, None), sizes[utterance.audio]])
        except (ValueError, TypeError) as error:
            raise UserError(
                f"a field of {utterance.key!r} cannot be stored as JSON: {error}",
                where=where(utterance),
                hint="give None where a value is missing",
            ) from error
        digest = hashlib.sha256(stated).hexdigest()[:16]
        out.append(Source(utterance, _seconds(utterance, lengths), digest))
    return sorted(out, key=lambda s: (s.utterance.corpus, hashlib.sha256(s.utterance.key.encode()).digest()))


def plan_shards(
    utterances: Iterable[Utterance],
    shard_seconds: float = SHARD_SECONDS,
    first: int = 0,
    max_seconds: float = MAX_SECONDS,
) -> list[ShardSpec]:
    """Decides which utterance goes into which shard, before any audio is read.

    Args:
        utterances: Any order.
        shard_seconds: A shard is closed when its sources' stated durations reach this sum.
        first: Number of the first shard.
        max_seconds: Longer utterances are quarantined.

    Raises:
        UserError: Duplicate keys, unusable fields, nothing to pack or a border of no length.
    """
    return divide(measure(utterances), shard_seconds, first, max_seconds)


def divide(
    sources: Sequence[Source], shard_seconds: float, first: int, max_seconds: float
) -> list[ShardSpec]:
    """`plan_shards` of sources that were measured already."""
    check_options(shard_seconds, max_seconds)
    specs: list[ShardSpec] = []
    for corpus, group in itertools.groupby(sources, key=lambda s: s.utterance.corpus):
        held: list[Source] = []
        total = 0.0
        for source in group:
            held.append(source)
            total += source.seconds
            if total >= shard_seconds:
                specs.append(_spec(first + len(specs), corpus, held, max_seconds))
                held, total = [], 0.0
        if held:
            specs.append(_spec(first + len(specs), corpus, held, max_seconds))
    return specs


def check_options(shard_seconds: float, max_seconds: float) -> None:
    """Raises a UserError where one of them is no length."""
    for name, value, usual in (
        ("shard_seconds", shard_seconds, SHARD_SECONDS),
        ("max_seconds", max_seconds, MAX_SECONDS),
    ):
        if not 0 < value < math.inf:
            raise UserError(f"{name} is {value}, it must be above 0 and finite", hint=f"try {usual:g}")


def _spec(number: int, corpus: str, sources: Sequence[Source], max_seconds: float) -> ShardSpec:
    content = [FORMAT, max_seconds, corpus, [[s.utterance.key, s.digest] for s in sources]]
    return ShardSpec(
        number, corpus, tuple(sources), max_seconds, hashlib.sha256(canonical(content)).hexdigest()
    )


def where(utterance: Utterance) -> str:
    """Source file and cut, for messages."""
    cut = "" if utterance.start is None and utterance.end is None else f"[{utterance.start}, {utterance.end}]"
    return f"{utterance.audio}{cut}"


def _size(audio: str) -> int:
    try:
        if "://" in audio:
            return Store(audio).size("")
        return os.stat(audio).st_size
    except (OSError, ValueError, ImportError):
        return -1  # it will be quarantined with the proper reason when it is read


def _seconds(utterance: Utterance, lengths: dict[str, float]) -> float:
    """Stated duration of the source: its cut, its label's, or its header's; 0 where there is none."""
    if utterance.end is not None:
        return utterance.end - (utterance.start or 0.0)
    if utterance.duration is not None:
        return max(0.0, utterance.duration)
    if utterance.audio not in lengths:
        lengths[utterance.audio] = _header_seconds(utterance.audio)
    return max(0.0, lengths[utterance.audio] - (utterance.start or 0.0))


def _header_seconds(audio: str) -> float:
    try:
        info = soundfile.info(opened(audio) if "://" in audio else audio)
        return info.frames / info.samplerate
    except (OSError, RuntimeError, ValueError, ImportError):
        return 0.0
