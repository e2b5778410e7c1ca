"""Stop at a step boundary when asked: Ctrl-C, SIGTERM or SIGUSR1 set a flag that all ranks agree on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: stopped on request with a checkpoint, run again to go on


class Stopped(Exception):
    """The training stopped on request after saving; run the same command to go on."""


class StopFlag:
    """Context that turns signals into `requested`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> "StopFlag":
        # Only the main thread may install handlers; elsewhere the process's owner decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end a whole run as Ctrl-C does, but by `Stopped`: what is committed stays.

    Ray puts its own handler for SIGTERM in place of this one when it starts; SIGUSR1 stays ours.
    """
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not asked:
            asked.append(number)
            raise KeyboardInterrupt  # the one exception of a signal that Ray's compiled code passes on

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except KeyboardInterrupt:
        if asked:
            raise Stopped("stopped on request; run the same command to go on") from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
