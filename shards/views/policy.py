"""The view policy: which operations, how strong, how often; and the hash that names it.

Guarantees: two policies with the same hash make the same views of the same audio. The hash covers the order of
operations, the version of their code, every range and probability and the sha256 of each noise and room file; it
leaves out where the files lie, and `count`: view v does not depend on how many views there are, so more views may be
added to stored ones. Gives up: recognising two policies that differ in words only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal

from shards.errors import UserError
from shards.utterance import SAMPLE_RATE
from shards.views.assets import Asset

VERSION = 1  # of the parameters' draw and of the signal code; raised when either changes
OPS = ("crop", "speed", "room", "noise", "band", "gain", "mask")
MAX_SPANS = 24
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Crop:
    """Keep at most `seconds` of a view: its head, its centre, or a stretch drawn for each (key, view)."""

    policy: str
    seconds: float

    def __post_init__(self):
        if self.policy not in ("head", "center", "random"):
            raise UserError(
                f"crop policy {self.policy!r} is none of head, center, random", where="views.crop"
            )
        if not self.seconds * SAMPLE_RATE >= 1:
            raise UserError(f"crop to {self.seconds} seconds", where="views.crop")
        object.__setattr__(self, "seconds", float(self.seconds))  # 10 and 10.0 are one policy

    @property
    def samples(self) -> int:
        return round(self.seconds * SAMPLE_RATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPolicy:
    """How views are made. Ranges are (lowest, highest), both included; None switches an operation off.

    Attributes:
        count: V, number of augmented views (1..V); 0 leaves only view 0.
        seed: Seed of all parameters.
        gain_db: Gain in dB, drawn in steps of 0.01.
        speed: In 1/1000; 1100 is 1.1 times as fast, hence shorter and higher. 500 to 2000.
        snr_db: Signal-to-noise ratio in dB over the whole view, drawn in steps of 0.01. Goes with `noise`.
        noise: Files, or "synthetic": white or pink noise in equal parts.
        room: Files of impulse responses, or "synthetic": exponentially decaying noise behind a direct path.
        room_ms: Reverberation time RT60 of synthetic rooms in ms.
        room_db: Direct-to-reverberant energy of synthetic rooms in dB, steps of 0.01.
        band: ((lowest, highest) lower edge, (lowest, highest) upper edge) of a bandpass in Hz, telephone-like.
        mask_spans: How many spans are set to zero.
        mask_ms: Length of a span in ms.
        mask_share: Largest share of a view that its spans may cover, in 1/1000; spans are shortened to fit.
        crop: At most so long, view 0 included: {"policy": "head" | "center" | "random", "seconds": s}.
        probability: How often an operation acts, in 1/1000 (1000 where not named); keys as in OPS, without crop.

    Raises:
        UserError: A range that is empty or out of bounds, a file that cannot be read, an unknown word.
    """

    count: int = 0
    seed: int = 0
    gain_db: tuple[float, float] | None = None
    speed: Range | None = None
    snr_db: tuple[float, float] | None = None
    noise: tuple[Asset, ...] | str | None = None
    room: tuple[Asset, ...] | str | None = None
    room_ms: Range = (200, 800)
    room_db: tuple[float, float] = (0.0, 10.0)
    band: tuple[Range, Range] | None = None
    mask_spans: Range | None = None
    mask_ms: Range = (50, 200)
    mask_share: int = 300
    crop: Crop | None = None
    probability: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):

        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # frozen: values are normalised once, here

        put("count", _whole("count", self.count, 0, 10**6))
        put("seed", _whole("seed", self.seed, 0, (1 << 64) - 1))
        put("mask_share", _whole("mask_share", self.mask_share, 0, 1000))
        for name, least, most in (("gain_db", -60, 60), ("snr_db", -20, 100), ("room_db", -20, 60)):
            put(name, _decibel(name, getattr(self, name), least, most))
        for name, least, most in (
            ("speed", 500, 2000),
            ("room_ms", 1, 10_000),
            ("mask_spans", 0, MAX_SPANS),
            ("mask_ms", 1, 60_000),
        ):
            put(name, _range(name, getattr(self, name), least, most))
        put("noise", _assets("noise", self.noise))
        put("room", _assets("room", self.room))
        if (self.noise is None) != (self.snr_db is None):
            raise UserError("noise and snr_db go together", where="views", hint="give both or neither")
        if self.band is not None:
            put("band", _band(self.band))
        if self.crop is not None and not isinstance(self.crop, Crop):
            if not isinstance(self.crop, Mapping) or set(self.crop) != {"policy", "seconds"}:
                raise UserError(
                    f"crop is {self.crop!r}", where="views.crop", hint="{policy: head, seconds: 10}"
                )
            put("crop", Crop(**self.crop))
        odds = dict(self.probability)
        for name, value in odds.items():
            if name not in OPS[1:]:
                raise UserError(
                    f"no operation {name!r}", where="views.probability", hint=f"one of {', '.join(OPS[1:])}"
                )
            _whole(f"probability.{name}", value, 0, 1000)
        put("probability", tuple(sorted((name, int(value)) for name, value in odds.items())))

    def odds(self, op: str) -> int:
        """How often `op` acts on a view v >= 1, in 1/1000; 0 where it is switched off."""
        switch = getattr(self, {"gain": "gain_db", "mask": "mask_spans"}.get(op, op))
        return 0 if switch is None else dict(self.probability).get(op, 1000)

    @classmethod
    def from_dict(cls, data: Mapping) -> "ViewPolicy":
        """From a recipe or from `to_dict`. Files are paths, or {path, sha256, samples} to be checked when loaded.

        Raises:
            UserError: Unknown key, or as the class.
        """
        names = [f.name for f in fields(cls)]
        for name in data:
            if name not in names:
                raise UserError(f"unknown key {name!r}", where="views", hint=f"one of {', '.join(names)}")
        return cls(**data)

    def to_dict(self) -> dict:
        """JSON-able, complete: `from_dict(to_dict())` is equal and reads no file."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("noise", "room"):
            if isinstance(data[name], tuple):
                data[name] = [{"path": a.path, "sha256": a.sha256, "samples": a.samples} for a in data[name]]
        if self.crop is not None:
            data["crop"] = {"policy": self.crop.policy, "seconds": self.crop.seconds}
        data["probability"] = dict(self.probability)
        return json.loads(json.dumps(data))

    def hash(self) -> str:
        """16 hex digits of the sha256 of everything that shapes a view (see the module's docstring)."""
        data = self.to_dict()
        del data["count"]
        for name in ("noise", "room"):
            if isinstance(data[name], list):
                data[name] = [a["sha256"] for a in data[name]]
        data |= {"ops": OPS, "version": VERSION}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def centi(bounds: tuple[float, float]) -> Range:
    """A range in dB as integers of 0.01 dB."""
    low, high = (int(Decimal(repr(float(b))).scaleb(2)) for b in bounds)
    return low, high


def _whole(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not least <= int(value) <= most:  # pyright: ignore
        raise UserError(f"{name} is {value!r}", where="views", hint=f"a whole number from {least} to {most}")
    return int(value)  # pyright: ignore


def _pair(name: str, value: object) -> tuple:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UserError(f"{name} is {value!r}", where="views", hint="a range: [lowest, highest]")
    if (
        not all(isinstance(v, (int, float)) or hasattr(v, "__index__") for v in value)
        or not value[0] <= value[1]
    ):
        raise UserError(f"{name} is {value!r}", where="views", hint="two numbers, the lower first")
    return tuple(value)


def _range(name: str, value: object, least: int, most: int) -> Range | None:
    if value is None:
        return None
    low, high = _pair(name, value)
    return _whole(name, low, least, most), _whole(name, high, least, most)


def _decibel(name: str, value: object, least: int, most: int) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(v) for v in _pair(name, value))
    for bound in (low, high):
        if not least <= bound <= most or Decimal(repr(bound)).scaleb(2) % 1:
            hint = f"dB from {least} to {most}, at most two decimals"
            raise UserError(f"{name} is {value!r}", where="views", hint=hint)
    return low, high


def _band(value: object) -> tuple[Range, Range]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UserError(f"band is {value!r}", where="views", hint="[[200, 400], [3000, 3800]] in Hz")
    low = _range("band", value[0], 10, SAMPLE_RATE // 2 - 50)
    high = _range("band", value[1], 10, SAMPLE_RATE // 2 - 50)
    if low is None or high is None or low[1] + 100 > high[0]:
        raise UserError(f"band is {value!r}", where="views", hint="edges at least 100 Hz apart")
    return low, high


def _assets(name: str, value: object) -> tuple[Asset, ...] | str | None:
    if value is None or value == "synthetic":
        return value  # pyright: ignore[reportReturnType]
    if not isinstance(value, (tuple, list)) or not value:
        raise UserError(f"{name} is {value!r}", where="views", hint="a list of files, or synthetic")
    return tuple(
        a if isinstance(a, Asset) else Asset(**a) if isinstance(a, Mapping) else Asset.of(a) for a in value
    )
