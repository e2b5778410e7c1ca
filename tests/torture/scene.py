"""Where a fault takes place: folder, dataset, environment, and what must be there for the disk to fill, the clock to jump,
the object store to die, a machine to lose its network or Slurm to lose a machine.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster_suite.hosts import Hosts, missing
from tests.cluster_suite.slurm import Slurm
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left
from tests.object_store import KEYS, Cloud
from tests.torture import on_slurm
from tests.torture.jobs import Found
from tests.torture.table import Fault

HOOK = Path(__file__).parent / "hook"
NO_PROCESS = ("disk", "clock", "network")  # victims
DISK_MB = 48
OUTAGE = 5.0  # seconds
JUMPS = ("+5400", "-5400")  # seconds; monotonic clocks do not jump, as on a real machine
FAKETIME = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")

# With real monotonic clocks libfaketime 0.9.10 answers EINVAL to Python's sleep, so that goes to the kernel.
SLEEP = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left)
{ return syscall(SYS_clock_nanosleep, clock, flags, until, left) ? errno : 0; }
"""


@dataclass
class Scene:
    """What the commands of a round are given.

    Attributes:
        folder: The job's.
        control: Counters, flag and TMPDIR, beside the folder that may be a full disk.
        dataset: Folder or URL.
        mark: In the environment of every process of the job.
        told: For the hook in every process of the job (`hook/sitecustomize.py`).
        environment: Beside the hook's.
        server: The object store.
        hosts: Machines of a cluster, the first of which runs the commands.
        slurm: To which the commands are submitted.
    """

    folder: Path
    control: Path
    dataset: str
    mark: str
    told: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    server: "S3 | None" = None
    hosts: Hosts | None = None
    slurm: Slurm | None = None

    def ser(self, verb: str, recipe: Path, patience: float) -> subprocess.CompletedProcess:
        """`ser VERB RECIPE` here, with a fault to come."""
        given = environment(self.told, self.control, self.mark) | self.environment
        if self.slurm is not None:
            site = on_slurm.profile(self.control, given)
            must(ser("submit", recipe, self.slurm.env, patience, "--profile", str(site), "--until", verb))
            return on_slurm.to_its_end(self.slurm, self.folder / "run", self.hit, patience)
        if self.hosts is None:
            return ser(verb, recipe, given, patience)
        joined = [f"cluster.address={self.hosts.head}", f"cluster.token_file={self.hosts.token}"]
        return ser(verb, recipe, given, patience, *joined, at=self.hosts.enter("h1"))

    def hit(self) -> dict[str, Any] | None:
        """What the hook wrote down when it struck; None where the moment, or the victim, did not come."""
        flag = Path(self.told["flag"])
        words = flag.read_text() if flag.is_file() else ""
        found = json.loads(words) if words else None
        return found if found and (found["pid"] or self.told["victim"] in NO_PROCESS) else None

    def mend(self) -> None:
        """What an operator does before the command is typed again; nothing for most faults."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def wait_for_the_end(self, but: str = "nothing") -> None:
        """No process of the job lives on; a joined cluster's are its own."""
        if self.hosts is None:
            nothing_left(self.mark, 120, but=but)


class Missing(Exception):
    """This machine cannot do it."""


@contextlib.contextmanager
def set_scene(fault: Fault, at: int, folder: Path, control: Path, mark: str) -> Iterator[Scene]:
    """Set it, and clear it away.

    Args:
        fault: What is to happen.
        at: Moment of its phase, from 1.
        folder: The job's, made anew.
        control: Beside it.
        mark: What every process of the job carries in its environment.

    Raises:
        Missing: Where it cannot be set.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = {
        "work": str(folder), "counts": str(control / "counts"), "flag": str(control / "flag"), "victim": fault.victim,
        "phase": fault.phase, "at": at,
    }  # fmt: skip
    scene = Scene(folder, control, str(folder / "dataset"), mark, told)
    if fault.victim == "disk":
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs"]
        mounted = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if mounted.returncode != 0:
            raise Missing(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
        scene.told["full"] = str(folder / "ballast")
        try:
            yield scene
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
    elif fault.victim == "clock":
        library = next((path for path in FAKETIME if Path(path).is_file()), None)
        if library is None:
            raise Missing("libfaketime is not installed (apt-get install libfaketime)")
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
        if compiler is None:
            raise Missing("no C compiler for the sleep that libfaketime breaks")
        sleep, source, clock = control / "sleep.so", control / "sleep.c", control / "clock"
        source.write_text(SLEEP)
        subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", sleep, source], check=True)
        clock.write_text("+0\n")
        scene.told |= {"clock": str(clock), "jump": JUMPS[fault.number % 2] + "\n"}
        scene.environment = {
            "LD_PRELOAD": f"{sleep}:{library}", "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip
        yield scene
    elif fault.victim == "s3":
        if importlib.util.find_spec("moto") is None:
            raise Missing("moto is not installed")
        scene.server = server = S3()
        try:
            scene.dataset, scene.told["s3"] = f"{server.cloud.bucket}/dataset", server.pid
            scene.environment = server.environment | {"SER_CACHE": str(control / "cache")}
            yield scene
        finally:
            server.close()
    elif fault.victim == "network":
        if absent := missing():
            raise Missing(absent)
        names = ("h1", "h2", "h3")
        with Hosts() as scene.hosts:
            told["cut"] = {name: scene.hosts.cutting(name) for name in names[1:]}
            scene.hosts.env |= environment(told, control, mark)
            scene.hosts.start(*names)
            yield scene
    elif fault.victim == "slurm-node":
        if absent := on_slurm.absent():
            raise Missing(absent)
        with on_slurm.two_machines() as scene.slurm:
            yield scene
    else:
        yield scene


class S3:
    """A real S3 server behind a proxy. Killed, it is back some seconds later with what it held."""

    def __init__(self) -> None:
        self.cloud, self.over = Cloud(), threading.Event()
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": self.cloud.proxy.url}
        self._fs().mkdir(self.cloud.bucket)
        self.pid = self.cloud.server.process.pid if self.cloud.server.process else 0
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            if self.cloud.server.process is not None and self.cloud.server.process.poll() is not None:
                self.cloud.outage(OUTAGE)

    def close(self) -> None:
        """For good."""
        self.over.set()
        self.watcher.join()
        self.cloud.proxy.down()
        self.cloud.server.kill()

    def files(self) -> Found:
        """Name -> bytes of the dataset's objects."""
        fs, root = self._fs(), f"{self.cloud.bucket.removeprefix('s3://')}/dataset/"
        return {name.removeprefix(root): fs.cat_file(name) for name in sorted(fs.find(root))}

    def _fs(self) -> Any:
        import s3fs

        keys = {"key": KEYS["AWS_ACCESS_KEY_ID"], "secret": KEYS["AWS_SECRET_ACCESS_KEY"]}
        return s3fs.S3FileSystem(
            **keys, endpoint_url=self.cloud.proxy.url, skip_instance_cache=True, use_listings_cache=False
        )


def control(folder: Path) -> Path:
    """Counters, flag and TMPDIR of a job, beside the folder that may be a full disk."""
    here = folder / "control" if folder.name.endswith("-whole") else folder
    shutil.rmtree(here, ignore_errors=True)
    for name in ("counts", "tmp"):
        (here / name).mkdir(parents=True)
    return here


def environment(told: dict[str, Any], control: Path, mark: str) -> dict[str, str]:
    """By which every process of a job has the hook, the mark and its TMPDIR."""
    return {
        "SER_TORTURE": json.dumps(told), "SER_TEST_MARK": mark, "TMPDIR": str(control / "tmp"),
        "PYTHONPATH": f"{HOOK}:{ROOT}",
    }  # fmt: skip


def ser(
    verb: str, recipe: Path, given: dict[str, str], patience: float, *overrides: str, at: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """`ser VERB RECIPE` to its end, on another host by the command `at`; one that passes `patience` seconds is killed."""
    process = subprocess.Popen(
        [*at, sys.executable, "-m", "launch.cli", verb, str(recipe), *overrides], cwd=ROOT, env=os.environ | given,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{verb} did not end in {patience:.0f} s: {(out + err)[-1500:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def must(done: subprocess.CompletedProcess) -> None:
    """It did."""
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout[-800:]}{done.stderr[-1500:]}"
