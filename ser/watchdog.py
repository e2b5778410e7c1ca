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

    The interpreter's own timer is used, which sees a process that hangs inside a library. Setting it starts a thread,
    so it is set anew only when a good part of it has run off: a dump comes after 1 to 1.25 times the limit.

    Args:
        path: Where stacks are written.
        factor: Multiple of the median step that counts as hanging.
        least_seconds: Never sooner than this.
    """

    def __init__(self, path: Path, factor: float = FACTOR, least_seconds: float = LEAST_SECONDS):
        self.path, self.factor, self.least = path, factor, least_seconds
        self.durations: deque[float] = deque(maxlen=200)
        self.file = None
        self.renew_at = 0.0

    def __enter__(self) -> "Watchdog":
        self.began = time.perf_counter()
        if len(self.durations) >= STEPS_TO_KNOW and self.began >= self.renew_at:
            limit = max(self.least, self.factor * statistics.median(self.durations))
            if self.file is None:
                self.file = self.path.open("w")
            faulthandler.dump_traceback_later(1.25 * limit, file=self.file)
            self.renew_at = self.began + 0.25 * limit
        return self

    def __exit__(self, *_: object) -> None:
        self.durations.append(time.perf_counter() - self.began)

    def rest(self) -> None:
        """Do not watch until the next step: what comes now may take long."""
        if self.file is not None:
            faulthandler.cancel_dump_traceback_later()
            self.renew_at = 0.0

    def close(self) -> None:
        """Stop watching; an empty file is removed."""
        if self.file is not None:
            self.rest()
            self.file.close()
            if self.path.stat().st_size == 0:
                self.path.unlink()
