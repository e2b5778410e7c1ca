"""Sweeps: what a trial costs beside its own work, as the study grows: asked, started in a process of its own, reaped, told."""

import argparse
import tempfile
import time
from pathlib import Path

from cluster.session import Session
from cluster.sweep import drive
from tests.bench.common import show, timed
from tests.cluster_suite import toy_trials as toys


def main() -> None:
    """Print milliseconds a trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    arguments = parser.parse_args()
    n = arguments.trials
    with tempfile.TemporaryDirectory() as name, Session(cpus=2) as session:
        list(session.map(str, range(2)))  # workers are up before the clock starts
        rows = [("empty Ray tasks", timed(lambda: list(session.map(str, range(n))))[0] / n * 1e3)]
        for kind in ("random", "tpe"):
            sweep = toys.config(trials=n, sampler={"kind": kind, "seed": 0})
            times: list[float] = []
            x = toys.sweep_of(
                Path(name) / kind, sweep, {}, say=lambda text, times=times: times.append(time.perf_counter())
            )
            drive(x, session)
            tenth = n // 10
            for title, part in (("first", times[tenth : 2 * tenth]), ("last", times[-tenth:])):
                rows.append(
                    (f"{kind}, {title} tenth of {n} trials", (part[-1] - part[0]) / (len(part) - 1) * 1e3)
                )
        show("a trial that does nothing, two at once on 2 CPUs", "ms", rows, rows[0][0])


if __name__ == "__main__":
    main()
