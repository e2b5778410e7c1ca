"""`ser ARGUMENTS` that kills itself: python -m tests.launch.driver FAULT ARGUMENTS...

FAULT is "none", "bar:TITLE" (at the first progress of a stage whose title holds it), "before:MODULE:NAME" or "after:MODULE:NAME" (of the
first call of a function, in the process of the command).
"""

import os
import signal
import sys

from launch import cli
from tests.faults import Kill, arm, patch


def kill_at_bar(title: str) -> None:
    """SIGKILL when the bar of such a stage first moves."""

    def make(original):
        def update(self, done, total, pace=""):
            original(self, done, total, pace)
            if title in self.title and done > 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return update

    patch("launch.display:Bar.update", make)


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if fault.startswith("bar:"):
        kill_at_bar(fault.removeprefix("bar:"))
    elif fault != "none":
        when, _, where = fault.partition(":")
        arm(Kill(where, when=when))
    cli.main()
