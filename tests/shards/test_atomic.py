"""shards.atomic: the old file or the new one, never a mixture, never a shared temporary name."""

import errno
import os
import signal
import subprocess
import sys
from threading import Barrier, Thread

import pytest

from shards import atomic
from shards.errors import UserError


def test_it_writes_bytes_and_text_and_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b.json"
    atomic.write(path, b"bytes")
    assert path.read_bytes() == b"bytes"
    atomic.write(path, "\u00e4")
    assert path.read_text("utf-8") == "\u00e4" and os.listdir(path.parent) == ["b.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, durable):
    path = tmp_path / "file"
    atomic.write(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic.create(path, durable) as file:
        file.write(b"half")
        file.flush()
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_a_message(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        atomic.write(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_two_writers_do_not_mix(tmp_path):
    """Both hold their temporary file open at once; with one shared name the file would hold parts of both."""
    path, barrier = tmp_path / "file", Barrier(2)

    def put(letter):
        with atomic.create(path) as file:
            file.write(letter * 1000)
            file.flush()
            barrier.wait(30)
            file.write(letter * 1000)

    threads = [Thread(target=put, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 2000, b"b" * 2000)


def test_what_the_dead_left_is_removed_and_the_living_are_spared(tmp_path):
    script = """
import os, signal, sys
from shards import atomic
with atomic.create(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    below = tmp_path / "below"
    writers = []
    for folder in (tmp_path, below):
        writers.append(subprocess.Popen([sys.executable, "-c", script, str(folder / "file")]))
        # dead, but still to be waited for: as one whose parent was killed before it, where nobody adopts orphans
        os.waitid(os.P_PID, writers[-1].pid, os.WEXITED | os.WNOWAIT)
        assert len([n for n in os.listdir(folder) if n.startswith(atomic.TEMPORARY)]) == 1
    with atomic.create(tmp_path / "mine") as file:
        file.write(b"whole")
        atomic.clean(tmp_path)
    assert os.listdir(below) != [] and sorted(os.listdir(tmp_path)) == ["below", "mine"]
    atomic.clean(tmp_path, deep=True)
    assert os.listdir(below) == []
    assert [writer.wait() for writer in writers] == [-signal.SIGKILL] * 2
