"""Signals and files that ask a training to save and stop; whole runs are stopped in the cluster suite."""

import os
import signal

import pytest

from ser.stopping import StopFlag, Stopped, saving, stopped_by_signals
from tests.submitting import until


def test_a_signal_asks_who_saves_and_interrupts_who_does_not():
    asked = []
    with pytest.raises(Stopped), stopped_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")
    with pytest.raises(Stopped), stopped_by_signals():
        with saving(lambda: asked.append(1)):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert asked == [1]
        raise AssertionError("a request that came too late to be saved is obeyed at the end")
    with pytest.raises(Stopped, match="at step 3"), stopped_by_signals(), saving(lambda: None):
        os.kill(os.getpid(), signal.SIGUSR1)
        raise Stopped("stopped at step 3 of 9; run the same command to go on")
    with stopped_by_signals(), saving(lambda: asked.append(2)):
        pass
    assert asked == [1], "an earlier request is forgotten"


def test_a_file_asks_too(tmp_path):
    flag = StopFlag(tmp_path / "stop")
    assert not flag.requested
    (tmp_path / "stop").touch()
    until(lambda: flag.requested, "it is seen", 20)
    (tmp_path / "stop").unlink()
    assert flag.requested
