"""On PYTHONPATH: SER_TEST_GATE="PHASE:FILE,..." holds work at a phase until the file is there or it is told to stop.

A phase is a number (before that step of a training), "pack" (before a shard) or "targets" (before a unit of targets). Whoever waits
leaves FILE.at-HOST, HOST being $SER_TEST_HOST; who was told to stop there, FILE.told-HOST. What the steps of trainings hear goes to
$SER_TEST_HEARD.RANK, where that is set. So a test disturbs a run at one moment, on however busy a machine, in whatever
process Slurm or Ray runs it.
"""

import importlib.abc
import importlib.util
import os
import sys
import time

PLACES = {"ser.step": "train_step", "shards.pack": "write_shard", "ser.produce": "compute"}
PHASES = {"shards.pack": "pack", "ser.produce": "targets"}


def _hold(phase, stop):
    gates = dict(gate.split(":", 1) for gate in os.environ["SER_TEST_GATE"].split(","))
    while phase in gates and not os.path.exists(gates[phase]):
        if getattr(stop, "requested", False):
            open(f"{gates[phase]}.told-{os.environ.get('SER_TEST_HOST', '')}", "w").close()
            return
        open(f"{gates[phase]}.at-{os.environ.get('SER_TEST_HOST', '')}", "w").close()
        time.sleep(0.05)


class _Gate(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in PLACES or name in self.seen:
            return None
        self.seen.add(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            original = getattr(module, PLACES[name])

            def held(*args):
                # the flag of ser.train.fit, which calls train_step(x, engine, step, ...)
                _hold(PHASES.get(name) or str(args[2]), sys._getframe(1).f_locals.get("stop"))
                if name == "ser.step" and (path := os.environ.get("SER_TEST_HEARD")):
                    from tests.faults import note_heard

                    note_heard(path, *args[1:4])
                return original(*args)

            held.__module__, held.__qualname__ = original.__module__, original.__qualname__
            setattr(module, PLACES[name], held)

        spec.loader.exec_module = exec_module
        return spec

    seen: set[str] = set()


if os.environ.get("SER_TEST_GATE"):
    sys.meta_path.insert(0, _Gate())
