"""Stop at a step boundary when asked: Ctrl-C, SIGTERM, SIGUSR1 or a file set a flag that all ranks agree on."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: stopped on request with a checkpoint, run again to go on
WITHIN = 60.0  # seconds in which trainings elsewhere reach a step boundary and save, before they are ended where they are
_LOOK = 0.5  # seconds between two looks for a file


class Stopped(Exception):
    """The training stopped on request after saving; run the same command to go on."""


class StopFlag:
    """Context that turns signals into `requested`; a second Ctrl-C interrupts at once.

    Args:
        files: The appearance of one asks, too: for ranks on other machines, which no signal of ours reaches.
    """

    def __init__(self, *files: Path) -> None:
        self.files, self._asked, self._looked = files, False, 0.0
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        if not self._asked and self.files and time.monotonic() - self._looked > _LOOK:
            self._asked, self._looked = any(file.exists() for file in self.files), time.monotonic()
        return self._asked

    def request(self) -> None:
        """Ask, from any thread."""
        self._asked = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request()

    def __enter__(self) -> "StopFlag":
        # Only the main thread may install handlers; elsewhere the process's owner decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


_savers: list[Callable[[], None]] = []
_asked: list[int] = []


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end a whole run as Ctrl-C does, but by `Stopped`: what is committed stays.

    Where trainings run elsewhere (`saving`) they are asked to save and are waited for.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if not _asked:
            _asked.append(number)
            if not _savers:
                raise KeyboardInterrupt  # the one exception of a signal that Ray's compiled code passes on
            _savers[-1]()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except KeyboardInterrupt:
        if _asked:
            raise Stopped("stopped on request; run the same command to go on") from None
        raise
    finally:
        _asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def saving(ask: Callable[[], None]) -> Iterator[None]:
    """While this lasts a signal calls `ask` (in the signal's handler) instead of interrupting.

    Whoever enters it sees to it that the work saves and ends within `WITHIN` seconds; a request that came too late for
    that is obeyed at the end.
    """
    _savers.append(ask)
    try:
        yield
    finally:
        _savers.remove(ask)
    if _asked:
        raise KeyboardInterrupt
