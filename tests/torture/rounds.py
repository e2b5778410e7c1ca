"""One fault in one job: made ready, struck, started again where it ended, and compared with what the undisturbed job gave.

Nothing outside the job is touched: victims are processes that carry the job's own mark, the disk that fills is a small tmpfs
mounted on the job's folder, and the clock that jumps is libfaketime's, in the job's processes alone.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import own
from tests import tiny
from tests.conftest import ROOT
from tests.launch.test_run import nothing_left
from tests.processes import free_port
from tests.torture.jobs import (
    JOBS,
    Found,
    Job,
    copy_ready,
    leavings,
    local_files,
    results,
    write_recipe,
)
from tests.torture.table import AGAIN, BY_ITSELF, IN_WORDS, NOT_MET, SKIPPED, Fault, Record

HOOK = Path(__file__).parent / "hook"
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


@dataclass(frozen=True)
class Whole:
    """An undisturbed job.

    Attributes:
        ready: Folder with what comes before it.
        found: What it gave.
        counts: Phase -> moments.
    """

    ready: Path
    found: Found
    counts: dict[str, int]


def whole(job: Job, work: Path, patience: float) -> Whole:
    """Run a job undisturbed, or take what an earlier call has kept."""
    corpus, ready, folder = work / "corpus", work / f"{job.name}-ready", work / f"{job.name}-whole"
    if not (corpus / "manifest.jsonl").is_file():
        tiny.write_corpus(corpus)
    if not (folder / "counts.json").is_file():
        for path in (ready, folder):
            shutil.rmtree(path, ignore_errors=True)
        recipe = write_recipe(job.name, ready, corpus, str(ready / "dataset"))
        if job.ready:
            _must(_ser(job.ready, recipe, {}, patience))
        copy_ready(ready, folder)
        recipe = write_recipe(job.name, folder, corpus, str(folder / "dataset"))
        control = _control(folder)
        told = {"work": str(folder), "counts": str(control / "counts")}
        _must(_ser(job.verb, recipe, _environment(told, control, "mark-whole"), patience))
        counts = {path.name: path.stat().st_size for path in (control / "counts").iterdir()}
        (folder / "counts.json").write_text(json.dumps(counts))
    found = results(job.name, folder, lambda: local_files(folder / "dataset"))
    return Whole(ready, found, json.loads((folder / "counts.json").read_text()))


def play(fault: Fault, reference: Whole, work: Path, patience: float) -> Record:
    """Strike once, go on, and judge."""
    began, job = time.monotonic(), JOBS[fault.job]
    name = f"{fault.job}-{fault.seed}-{fault.number}"
    folder, control = work / name, _control(work / f"{name}-control")
    mark = f"mark-{name}-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        try:
            scene = stack.enter_context(_scene(fault, folder, control, mark))
        except _Missing as missing:
            return Record(fault, SKIPPED, str(missing))
        try:
            outcome, detail = _play(fault, job, reference, scene, work / "corpus", mark, patience)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            outcome, detail = "FAILED", str(error)[-2000:]
        finally:
            _end(mark)
    if outcome in (BY_ITSELF, AGAIN, IN_WORDS, NOT_MET):
        for path in (folder, control):
            shutil.rmtree(path, ignore_errors=True)
    elif outcome == "FAILED":
        outcome = f"FAILED: {detail.strip().splitlines()[-1][:300] if detail.strip() else 'no word'}"
    return Record(fault, outcome, detail, round(time.monotonic() - began, 1))


@dataclass
class _Scene:
    """Where a fault takes place: the job's folder, its control folder, dataset's URL, environment, and who mends it."""

    folder: Path
    control: Path
    dataset: str
    told: dict[str, Any]
    environment: dict[str, str]
    server: "_S3 | None" = None


def _play(
    fault: Fault, job: Job, reference: Whole, scene: _Scene, corpus: Path, mark: str, patience: float
) -> tuple[str, str]:
    folder, flag = scene.folder, Path(scene.told["flag"])
    if scene.server is None:
        copy_ready(reference.ready, folder)
    recipe = write_recipe(job.name, folder, corpus, scene.dataset)
    total = reference.counts.get(fault.phase, 0)
    told = scene.told | {"phase": fault.phase, "at": 1 + int(fault.share * total)}
    environment = _environment(told, scene.control, mark) | scene.environment
    done = _ser(job.verb, recipe, environment, patience)
    hit = json.loads(flag.read_text()) if flag.is_file() else {}
    if not hit or (hit["pid"] is None and fault.victim not in ("disk", "clock")):
        _must(done)
        return NOT_MET, f"moment {told['at']} of {total}"
    (folder / "ballast").unlink(missing_ok=True)
    if scene.server is not None and scene.server.process.poll() is not None:
        scene.server.start()
    outcome, said = BY_ITSELF, done.stdout + done.stderr
    if done.returncode != 0:
        nothing_left(mark, 120, but="Agent" if scene.server is None else "moto")
        outcome = AGAIN if fault.victim != "disk" else IN_WORDS
        if fault.victim == "disk":
            assert done.returncode == 2 and "Traceback" not in done.stderr, f"no clear words: {said}"
        _must(_ser(job.verb, recipe, environment, patience))
    nothing_left(mark, 120, but="moto" if scene.server is not None else "nothing")
    found = results(
        job.name, folder, scene.server.files if scene.server else lambda: local_files(folder / "dataset")
    )
    # beside an object store the memory map of the plan lies in the cache
    wanted = {n: v for n, v in reference.found.items() if scene.server is None or n != "plan.arrow"}
    assert set(found) == set(wanted), f"other names: {set(found) ^ set(wanted)}"
    other = [name for name, value in wanted.items() if found[name] != value]
    assert not other, f"differ: {other}"
    left = leavings(folder) + [f"TMPDIR/{name}" for name in leavings(scene.control / "tmp")]
    assert not left, f"temporary files: {left}"
    # as every session does that starts; a command that found all done had no need of one
    own.sweep(own.BELOW)
    assert not hit["ray"] or not Path(hit["ray"]).exists(), f"left: {hit['ray']}"
    return outcome, f"moment {told['at']} of {total}"


# -- the scene -------------------------------------------------------------------------------------------------------


class _Missing(Exception):
    """This machine cannot do it."""


@contextlib.contextmanager
def _scene(fault: Fault, folder: Path, control: Path, mark: str) -> Iterator[_Scene]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = {
        "work": str(folder), "counts": str(control / "counts"), "flag": str(control / "flag"), "victim": fault.victim,
    }  # fmt: skip
    scene = _Scene(folder, control, str(folder / "dataset"), told, {})
    if fault.victim == "disk":
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs"]
        mounted = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if mounted.returncode != 0:
            raise _Missing(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
        scene.told["full"] = str(folder / "ballast")
        try:
            yield scene
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
    elif fault.victim == "clock":
        library = next((path for path in FAKETIME if Path(path).is_file()), None)
        if library is None:
            raise _Missing("libfaketime is not installed (apt-get install libfaketime)")
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
        if compiler is None:
            raise _Missing("no C compiler for the sleep that libfaketime breaks")
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
            raise _Missing("moto is not installed")
        server = _S3(mark, control)
        scene.server, scene.dataset = server, f"s3://{BUCKET}/dataset"
        try:
            server.start()
            scene.told["s3"] = server.process.pid
            scene.environment = server.names | {"SER_CACHE": str(control / "cache")}
            yield scene
        finally:
            server.process.kill()
            server.process.wait()
    else:
        yield scene


class _S3:
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


# -- processes -------------------------------------------------------------------------------------------------------


def _control(folder: Path) -> Path:
    """Counters, flag and TMPDIR of a job, beside the folder that may be a full disk."""
    control = folder / "control" if folder.name.endswith("-whole") else folder
    shutil.rmtree(control, ignore_errors=True)
    for name in ("counts", "tmp"):
        (control / name).mkdir(parents=True)
    return control


def _environment(told: dict[str, Any], control: Path, mark: str) -> dict[str, str]:
    return {
        "SER_TORTURE": json.dumps(told), "SER_TEST_MARK": mark, "TMPDIR": str(control / "tmp"),
        "PYTHONPATH": f"{HOOK}:{ROOT}",
    }  # fmt: skip


def _ser(
    verb: str, recipe: Path, environment: dict[str, str], patience: float
) -> subprocess.CompletedProcess:
    """`ser VERB RECIPE` to its end; one that passes `patience` seconds is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", verb, str(recipe)], cwd=ROOT, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{verb} did not end in {patience:.0f} s: {(out + err)[-1500:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _must(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout[-800:]}{done.stderr[-1500:]}"


def _end(mark: str) -> None:
    """Kill what a failed round has left; every one of these processes carries its mark."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(entry.name) != os.getpid() and mark.encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
