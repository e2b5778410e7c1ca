"""Work on several machines: those that join get some, and what a lost one did is done again; with GPUs workers stay."""

import os
from pathlib import Path
from threading import Thread

import pytest

from cluster.place import own_address
from cluster.session import Session
from tests.cluster_suite.hosts import Loopback
from tests.conftest import ROOT
from tests.submitting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def held(item):
    """A unit that says where it is done, and waits for `go`, or one of its own."""
    folder, number = item
    Path(folder, f"{own_address()} {number} {os.getpid()}").touch()
    until(lambda: any(Path(folder, go).exists() for go in ("go", f"go-{number}")), "go", 300)
    return number


def test_machines_that_join_get_workers_and_what_a_lost_one_did_is_done_again(tmp_path):
    def begun(address: str) -> list[list[str]]:
        return [path.name.split()[1:] for path in tmp_path.glob(f"{address} *")]

    found: list[tuple[int, int]] = []
    with Loopback() as hosts:
        hosts.start("h1", gpus=1)
        with Session(hosts.head, token_file=str(hosts.token), env={"PYTHONPATH": str(ROOT)}) as session:
            results = session.map(held, [(str(tmp_path), number) for number in range(6)], num_gpus=1)
            thread = Thread(target=lambda: found.extend(results), daemon=True)
            thread.start()
            until(lambda: begun(hosts.address("h1")), "a unit begins")
            hosts.start("h2", gpus=1)
            ((lost, _),) = until(lambda: begun(hosts.address("h2")), "the second host gets one")
            hosts.kill("h2")
            (tmp_path / "go").touch()
            thread.join(300)
            assert sorted(found) == [(number, number) for number in range(6)]
            done = begun(hosts.address("h1"))
            assert {number for number, _ in done} == set("012345") and lost in "012345"
            assert len({pid for number, pid in done if number != lost}) == 1, "one worker did them all"


def test_units_without_gpus_follow_the_machines_that_come_and_go(tmp_path):
    """At most two CPUs at once, of however many machines: one unit is handed out, then two, then one at a time."""
    import ray

    drawn: list[int] = []

    def units():
        for number in range(4):
            drawn.append(number)
            yield str(tmp_path), number

    def begun(name: str, number: int) -> list[Path]:
        return list(tmp_path.glob(f"{hosts.address(name)} {number} *"))

    found: list[tuple[int, int]] = []
    with Loopback() as hosts:
        hosts.start("h1")
        env = {"PYTHONPATH": str(ROOT)}
        with Session(hosts.head, cpus=2, token_file=str(hosts.token), env=env) as session:
            results = session.map(held, units())
            thread = Thread(target=lambda: found.extend(results), daemon=True)
            thread.start()
            until(lambda: begun("h1", 0), "a unit begins")
            hosts.start("h2")
            until(lambda: begun("h2", 1), "the second host gets one")
            hosts.kill("h2")
            until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, "it is known to be gone")
            (tmp_path / "go-0").touch()
            until(lambda: begun("h1", 1), "what was lost is done again")
            assert drawn == [0, 1], "nothing is handed out that would stand in line"
            (tmp_path / "go").touch()
            thread.join(300)
            assert sorted(found) == [(number, number) for number in range(4)]
