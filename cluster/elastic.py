"""With how many workers a training starts whose machines may be lost for good.

Ray Train asks for all its workers whenever they start, the first time or after a loss, and just before that the number is
changed here. Its own elastic policy (`ScalingConfig(num_workers=(2, 4))`) is not used: it takes any number of workers,
divide the slots or not, counts machines that are about to go, waits for none, and ends healthy workers in order to grow.
"""

import time
from collections.abc import Callable
from typing import Any

from cluster.room import Room
from ser.recipe import ClusterConfig, TrainConfig

LOOK = 0.5  # seconds between two looks at what room there is


def most(room: int, workers: int, least: int, slots: int) -> int:
    """Workers that find room and divide the slots: as many as possible, at most `workers`; 0 where that is under `least`."""
    return next((n for n in range(min(room, workers), least - 1, -1) if slots % n == 0), 0)


def settle(room: Callable[[], int], config: TrainConfig, patience: float) -> int:
    """`workers` as soon as they find room; after `patience` seconds without it the most that do, `workers_min` at least.

    Waits for these without end: the driver gives up a cluster that cannot hold them.
    """
    end = time.monotonic() + patience
    while True:
        fit = most(room(), config.workers, config.least, config.slots)
        if fit == config.workers or (fit and time.monotonic() >= end):
            return fit
        time.sleep(LOOK)


def shrinking(config: TrainConfig, want: ClusterConfig, patience: float) -> list[Any]:
    """Ray Train's callbacks of a training; none where its number of workers is fixed."""
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Settle(ControllerCallback):
        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            room = Room(want.cpus_per_task, want.gpus_per_task)
            resize_decision.num_workers = settle(room.now, config, patience)

    return [Settle()] if config.least < config.workers else []
