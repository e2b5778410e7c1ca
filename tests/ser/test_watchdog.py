"""A step that hangs is written down where it hangs; a healthy training leaves nothing."""

import time
from pathlib import Path

from ser import watchdog
from ser.watchdog import STEPS_TO_KNOW, Watchdog


def steps(dog: Watchdog, count: int) -> None:
    for _ in range(count):
        with dog:
            pass


def a_collective_that_hangs(seconds: float) -> None:
    time.sleep(seconds)


def test_a_hanging_step_dumps_its_stack_and_goes_on(tmp_path: Path):
    path = tmp_path / "stacks-0.txt"
    dog = Watchdog(path, least_seconds=0.2)
    steps(dog, STEPS_TO_KNOW)
    assert not path.exists(), "nothing is armed before the median is known"
    with dog:
        a_collective_that_hangs(0.6)
    dog.close()
    assert "a_collective_that_hangs" in path.read_text()


def test_healthy_steps_and_long_pauses_leave_nothing(tmp_path: Path):
    path = tmp_path / "stacks-0.txt"
    dog = Watchdog(path, least_seconds=0.3)
    steps(dog, STEPS_TO_KNOW + 3)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # longer than the limit, in steps that are not
        with dog:
            time.sleep(0.01)
    dog.rest()
    time.sleep(0.6)  # an evaluation
    steps(dog, 3)
    dog.close()
    assert not path.exists()


def test_a_step_may_take_ten_times_the_median(tmp_path: Path, monkeypatch):
    limits: list[float] = []
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda s, file: limits.append(s))
    dog = Watchdog(tmp_path / "s.txt")
    dog.durations.extend([6.0] * STEPS_TO_KNOW)
    steps(dog, 1)
    dog.durations.clear()
    dog.durations.extend([0.01] * STEPS_TO_KNOW)
    dog.rest()
    steps(dog, 1)
    dog.close()
    assert limits == [1.25 * 60.0, 1.25 * 30.0], "ten times the median, and never under half a minute"
