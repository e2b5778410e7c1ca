"""Units of work for tests of sessions. They lie alone, because a worker imports what is around a unit: here, next to nothing."""

import os
import signal
import time
from pathlib import Path

from shards.errors import UserError


def busy(folder):
    """What this task sees of GPUs, and when it ran."""
    began = time.time()
    time.sleep(0.3)  # work that lasts, so that two at once overlap in what is returned
    return os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.time()


def whose(item):
    """In which process this was done."""
    time.sleep(
        0.3
    )  # work that lasts, so that several of these take longer than the time before Ray is started
    return os.getpid()


def meets(item):
    """A unit that says in which process it is, and goes on once so many processes have begun."""
    folder, count, number = item
    Path(folder, str(os.getpid())).touch()
    end = time.monotonic() + 120
    while len(os.listdir(folder)) < count:
        assert time.monotonic() < end, "the others did not begin within 120 s"
        time.sleep(0.1)
    match number:
        case "refused":
            raise UserError("seven", where="here", hint="use eight")
        case "stays":
            time.sleep(600)  # until it is killed with its worker, which is what the test is about
    return number


def dies(item):
    """A unit whose process is killed in the first `times` calls."""
    folder, number, times = item
    calls = Path(folder, str(number))
    calls.mkdir(exist_ok=True)
    (calls / str(os.getpid())).touch()
    if len(os.listdir(calls)) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
