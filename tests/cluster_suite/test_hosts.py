"""Three hosts with a real Ray cluster: one command does a whole recipe while hosts die and others join, to the same bytes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ser.stopping import EXIT_CODE
from tests.cluster_suite.chain import alone, files, same_run, write_recipe
from tests.cluster_suite.hosts import Hosts, Loopback
from tests.conftest import ROOT
from tests.processes import run_ranks
from tests.submitting import GATE, saved, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# what a host is doing when it dies, is cut off or is given up; numbers are steps of the teacher, whose checkpoints come every 5
PHASES = ("pack", "3", "6", "7", "targets")


def shows_who_did_what(said: str, stage: str, *addresses: str) -> None:
    """A stage's pace and the time that was left, and a row of its table for each of these machines."""
    assert re.search(rf"{stage}: (\d+)/\1  \d+ s, 0 s left  [\d.]+ utt/s, \S+ h of audio/s", said), said
    table = said.partition(f"{stage}, by machine")[2]
    for address in addresses:
        units_utterances_hours = r"\W+[1-9]\d*\W+[1-9][\d,]*\W+\d+\.\d\d\W"
        assert re.search(re.escape(address) + units_utterances_hours, table), said


def test_one_command_ends_the_same_while_hosts_die_are_cut_off_or_given_up_and_others_join(
    need_hosts, request, corpus, tmp_path
):
    recipe = write_recipe(tmp_path / "here", corpus)
    go = {phase: tmp_path / f"go-{phase}" for phase in PHASES}
    held = ",".join(f"{phase}:{path}" for phase, path in go.items())
    gate = {"SER_TEST_GATE": held, "PYTHONPATH": f"{GATE}:{ROOT}"}
    with Hosts(gate) as hosts:
        hosts.start("h1", "h2", "h3")
        command = [sys.executable, "-m", "launch.cli", "run", str(recipe), f"cluster.address={hosts.head}"]
        command += [f"cluster.token_file={hosts.token}"]
        out, err = tmp_path / "out", tmp_path / "err"
        with out.open("w") as stdout, err.open("w") as stderr:
            driver = hosts.run("h1", command, {"SER_TEST_GATE": ""}, stdout=stdout, stderr=stderr)

        def held_on() -> list[str]:
            assert driver.poll() is None, out.read_text() + err.read_text()
            found = (p.name.rpartition("-")[2] for p in tmp_path.glob(f"go-{phase}.at-*"))
            return [name for name in found if name in hosts.live and name != "h1"]

        for number, phase in enumerate(PHASES, 4):
            (victim, *_) = until(held_on, f"{phase} begins on a host that is not the head's")
            match phase:
                case "3":
                    hosts.cut(victim)
                case "6":
                    hosts.give_up(victim)
                    until(Path(f"{go[phase]}.told-{victim}").exists, "its rank hears that it is to go")
                case _:
                    hosts.kill(victim)
            hosts.start(f"h{number}")
            go[phase].touch()
            if phase == "6":
                until(lambda: saved(recipe.parent / "run", 7, model="teacher"), "saved for the notice's sake")
        code = driver.wait(600)
        said = out.read_text() + err.read_text()
        assert code == 0, said
        assert f"Ray at {hosts.head}: 3 machines with 3 CPUs" in said
        assert len(hosts.token.read_text().strip()) == 64 and hosts.token.read_text().strip() not in said
        assert hosts.live["h1"].poll() is None, "a cluster that was joined lives on"
        assert said.count("given up by its cluster") == 1, said
        left = {p.name for p in recipe.parent.rglob(".*")} - {".recipe", ".results"}
        assert not left, left
    same_run(recipe.parent, request.getfixturevalue("undisturbed"))


def test_hosts_without_namespaces(corpus, tmp_path):
    """Where there is neither root nor iproute2: addresses of the loopback network, one host killed while it packs."""
    recipe, go = write_recipe(tmp_path / "here", corpus), tmp_path / "go-pack"
    with Loopback({"SER_TEST_GATE": f"pack:{go}", "PYTHONPATH": f"{GATE}:{ROOT}"}) as hosts:
        hosts.start("h1", "h2")
        assert hosts.head.startswith("127.") and hosts.head.startswith(f"{hosts.address('h1')}:")
        command = [sys.executable, "-m", "launch.cli", "run", str(recipe), f"cluster.address={hosts.head}"]
        command += [f"cluster.token_file={hosts.token}", "--until", "pack"]
        driver = hosts.run("h1", command, {"SER_TEST_GATE": ""}, stdout=subprocess.PIPE, text=True)
        until((tmp_path / "go-pack.at-h2").exists, "the second host packs")
        hosts.kill("h2")
        hosts.start("h3")
        for name in ("h1", "h3"):  # so both do something
            until((tmp_path / f"go-pack.at-{name}").exists, f"{name} packs")
        go.touch()
        said, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0 and "2 machines with 2 CPUs" in said, said
        shows_who_did_what(said, "pack", hosts.address("h1"), hosts.address("h3"))
        assert hosts.live["h1"].poll() is None
    here = recipe.parent / "here"
    run_ranks(alone, 1, str(write_recipe(here, corpus)), "pack", timeout=300)
    assert files(recipe.parent / "dataset") == files(here / "dataset")


def test_a_host_without_the_shared_folder_is_named_and_nothing_is_written_there(need_hosts, corpus, tmp_path):
    """One host sees a disk of its own where the run lies, as where a mount was forgotten."""
    recipe, go = write_recipe(tmp_path / "here", corpus), tmp_path / "go"
    # the other host waits before its first shard, so that this one gets work
    with Hosts({"SER_TEST_GATE": f"pack:{go}", "PYTHONPATH": f"{GATE}:{ROOT}"}) as hosts:
        hosts.start("h1")
        hosts.start("h2", without=recipe.parent)
        command = [sys.executable, "-m", "launch.cli", "run", str(recipe), f"cluster.address={hosts.head}"]
        command += [f"cluster.token_file={hosts.token}", "--until", "pack"]
        free = {"SER_TEST_GATE": ""}
        done = hosts.run("h1", command, free, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = done.communicate(timeout=300)
        assert done.returncode == 2, out + err
        assert (
            "does not share this folder" in err
            and f"{hosts.address('h2')}: {recipe.parent / 'dataset'}" in err
        )
        assert not list(recipe.parent.rglob(".driver*")), "the mark is gone"
        hosts.kill("h2")
        go.touch()
        again = hosts.run("h1", command, free, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        out, _ = again.communicate(timeout=300)
        assert again.returncode == 0, out
        assert {p.name for p in recipe.parent.rglob(".*")} == {".recipe"}, (
            "nor is what the ended tasks were writing"
        )


def test_workers_whose_machine_is_lost_or_shares_nothing_are_refused_and_not_started_for_ever(
    need_hosts, corpus, tmp_path
):
    """Two workers: the machine of one dies and none comes; then one comes that sees a disk of its own."""
    recipe, go = write_recipe(tmp_path / "here", corpus), tmp_path / "go"
    run_ranks(alone, 1, str(recipe), "features", timeout=900)
    with Hosts({"SER_TEST_GATE": f"3:{go}", "PYTHONPATH": f"{GATE}:{ROOT}"}) as hosts:
        hosts.start("h1", "h2")
        command = [sys.executable, "-m", "launch.cli", "run", str(recipe), f"cluster.address={hosts.head}"]
        command += [f"cluster.token_file={hosts.token}", "cluster.wait=3", "--until", "train"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        driver = hosts.run("h1", command, {"SER_TEST_GATE": ""}, **options)
        until(lambda: driver.poll() is not None or (tmp_path / "go.at-h2").exists(), "the second host trains")
        hosts.kill("h2")
        go.touch()
        said, _ = driver.communicate(timeout=300)
        assert driver.returncode == EXIT_CODE, said  # no mistake: in a queue it is started again
        assert "2 workers ask for 1 CPUs" in said and "waiting up to 3 s for machines" in said
        assert "this cluster has 1 CPUs" in said and hosts.live["h1"].poll() is None
        hosts.start("h3", without=recipe.parent)
        driver = hosts.run("h1", command, {"SER_TEST_GATE": ""}, **options)
        said, _ = driver.communicate(timeout=300)
        assert driver.returncode == 2, said
        assert "does not share this folder" in said and hosts.address("h3") in said
