"""Where a fault takes place: folder, dataset, environment, and what must be there for the disk to fill, the clock to jump,
the object store to die or a machine to lose its network.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster_suite.hosts import Hosts, missing
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left
from tests.processes import free_port
from tests.torture.jobs import Found
from tests.torture.table import Fault

HOOK = Path(__file__).parent / "hook"
NO_PROCESS = ("disk", "clock", "network")  # victims
DISK_MB = 48
BUCKET = "torture"
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
    """

    folder: Path
    control: Path
    dataset: str
    mark: str
    told: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    server: "S3 | None" = None
    hosts: Hosts | None = None

    def ser(self, verb: str, recipe: Path, patience: float) -> subprocess.CompletedProcess:
        """`ser VERB RECIPE` here, with a fault to come."""
        given = environment(self.told, self.control, self.mark) | self.environment
        if self.hosts is None:
            return ser(verb, recipe, given, patience)
        joined = [f"cluster.address={self.hosts.head}", f"cluster.token_file={self.hosts.token}"]
        return ser(verb, recipe, given, patience, *joined, at=self.hosts.enter("h1"))

    def hit(self) -> dict[str, Any] | None:
        """What the hook wrote down when it struck; None where the moment, or the victim, did not come."""
        flag = Path(self.told["flag"])
        found = json.loads(flag.read_text()) if flag.is_file() else None
        return found if found and (found["pid"] or self.told["victim"] in NO_PROCESS) else None

    def mend(self) -> None:
        """What an operator does before the command is typed again; nothing for most faults."""
        (self.folder / "ballast").unlink(missing_ok=True)
        if self.server is not None and self.server.process.poll() is not None:
            self.server.start()

    def wait_for_the_end(self, but: str = "nothing") -> None:
        """No process of the job lives on; a joined cluster's are its own."""
        if self.hosts is None:
            nothing_left(self.mark, 120, but="moto" if self.server is not None else but)


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
        server = S3(mark, control)
        scene.server, scene.dataset = server, f"s3://{BUCKET}/dataset"
        try:
            server.start()
            scene.told["s3"] = server.process.pid
            scene.environment = server.names | {"SER_CACHE": str(control / "cache")}
            yield scene
        finally:
            server.process.kill()
            server.process.wait()
    elif fault.victim == "network":
        if absent := missing():
            raise Missing(absent)
        names = ("h1", "h2", "h3")
        with Hosts() as scene.hosts:
            told["cut"] = {name: scene.hosts.cutting(name) for name in names[1:]}
            scene.hosts.env |= environment(told, control, mark)
            scene.hosts.start(*names)
            yield scene
    else:
        yield scene


class S3:
    """A moto server in a process of its own; killed, it forgets all that it held, and the next one starts empty."""

    def __init__(self, mark: str, control: Path):
        self.port, self.mark, self.log = free_port(), mark, control / "s3.log"
        self.names = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip

    def start(self) -> None:
        code = "from moto.server import main; main()"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(self.port)], stdout=log, stderr=log,
                env=os.environ | {"SER_TEST_MARK": self.mark},
            )  # fmt: skip
        end = time.monotonic() + 120
        while True:
            try:
                self._fs().mkdir(BUCKET)
                return
            except Exception:
                assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()[-500:]
                time.sleep(0.3)

    def files(self) -> Found:
        """Name -> bytes of the dataset's objects."""
        fs, root = self._fs(), f"{BUCKET}/dataset/"
        return {name.removeprefix(root): fs.cat_file(name) for name in sorted(fs.find(root))}

    def _fs(self) -> Any:
        import s3fs

        keys = {"key": "test", "secret": "test", "endpoint_url": self.names["AWS_ENDPOINT_URL"]}
        return s3fs.S3FileSystem(**keys, skip_instance_cache=True, use_listings_cache=False)


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
