"""A training whose machine is lost for good goes on with fewer workers, and grows again when it starts again with more room."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cluster_suite.chain import alone, write_recipe
from tests.cluster_suite.hosts import Hosts
from tests.faults import events, heard_steps
from tests.processes import run_ranks
from tests.submitting import gates, training, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, SLOTS = 12, 2  # of the teacher; it saves every 5


def kill_ranks(hosts: Hosts, name: str) -> None:
    """SIGKILL to a host's ranks alone: its Ray lives on."""
    killed = 0
    for pid in hosts.pids(name):
        with contextlib.suppress(OSError):  # it may just have ended
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                killed += 1
    assert killed


def test_two_workers_then_one_then_two(need_hosts, request, corpus, tmp_path):
    """The same samples in the same steps; losses of the undisturbed run within 1e-4, relative."""
    recipe, heard = write_recipe(tmp_path / "here", corpus), tmp_path / "heard"
    run_ranks(alone, 1, str(recipe), "features", timeout=900)
    with Hosts(gates(tmp_path, 8, 11) | {"SER_TEST_HEARD": str(heard)}) as hosts:
        hosts.start("h1", "h2")
        command = [sys.executable, "-m", "launch.cli", "run", str(recipe), "--until", "train"]
        command += [f"cluster.address={hosts.head}", f"cluster.token_file={hosts.token}", "cluster.wait=3"]
        command += ["models.teacher.train.workers_min=1"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        driver = hosts.run("h1", command, {"SER_TEST_GATE": ""}, **options)

        def stands(phase: int, name: str) -> None:
            there = tmp_path / f"go-{phase}.at-{name}"
            until(lambda: driver.poll() is not None or there.exists(), f"{name} trains to step {phase}")

        stands(8, "h2")
        hosts.kill("h2")
        (tmp_path / "go-8").touch()
        stands(11, "h1")
        hosts.start("h3")
        kill_ranks(hosts, "h1")
        (tmp_path / "go-11").touch()
        said, _ = driver.communicate(timeout=600)
        assert driver.returncode == 0, said
        assert "not all of its 2 workers find room; machines are waited for up to 3 s" in said
        assert "trains with 1 of 2 workers now" in said and "trains with 2 of 2 workers now" in said
    found, expected = (
        events(training(folder / "run", "teacher"))
        for folder in (recipe.parent, request.getfixturevalue("undisturbed"))
    )
    worlds = [(e["step"], e["before"], e["workers"]) for e in found if e["kind"] == "world"]
    assert worlds == [(5, 2, 1), (10, 1, 2)]
    steps = heard_steps(heard)  # those that a lost world had done are heard again, slot by slot
    assert {step: set(slots) for step, slots in steps.items()} == {n: set(range(SLOTS)) for n in range(STEPS)}
    curves = [[e["loss"] for e in log if e["kind"] == "train"] for log in (found, expected)]
    assert len(curves[0]) == STEPS
    np.testing.assert_allclose(*curves, rtol=1e-4)
