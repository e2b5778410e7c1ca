"""`ser run`: it makes what is missing, survives SIGKILL in every stage, ends at Ctrl-C, and leaves no process behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests import tiny
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LABELS = [{"loss": "cross_entropy"}, {"loss": "ccc"}]
JOBS = ("text/seed-0", "sound/seed-0", "student/seed-0", "student/seed-1")


def recipe(folder: Path, corpus: Path) -> Path:
    """Two teachers, one of them through stored features, and a student with two seeds."""
    folder.mkdir(parents=True, exist_ok=True)

    def few(steps: int = 3) -> dict:
        return tiny.training(steps, slot_seconds=10.0, checkpoint_every=2, evaluate_every=2)

    terms = [{"loss": "multi_kl", "teachers": ["text", "sound"]}, {"loss": "cross_entropy"}]
    stored = tiny.CONV | {"features": "stored"}
    values = tiny.recipe_values(
        folder, str(folder / "dataset"),
        {
            "text": {"role": "teacher", "model": tiny.BERT, "objective": LABELS, "train": few()},
            "sound": {"role": "teacher", "model": stored, "objective": LABELS, "train": few()},
            "student": {"role": "student", "model": stored, "objective": terms, "train": few(4), "seeds": [0, 1]},
        },
        features={"mel": {"kind": "mel", "options": {"bands": 20}}},
        cluster={"cpus": 2},
    )  # fmt: skip
    values["data"] = {
        "path": str(folder / "dataset"), "corpora": [{"reader": "manifest", "root": str(corpus), "options": {"corpus": "tiny"}}],
        "shard_seconds": 8.0,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def ser(*arguments: str | Path, fault: str = "none", timeout: float = 600) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.launch.driver", fault, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def hear_interrupts() -> None:
    """A process started in the background inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def below(mark: str) -> list[str]:
    """Command lines of live processes that name `mark`."""
    return [line for line, _ in marked(mark)]


def marked(mark: str) -> list[tuple[str, str]]:
    """Command line and environment of live processes that name `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environ = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if mark in line or mark in environ:
                found.append((line, environ))
    return found


def nothing_left(mark: str, seconds: float = 90, but: str = "nothing") -> None:
    """No process that inherited `mark` lives on. Ray's agents, which do no work, look for their parent now and then."""
    end = time.monotonic() + seconds
    while (left := [line for line in below(mark) if but not in line]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left, "\n".join(left)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    tiny.write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus) -> tuple[Path, subprocess.CompletedProcess]:
    """An unkilled run."""
    path = recipe(tmp_path_factory.mktemp("whole"), corpus)
    done = ser("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return path, done


def results(path: Path) -> dict[str, object]:
    """All that a run says: weights and predictions of every training, and the report's numbers."""
    run, found = path.parent / "run", {}
    for job in JOBS:
        folder = run / "folds/session-ses0" / job
        found[job] = (folder / "model/model.safetensors").read_bytes()
        found[f"{job} predictions"] = pq.read_table(folder / "predictions.parquet").to_pylist()
    found["targets"] = {
        str(p.relative_to(path.parent)): p.read_bytes() for p in (path.parent / "dataset").rglob("*.arrow")
    }
    found["shards"] = {p.name: p.read_bytes() for p in (path.parent / "dataset/shards").iterdir()}
    return found


def test_a_run_ends_with_a_report_and_a_quiet_terminal(whole):
    path, done = whole
    run = path.parent / "run"
    assert (run / "report.html").is_file() and json.loads((run / "report.json").read_text())
    assert (run / "recipe.yaml").is_file() and json.loads((run / "environment.json").read_text())
    for noise in ("Warning", "DeepSpeed", "deepspeed", "Traceback", "deprecated", "(raylet)", "INFO"):
        assert noise not in done.stdout + done.stderr, noise
    assert "report:" in done.stdout and "targets" in done.stdout
    assert all(re.search(rf"{stage}: (\d+)/\1 ", done.stdout) for stage in ("pack", "evaluate", "report"))


def test_a_second_run_does_nothing(whole):
    path, _ = whole
    stamps = {
        p: p.stat().st_mtime_ns
        for p in path.parent.rglob("*")
        if p.is_file() and "report" not in p.name and p.suffix != ".json"
    }
    again = ser("run", str(path))
    assert again.returncode == 0 and "starting Ray" not in again.stdout
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


FAULTS = (
    "bar:pack",
    "bar:features",
    "bar:sound",
    "bar:targets",
    "bar:train student",
    "after:ser.evaluate:evaluate",
)


def test_a_run_killed_in_every_stage_ends_the_same(whole, corpus, tmp_path, monkeypatch):
    path = recipe(tmp_path / "killed", corpus)
    monkeypatch.setenv("SER_TEST_MARK", mark := f"mark-{tmp_path.name}-{os.getpid()}")
    for fault in FAULTS:
        done = ser("run", str(path), fault=fault)
        assert done.returncode == -signal.SIGKILL, f"{fault}: {done.returncode}\n{done.stdout}{done.stderr}"
        nothing_left(mark, but="Agent")
    nothing_left(mark)
    done = ser("run", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    expected, found = results(whole[0]), results(path)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == value, f"{name} differs"


def test_ctrl_c_leaves_nothing_and_the_next_run_goes_on(corpus, tmp_path, monkeypatch):
    path = recipe(tmp_path / "stopped", corpus)
    monkeypatch.setenv("SER_TEST_MARK", mark := f"mark-{tmp_path.name}-{os.getpid()}")
    command = [sys.executable, "-m", "launch.cli", "run", str(path), "models.student.train.steps=100000"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    log = path.parent / "run/folds/session-ses0/student/seed-0/events.jsonl"
    try:
        end = time.monotonic() + 500
        while not log.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        assert log.exists(), process.communicate(timeout=10)
        # Ray's own, and not those of tests beside this one
        folders = {
            found for _, env in marked(mark) for found in re.findall(r"RAY_TMPDIR=(/tmp/ser-ray-\w+)", env)
        }
        assert len(folders) == 1
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert "run the same command to go on" in err and "Traceback" not in err
    nothing_left(mark)
    assert not Path(folders.pop()).exists(), "Ray's folder is gone, too"
