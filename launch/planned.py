"""A plan beside what the run's finished trainings really took."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.display import Display
from ser.estimate import Time
from ser.events import read
from ser.job import Job, directory, finished, jobs, train_config
from ser.setting import Setting


@dataclass(frozen=True)
class Beside:
    """Of a model's finished trainings: steps and GPU-seconds, planned (None where no speed is known) and as they were."""

    name: str
    trainings: int
    steps: tuple[int, int]
    seconds: tuple[float | None, float]


def beside(setting: Setting, waves: list[list[Time]], steps: dict[Job, int]) -> Iterator[Beside]:
    """What can be said of every model that has finished trainings."""
    recipe = setting.recipe
    for one in (one for wave in waves for one in wave if one.each):
        every = [job for fold in setting.folds for job in jobs(recipe, fold, one.name)]
        made: list[tuple[Job, float, int, float]] = []
        for job, (workers, seconds) in zip(every, one.each, strict=True):
            if finished(setting, job) and (took := spent(directory(recipe, job) / "events.jsonl")):
                made.append((job, workers * seconds, took[0], train_config(recipe, job).workers * took[1]))
        if made:
            planned = None if one.train is None else sum(seconds for _, seconds, _, _ in made)
            told = sum(steps[job] for job, *_ in made), sum(count for _, _, count, _ in made)
            yield Beside(one.name, len(made), told, (planned, sum(seconds for *_, seconds in made)))


def spent(path: Path) -> tuple[int, float] | None:
    """(steps, seconds) of a training by its events, from the first to the last and in proportion before; None of too few.

    A training that was stopped and went on shows its pause.
    """
    events = [event for event in read(path) if event["kind"] in ("train", "dev")]
    if not events or events[-1]["step"] == events[0]["step"]:
        return None
    count = events[-1]["step"] + 1
    between = events[-1]["time"] - events[0]["time"]
    return count, between * count / (events[-1]["step"] - events[0]["step"])


def beside_table(setting: Setting, waves: list[list[Time]], steps: dict[Job, int], display: Display) -> None:
    """Planned, measured and error; nothing where no training is finished."""
    rows = []
    for one in beside(setting, waves, steps):
        planned, took = one.seconds
        hours = ("?", "") if planned is None else (f"{planned / 3600:.3g}", f"{planned / took - 1:+.0%}")
        rows.append((one.name, one.trainings, *one.steps, hours[0], f"{took / 3600:.3g}", hours[1]))
    if rows:
        heads = ["model", "finished", "steps planned", "made", "GPU-hours planned", "measured", "error"]
        display.table(
            "Finished trainings beside this plan (events.jsonl: their steps and looks at dev, pauses included)",
            heads, rows,
        )  # fmt: skip
