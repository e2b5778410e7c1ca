"""One holder at a time, told apart by process and machine; the end of the holder is the end of the lock."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.lock import hold
from shards.pack import pack
from shards.withdraw import erase, withdraw
from tests import tiny
from tests.conftest import ROOT

HOLDER = """
import os, subprocess, sys, time
from shards.lock import hold
with hold(sys.argv[1], "busy", "do otherwise"):
    if "children" in sys.argv:
        forked = os.fork()
        if forked == 0:
            time.sleep(600)
            os._exit(0)
        run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
        print(forked, run.pid)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path: Path, *options: str):
    """A process that holds `path` until its standard input ends; yields it and the pids of its children."""
    command = [sys.executable, "-c", HOLDER, str(path), *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = []
        while not lines or lines[-1] != "held":
            line = process.stdout.readline().strip()  # pyright: ignore[reportOptionalMemberAccess]
            assert line, "the holder died"
            lines.append(line)
        try:
            yield process, [int(word) for line in lines[:-1] for word in line.split()]
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_it(tmp_path):
    path = tmp_path / "new" / "run.lock"
    with holder(path) as (process, _):
        began = time.monotonic()
        with pytest.raises(UserError) as error, hold(path, "busy here", "go away"):
            raise AssertionError("held twice")
        assert time.monotonic() - began < 2
        message = str(error.value)
        assert "busy here" in message and "go away" in message
        assert f"{path}: held by process {process.pid} on {os.uname().nodename} since 2" in message
        assert f"kill {process.pid}" in message
        process.stdin.close()
        process.wait()
        assert not path.parent.exists(), "given back, it leaves nothing"
    with hold(path, "", ""):
        assert path.is_file()
    assert not path.exists()


def test_children_do_not_keep_it(tmp_path):
    """SIGKILL of the holder frees it at once, though a forked and a started process of its live on."""
    path = tmp_path / "lock"
    with holder(path, "children") as (process, children):
        with pytest.raises(UserError), hold(path, "", ""):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        try:
            assert len(children) == 2 and all(Path(f"/proc/{child}").exists() for child in children)
            with hold(path, "", ""):
                assert str(os.getpid()) in path.read_text()
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
    assert not path.exists()


def test_a_holder_about_to_end_is_waited_for(tmp_path):
    path = tmp_path / "lock"
    with holder(path) as (process, _):
        threading.Timer(0.5, process.kill).start()
        with hold(path, "", "", patience=60):
            pass
        process.wait()


def test_a_forked_child_gives_nothing_back(tmp_path):
    path = tmp_path / "lock"
    with contextlib.ExitStack() as held:
        held.enter_context(hold(path, "", ""))
        child = os.fork()
        if child == 0:
            try:
                held.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert path.exists()
        with pytest.raises(UserError), hold(path, "", ""):
            pass


def test_many_take_turns(tmp_path):
    """Taking, giving back and removing the file race with each other; never are two inside."""
    path, inside, most = tmp_path / "lock", [], []

    def work() -> None:
        for _ in range(30):
            with hold(path, "", "", patience=60):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 120


def test_where_no_lock_can_be_had_the_work_goes_on(tmp_path, monkeypatch):
    import errno
    import fcntl

    (tmp_path / "file").touch()
    with hold(tmp_path / "file" / "lock", "", ""):
        pass

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / "lock", "", ""), hold(tmp_path / "lock", "", ""):
        pass


PACKER = """
import sys
from pathlib import Path
from shards.pack import pack
from tests import tiny

def wait(report, done, total):
    if done == 1:
        print("held", flush=True)
        sys.stdin.read()

pack(tiny.utterances(Path(sys.argv[1]), count=16), sys.argv[2], shard_seconds=4.0, progress=wait)
"""


@pytest.mark.slow
def test_two_packs_into_one_folder(tmp_path):
    """The second is refused and touches nothing; when the first is killed, it goes on where that one stopped."""
    out = tmp_path / "dataset"
    utterances = tiny.utterances(tmp_path / "wav", count=16)
    command = [sys.executable, "-c", PACKER, str(tmp_path / "wav"), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        with pytest.raises(UserError, match="another process writes this dataset") as error:
            pack(utterances, str(out), shard_seconds=4.0)
        for other in (lambda: withdraw(str(out), "tiny/s0"), lambda: erase(str(out))):
            with pytest.raises(UserError, match="another process writes this dataset"):
                other()
        assert f"held by process {process.pid}" in error.value.where and "--out" in error.value.hint
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
        process.kill()
        process.wait()
    (first,) = (p for p in before if p.suffix == ".tar")
    assert len(pack(utterances, str(out), shard_seconds=4.0)) == 16
    assert first.stat().st_mtime_ns == before[first] and not (out / ".lock").exists()
