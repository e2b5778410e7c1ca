"""On PYTHONPATH: SER_TEST_GATE="STEP:FILE,..." holds a training before a step until the file is there or it is told to stop.

So that a test disturbs a training at one moment, on however busy a machine, in whatever process Slurm or Ray runs it.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys
import time


def _hold(step: int) -> None:
    gates = dict(gate.split(":", 1) for gate in os.environ["SER_TEST_GATE"].split(","))
    while str(step) in gates and not os.path.exists(gates[str(step)]):
        asked = getattr(signal.getsignal(signal.SIGUSR1), "__self__", None)  # ser.stopping.StopFlag
        if getattr(asked, "requested", False):
            return
        time.sleep(0.05)


class _Gate(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "ser.step":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            original = module.train_step

            def train_step(x, engine, step, *rest):
                _hold(step)
                return original(x, engine, step, *rest)

            module.train_step = train_step

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("SER_TEST_GATE"):
    sys.meta_path.insert(0, _Gate())
