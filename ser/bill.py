"""What stored features, frames and targets will cost, from the index alone: shown before the work starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ser.frames import encoder_json, frame_spec
from ser.inputs import FUNCTIONALS
from ser.job import Job
from ser.layers import layer_spec
from ser.produce import Work, feature_spec, teacher_spec
from ser.setting import Setting
from shards.targets import TargetSpec
from shards.utterance import SAMPLE_RATE


@dataclass(frozen=True)
class Bill:
    """What a set of work costs: shown before it starts."""

    units: int
    answers: int
    hours: float
    bytes: int

    def __str__(self) -> str:
        return f"{self.units} units, {self.answers:,} answers, {self.hours:.2f} h of audio, {self.bytes / 1e6:.1f} MB"


def bill(setting: Setting, work: Sequence[Work]) -> Bill:
    """Cost of some work, from the index alone."""
    answers, samples, size = 0, 0, 0
    specs: dict[Any, TargetSpec] = {}
    for item in work:
        for name, rows in item.rows.items():
            key = (item.teacher, name)
            if key not in specs:
                specs[key] = _spec(setting, item.teacher, name)
            seconds = int(setting.dataset.samples[rows].sum()) / SAMPLE_RATE
            rate = _frame_rate(setting, item.teacher, name)
            frames = seconds * rate if rate else len(rows)
            size += int(sum(o.width * o.numpy.itemsize for o in specs[key].outputs) * frames)
            answers += len(rows)
        widest = max(item.rows.values(), key=len)
        samples += int(setting.dataset.samples[widest].sum())
    return Bill(len(work), answers, samples / SAMPLE_RATE / 3600, size)


def _spec(setting: Setting, teacher: Job | None, name: str) -> TargetSpec:
    if teacher is None:
        return feature_spec(setting, name)
    if setting.recipe.models[teacher.model].role == "encoder":
        return frame_spec(setting, teacher)
    return teacher_spec(setting, teacher) if name == teacher.model else layer_spec(setting, teacher)


def _frame_rate(setting: Setting, teacher: Job | None, name: str) -> float:
    """Frames a second of what is stored; 0 where it is one answer an utterance."""
    if teacher is None:
        return 0.0 if setting.recipe.features[name].kind in FUNCTIONALS else 100.0
    if setting.recipe.models[teacher.model].role == "encoder":
        return float(encoder_json(setting, teacher)["skeleton"]["frame_rate"])
    return 0.0
