"""With how many workers a training starts whose machines may be lost for good.

Ray Train asks for all its workers whenever they start, the first time or after a loss, and just before that the number is
changed here. Its own elastic policy (`ScalingConfig(num_workers=(2, 4))`) is not used: it takes any number of workers,
divide the slots or not, counts machines that are about to go, waits for none, and ends healthy workers in order to grow.
Gives up: while it waits, workers that outlived the loss keep what they hold, and an autoscaler is not told again what is wanted.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.room import Room
from ser.recipe import ClusterConfig, TrainConfig

LOOK = 0.5  # seconds between two looks at what room there is


def most(room: int, workers: int, least: int, slots: int) -> int:
    """Workers that find room and divide the slots: as many as possible, at most `workers`; 0 where that is under `least`."""
    return next((n for n in range(min(room, workers), least - 1, -1) if slots % n == 0), 0)


def settle(
    room: Callable[[], int],
    config: TrainConfig,
    end: float,
    tried: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """`workers` as soon as they find room; from `end` on (of the monotonic clock) the most that do, `workers_min` at least.

    Waits for these without end: the driver gives up a cluster that cannot hold them. Who is stopping waits for nobody. Those
    that were `tried` just before found no room among other work, so fewer are taken, down to the least and over again.
    """
    top = config.workers if tried is None or tried <= config.least else tried - 1
    while True:
        fit = most(_asked(room), top, config.least, config.slots)
        if fit == config.workers or (fit and time.monotonic() >= end):
            return fit
        if stopping():
            return fit or config.least
        time.sleep(LOOK)  # Ray tells nobody of machines that come; their number is asked for


def _asked(room: Callable[[], int]) -> int:
    from ray.exceptions import RayError

    # A cluster that loses machines may not answer for a while, and what is raised in Ray's callback ends a training for good.
    try:
        return room()
    except (OSError, RuntimeError, RayError):
        return 0


def shrinking(
    config: TrainConfig, want: ClusterConfig, patience: float, starts: Path, stop: Path
) -> list[Any]:
    """Ray Train's callbacks of a training; none where its number of workers is fixed.

    Args:
        config: Of the training.
        want: What a worker takes.
        patience: Seconds for which all workers are waited for after each loss.
        starts: A file that changes whenever workers have started.
        stop: A file that is there once the training is asked to stop.
    """
    if config.least == config.workers:
        return []
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Settle(ControllerCallback):
        started: str | None = None
        tried: int | None = None
        end = 0.0

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            room = Room(want.cpus_per_task, want.gpus_per_task)
            now = starts.read_text() if starts.is_file() else ""
            if now != self.started:
                self.started, self.tried, self.end = now, None, time.monotonic() + patience
            self.tried = settle(room.now, config, self.end, self.tried, stop.exists)
            resize_decision.num_workers = self.tried  # the controller reads it after this

    return [Settle()]
