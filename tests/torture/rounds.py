"""One fault in one job: made ready, struck, started again where it ended, and compared with what the undisturbed job gave.

Nothing outside the job is touched: victims are processes that carry the job's own mark, the disk that fills is a small tmpfs
mounted on the job's folder, the clock that jumps is libfaketime's, in the job's processes alone, and the network that is cut
is one of namespaces made for it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cluster import own
from tests import tiny
from tests.torture.jobs import JOBS, Found, Job, copy_ready, leavings, local_files, results, write_recipe
from tests.torture.scene import Missing, Scene, control, environment, must, ser, set_scene
from tests.torture.table import AGAIN, BY_ITSELF, GOOD, IN_WORDS, NOT_MET, SKIPPED, Fault, Record


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
            must(ser(job.ready, recipe, {}, patience))
        copy_ready(ready, folder)
        recipe = write_recipe(job.name, folder, corpus, str(folder / "dataset"))
        beside = control(folder)
        told = {"work": str(folder), "counts": str(beside / "counts")}
        must(ser(job.verb, recipe, environment(told, beside, "mark-whole"), patience))
        counts = {path.name: path.stat().st_size for path in (beside / "counts").iterdir()}
        (folder / "counts.json").write_text(json.dumps(counts))
    found = results(job.name, folder, lambda: local_files(folder / "dataset"))
    return Whole(ready, found, json.loads((folder / "counts.json").read_text()))


def play(fault: Fault, reference: Whole, work: Path, patience: float) -> Record:
    """Strike once, go on, and judge."""
    began, name = time.monotonic(), f"{fault.job}-{fault.seed}-{fault.number}"
    folder, beside = work / name, control(work / f"{name}-control")
    mark, total = f"mark-{name}-{os.getpid()}", reference.counts.get(fault.phase, 0)
    at = 1 + int(fault.share * total)
    detail = f"moment {at} of {total}"
    with contextlib.ExitStack() as stack:
        try:
            scene = stack.enter_context(set_scene(fault, at, folder, beside, mark))
        except Missing as missing:
            return Record(fault, SKIPPED, str(missing))
        try:
            outcome = _play(fault, JOBS[fault.job], reference, scene, work / "corpus", patience)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            outcome, detail = "FAILED", str(error)[-2000:]
        finally:
            _end(mark)
    if outcome in (*GOOD, NOT_MET):
        for path in (folder, beside):
            shutil.rmtree(path, ignore_errors=True)
    elif outcome == "FAILED":
        outcome = f"FAILED: {detail.strip().splitlines()[-1][:300] if detail.strip() else 'no word'}"
    return Record(fault, outcome, detail, round(time.monotonic() - began, 1))


def _play(fault: Fault, job: Job, reference: Whole, scene: Scene, corpus: Path, patience: float) -> str:
    folder = scene.folder
    if scene.server is None:
        copy_ready(reference.ready, folder)
    recipe = write_recipe(job.name, folder, corpus, scene.dataset)
    done = scene.ser(job.verb, recipe, patience)
    hit = scene.hit()
    if hit is None:
        must(done)
        return NOT_MET
    scene.mend()
    outcome = BY_ITSELF
    if done.returncode != 0:
        scene.wait_for_the_end(but="Agent")
        outcome = AGAIN
        if fault.victim == "disk":
            outcome, said = IN_WORDS, done.stdout + done.stderr
            assert done.returncode == 2 and "Traceback" not in done.stderr, f"no clear words: {said}"
        must(scene.ser(job.verb, recipe, patience))
    scene.wait_for_the_end()
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
    if scene.hosts is None:  # else what Ray has is the cluster's
        # as every session does that starts; a command that found all done had no need of one
        own.sweep(own.BELOW)
        assert not hit["ray"] or not Path(hit["ray"]).exists(), f"left: {hit['ray']}"
    return outcome


def _end(mark: str) -> None:
    """Kill what a failed round has left; every one of these processes carries its mark."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(entry.name) != os.getpid() and mark.encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
