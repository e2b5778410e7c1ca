"""Notice a step that hangs: after ten times the median step, every thread's stack is written to a file.

The process goes on; the file says where it waits (a collective, the loader, the disk). Armed only after enough steps
to know the median, and never under half a minute.
"""

import faulthandler
import statistics
import time
from collections import deque
from pathlib import Path

FACTOR, LEAST_SECONDS, STEPS_TO_KNOW = 10, 30.0, 20


class Watchdog:
    """Context manager around each step.

    Args:
        path: Where stacks are written.
        factor: Multiple of the median step that counts as hanging.
        least_seconds: Never sooner than this.
    """

    def __init__(self, path: Path, factor: float = FACTOR, least_seconds: float = LEAST_SECONDS):
        self.path, self.factor, self.least = path, factor, least_seconds
        self.durations: deque[float] = deque(maxlen=200)
        self.file = None
        self.armed = False

    def __enter__(self) -> "Watchdog":
        self.began = time.perf_counter()
        if len(self.durations) >= STEPS_TO_KNOW:
            # Sorting 200 numbers each step is wasteful only for steps under a millisecond, which none is.
            limit = max(self.least, self.factor * statistics.median(self.durations))
            if self.file is None:
                self.file = self.path.open("w")
            faulthandler.dump_traceback_later(limit, file=self.file)
            self.armed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self.armed:
            faulthandler.cancel_dump_traceback_later()
            self.armed = False
        self.durations.append(time.perf_counter() - self.began)

    def close(self) -> None:
        """Stop watching; an empty file is removed."""
        if self.file is not None:
            faulthandler.cancel_dump_traceback_later()
            self.file.close()
            if self.path.stat().st_size == 0:
                self.path.unlink()
