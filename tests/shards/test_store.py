"""shards.store and shards.cache: whole or nothing, right ranges, bounded cache, a real S3 server."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import atomic
from shards import store as storing
from shards.cache import Cache
from shards.errors import UserError
from shards.store import Store
from tests.conftest import ROOT
from tests.shards.corpus import s3_server

DATA = np.random.default_rng(0).bytes(10_000)


@pytest.fixture(scope="module")
def bucket():
    with s3_server("store-tests") as url:
        yield url


def test_put_replaces_whole_and_lists_sorted(tmp_path):
    store = Store(tmp_path / "new" / "folder")
    store.put("b/x", b"1")
    store.put("a", b"2")
    store.put("b/x", b"33")
    assert store.list() == ["a", "b/x"] and store.list("b") == ["b/x"] and store.list("none") == []
    assert store.read("b/x") == b"33" and store.size("b/x") == 2
    assert store.exists("a") and not store.exists("b") and not store.exists("c")
    store.delete("a")
    store.delete("a")
    assert store.list() == ["b/x"]
    with pytest.raises(FileNotFoundError):
        store.read("a")
    with pytest.raises(FileNotFoundError):
        store.local("a")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    store.put("f", b"old")
    with pytest.raises(RuntimeError), store.create("f") as file:
        file.write(b"half")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["f"] and store.read("f") == b"old"


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_kill_in_a_write_leaves_the_old_file(tmp_path, moment):
    script = f"""
import os, signal
from shards.store import Store
store = Store({str(tmp_path)!r})
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} != "write": setattr(os, {moment!r}, die)
with store.create("f") as file:
    file.write(b"half"); file.flush()
    if {moment!r} == "write": die()
"""
    store = Store(tmp_path)
    store.put("f", b"old")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    assert store.list() == ["f"] and store.read("f") == b"old"
    store.clean("")
    assert os.listdir(tmp_path) == ["f"]


def test_a_writer_to_a_remote_store_that_is_killed_leaves_no_file(tmp_path):
    """Nor does one that is published: what waits for its upload has no name in TMPDIR."""
    code = (
        "import os, signal\n"
        "from shards.store import Store\n"
        "store = Store('memory://killed')\n"
        "with store.create('x') as file:\n    file.write(bytes(10**6))\n"
        "assert store.read('x') == bytes(10**6)\n"
        "with store.create('y') as file:\n    file.write(b'half')\n    file.flush()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
        "SER_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_clean_spares_living_writers(tmp_path):
    store = Store(tmp_path)
    with store.create("f") as file:
        store.clean("")
        file.write(b"x")
    assert store.read("f") == b"x"


def test_file_url_is_local(tmp_path):
    store = Store(f"file://{tmp_path}/")
    store.put("f", b"x")
    assert store.is_local and store.local("f") == str(tmp_path / "f")


def test_unknown_protocol_and_bad_limit_are_user_errors(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="cannot open"):
        Store("nosuch://x")
    monkeypatch.setenv("SER_CACHE_BYTES", "lots")
    with pytest.raises(UserError, match="SER_CACHE_BYTES"):
        Store(tmp_path)


RANGES = st.lists(st.tuples(st.integers(0, 11_000), st.integers(0, 3_000)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(ranges=RANGES, version=st.sampled_from([None, "v"]), limit=st.sampled_from([0, 1500, 1 << 20]))
def test_ranges_are_slices(tmp_path_factory, ranges, version, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storing, "BLOCK", 1024)
        patch.setattr(storing, "SPAN", 3000)
        patch.setattr(storing, "GAP", 100)
        local = Store(tmp_path_factory.getbasetemp() / "ranges")
        remote = Store("memory://ranges", Cache(tmp_path_factory.getbasetemp() / "ranges-cache", limit))
        for store in (local, remote):
            store.put("f", DATA)
            assert store.read_ranges("f", ranges, version) == [DATA[o : o + n] for o, n in ranges]


def test_versioned_ranges_come_from_the_cache(tmp_path):
    store = Store("memory://cached", Cache(tmp_path / "cache"))
    store.put("f", DATA)
    assert store.read_range("f", 5, 10, version="1") == DATA[5:15]
    store.put("f", DATA[::-1])
    assert store.read_range("f", 5, 10, version="1") == DATA[5:15]
    assert store.read_range("f", 5, 10, version="2") == DATA[::-1][5:15]
    store.forget("f", "1")
    assert store.read_range("f", 5, 10, version="1") == DATA[::-1][5:15]


def test_cut_cache_entry_is_not_used(tmp_path):
    store = Store("memory://cut", Cache(tmp_path / "cache"))
    store.put("f", DATA)
    store.read_range("f", 0, 10, version="1")
    [entry] = (tmp_path / "cache").iterdir()
    entry.write_bytes(DATA[:7])
    assert store.read_range("f", 0, 100, version="1") == DATA[:100]


def entry(number: int) -> str:
    """A name such as the cache's own."""
    return f"{number:032x}"


def test_cache_is_bounded_and_drops_the_oldest(tmp_path):
    cache = Cache(tmp_path, limit=1000)
    for i in range(8):
        cache.put(entry(i), bytes(100))
        os.utime(tmp_path / entry(i), (i, i))
    assert cache.get(entry(0))  # used just now, so the next is the oldest
    cache.put(entry(8), bytes(100))
    held = {path.name for path in tmp_path.iterdir()}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    assert entry(1) not in held and {entry(0), entry(8)} <= held
    assert cache.put(entry(9), bytes(1001)) is None and cache.get(entry(9)) is None


def test_a_cache_counts_and_drops_its_own_files_alone(tmp_path):
    """The folder that the user has named holds a thesis, a folder, and what live and dead processes are writing."""
    child = subprocess.Popen(["true"])
    child.wait()
    host = os.uname().nodename
    alive, dead = (f".tmp-{host}-{pid}-{'0' * 32}" for pid in (os.getpid(), child.pid))
    others = {"thesis.txt", "folder", ".tmp-notes", alive}
    for name in [*others - {"folder"}, dead]:
        (tmp_path / name).write_bytes(bytes(2000))
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "folder").mkdir()
    cache = Cache(tmp_path, limit=1000)
    kept = [entry(0), f"{entry(1)}-7", f"plan-2-{entry(2)}", f"sha256-{2 * entry(3)}"]
    for name in kept:
        cache.put(name, bytes(100))
    assert {path.name for path in tmp_path.iterdir()} == others | set(kept)
    assert {path.name: state.st_size for path, state in cache.entries()} == dict.fromkeys(kept, 100)
    cache.drop(entry(1))
    assert {path.name for path, _ in cache.entries()} == set(kept) - {f"{entry(1)}-7"}
    cache.drop("")
    assert {path.name for path in tmp_path.iterdir()} == others
    assert list(Cache(tmp_path / "none").entries()) == []


def test_killed_cache_fill_is_never_an_entry(tmp_path):
    script = f"""
import os, signal
from shards.cache import Cache
def write(path):
    open(path, "wb").write(b"half"); os.kill(os.getpid(), signal.SIGKILL)
Cache({str(tmp_path)!r}, 1000).fill({entry(0)!r}, 8, write)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    cache = Cache(tmp_path, 1000)
    assert cache.get(entry(0)) is None
    cache.put(entry(1), b"x")
    assert os.listdir(tmp_path) == [entry(1)]


def test_temporary_names_tell_dead_from_living():
    name = atomic.temporary_name()
    assert not atomic.abandoned(name, 0.0)
    host, pid, _ = name.rsplit("-", 2)
    child = subprocess.Popen(["true"])
    child.wait()
    assert atomic.abandoned(f"{host}-{child.pid}-x", 0.0)
    assert atomic.abandoned(f"{atomic.TEMPORARY}elsewhere-{pid}-x", 0.0)
    assert not atomic.abandoned(f"{atomic.TEMPORARY}elsewhere-{pid}-x", 9e12)


def test_s3_round_trip(bucket, tmp_path):
    store = Store(f"{bucket}/one", Cache(tmp_path))
    assert store.list() == [] and not store.exists("a/f")
    store.put("a/f", DATA)
    with store.create("a/g") as file:
        file.write(b"created")
    # Another client changes the bucket: no listing cache may hide it.
    fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False).pipe_file(
        f"{bucket}/one/a/h", b"x"
    )
    assert store.list("a") == ["a/f", "a/g", "a/h"] and store.exists("a/h")
    assert store.read("a/g") == b"created" and store.size("a/f") == len(DATA)
    assert store.read_ranges("a/f", [(9_000, 5_000), (3, 4)]) == [DATA[9_000:], DATA[3:7]]
    assert store.read_ranges("a/f", [(9_000, 5_000), (3, 4)], version="1") == [DATA[9_000:], DATA[3:7]]
    first = store.local("a/f")
    assert Path(first).read_bytes() == DATA and store.local("a/f") == first
    store.put("a/f", b"new")
    assert Path(store.local("a/f")).read_bytes() == b"new"
    store.delete("a/h")
    assert not store.exists("a/h")
    with pytest.raises(FileNotFoundError):
        store.read("a/h")


def test_s3_store_survives_pickle_and_fork(bucket, tmp_path):
    store = Store(f"{bucket}/two", Cache(tmp_path))
    store.put("f", DATA)
    assert pickle.loads(pickle.dumps(store)).read("f") == DATA
    assert pickle.loads(pickle.dumps(store)).cache.directory == tmp_path
    pid = os.fork()
    if pid == 0:
        os._exit(0 if store.read_range("f", 10, 20, version="x") == DATA[10:30] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
