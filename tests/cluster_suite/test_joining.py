"""Joining a running cluster: what is used of it, that it lives on, and why one cannot be joined."""

import json
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.node import Node
from cluster.place import Home, marked
from cluster.session import Session
from cluster.sweep import drive
from shards.errors import UserError
from tests.cluster_suite import toy_trials as toys
from tests.conftest import ROOT
from tests.processes import free_port
from tests.submitting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ENV = {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(address, token file) of a cluster of one machine with two CPUs, which another process has started."""
    folder = tmp_path_factory.mktemp("cluster")
    # of a Slurm job the token lies in the run directory, on another file system than Ray's folder
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    token = Path(tempfile.mkdtemp(prefix="ser-token-", dir=shm)) / "token"
    command = [sys.executable, "-m", "tests.host", str(token), "", "2"]
    with (folder / "out").open("w") as out, (folder / "log").open("w") as log:
        host = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | ENV, stdin=subprocess.PIPE, stdout=out, stderr=log
        )
    try:
        address = until(
            (lambda: host.poll() is not None or (folder / "out").read_text().strip()), "Ray starts"
        )
        assert isinstance(address, str), (folder / "log").read_text()
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        yield address, str(token)
    finally:
        assert host.stdin is not None
        host.stdin.close()
        code = host.wait(60)
        token.parent.rmdir()  # the host has removed what it wrote
        assert code == 0, (folder / "log").read_text()


def join(cluster, **options) -> Session:
    return Session(cluster[0], token_file=cluster[1], env=ENV, **options)


def span(seconds):
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


def most_at_once(spans):
    return max(sum(a <= at < b for a, b in spans) for at, _ in spans)


def test_it_says_what_it_found_and_uses_what_was_declared_and_the_cluster_lives_on(cluster):
    secret = Path(cluster[1]).read_text()
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    with join(cluster, cpus=1) as session:
        said = session.describe()
        assert cluster[0] in said and "1 machine with 2 CPUs, 0 GPUs" in said and "at most 1 CPUs" in said
        assert secret not in said
        assert most_at_once([found for _, found in session.map(span, [0.3] * 4)]) == 1
        assert session.node == cluster[0].rpartition(":")[0]
        with pytest.raises(UserError, match=r"2 x 1 CPUs .* may use 1"):
            session.room(1, 0, 2)
    assert {name: os.environ.get(name) for name in before} == before
    with join(cluster) as session:
        assert "uses all of them" in session.describe()
        assert most_at_once([found for _, found in session.map(span, [1.0] * 4)]) == 2


SHARER = """
import json, sys
from cluster.session import Session
from tests.cluster_suite.test_joining import ENV, span

with Session(sys.argv[1], cpus=1, token_file=sys.argv[2], env=ENV) as session:
    print("in", flush=True)
    sys.stdin.readline()
    print(json.dumps([found for _, found in session.map(span, [0.2] * 30)]))
"""


def test_two_jobs_share_a_cluster_and_neither_waits_for_the_other(cluster):
    command = [sys.executable, "-c", SHARER, *cluster]
    options = dict(cwd=ROOT, env=os.environ | ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    jobs = [subprocess.Popen(command, **options) for _ in range(2)]
    for job in jobs:
        assert job.stdout and job.stdout.readline() == "in\n"
    for job in jobs:
        assert job.stdin
        job.stdin.write("\n")
        job.stdin.flush()
    spans = [json.loads(job.communicate(timeout=300)[0]) for job in jobs]
    assert all(most_at_once(mine) == 1 for mine in spans)
    (a, b), (c, d) = ((mine[0][0], mine[-1][1]) for mine in spans)
    assert max(a, c) < min(b, d), "they ran beside each other"


def test_what_the_cluster_cannot_hold_is_waited_for_as_long_as_told_and_refused(cluster):
    said = []
    with join(cluster, wait=1.0, say=said.append) as session:
        with pytest.raises(
            UserError, match=r"3 CPUs and 0 GPUs; this cluster has 2 CPUs and 0 GPUs"
        ) as error:
            next(session.map(span, [0], num_cpus=3))
        assert "cluster.wait" in error.value.hint and "waiting up to 1 s" in said[0]
        with pytest.raises(UserError, match=r"this cluster has 2 CPUs and 0 GPUs"):
            next(session.map(span, [0], num_gpus=1))
        with pytest.raises(UserError, match=r"3 workers ask for 1 CPUs"):
            session.room(1, 0, 3).wait()


REFUSED = """
import sys
from cluster.session import Session
from shards.errors import UserError
try:
    with Session(sys.argv[1], token_file=sys.argv[2] or None):
        print("joined")
except UserError as error:
    print(error.what, error.where, error.hint, sep="\\n")
"""


def refused(address: str, token: str = "", **variables: str) -> tuple[str, float]:
    """What a driver of its own is told, and after how many seconds."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | ENV | variables
    env["HOME"] = "/nonexistent"  # no token of Ray's own
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, address, token], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, time.monotonic() - began


def test_a_cluster_that_is_not_there_or_wants_another_token_is_refused_in_words(cluster, tmp_path):
    address, token = cluster
    secret = Path(token).read_text()
    said, _ = refused(f"127.0.0.1:{free_port()}", token)
    assert "no Ray cluster answers" in said and "cluster.address=127.0.0.1" in said
    other = tmp_path / "token"
    other.write_text(secrets.token_hex(32))
    said, _ = refused(address, str(other))
    assert "did not accept the token" in said and secret not in said
    assert "asks for a token" in refused(address)[0]
    said, _ = refused(address, str(tmp_path / "nothing"))
    assert "token cannot be read" in said and str(tmp_path / "nothing") in said
    assert "no address of a cluster" in refused("here", token)[0]
    assert "joined" in refused(address, token)[0]


def test_the_token_comes_from_the_environment_alone_and_a_file_that_is_named_goes_before_it(
    cluster, tmp_path
):
    address, token = cluster
    secret = Path(token).read_text()
    assert "joined" in refused(address, RAY_AUTH_TOKEN_PATH=token)[0]
    assert "joined" in refused(address, RAY_AUTH_TOKEN=secret)[0]
    assert "joined" in refused(address, token, RAY_AUTH_TOKEN=secrets.token_hex(32))[0]
    said, _ = refused(address, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert "did not accept the token" in said
    said, _ = refused(address, RAY_AUTH_TOKEN_PATH=str(tmp_path / "nothing"))
    assert "token cannot be read" in said and str(tmp_path / "nothing") in said


PRETEND = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
key, space = b"CLUSTER_METADATA", b"cluster"
client.internal_kv_put(key, client.internal_kv_get(key, space, 30).replace(*(a.encode() for a in sys.argv[2:4])), True, space, 30)
"""


def test_other_versions_of_ray_or_python_are_named(cluster):
    """The head says of itself what Ray compares: its record in the running cluster is changed, and changed back."""
    import ray

    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": cluster[1]}
    python = ".".join(map(str, sys.version_info[:3]))
    for true, other, words in (
        (
            ray.__version__,
            "9.9.9",
            f"runs Ray 9.9.9 on Python {python}, this environment Ray {ray.__version__}",
        ),
        (python, "3.99.1", f"runs Ray {ray.__version__} on Python 3.99.1"),
    ):
        for change in ((true, other), (other, true)):
            subprocess.run(
                [sys.executable, "-c", PRETEND, cluster[0], *change],
                env=os.environ | auth,
                check=True,
                timeout=120,
            )
            if change[0] == true:
                said, _ = refused(*cluster)
                assert words in said and "must be the same" in said, said


def test_a_machine_that_does_not_share_a_folder_is_named_before_it_writes_there(
    cluster, tmp_path, monkeypatch
):
    with marked([tmp_path, tmp_path / "not-there"]) as home:
        assert len(home.marks) == 1 and home.folder == os.getcwd()
        home.enter()
        (path, text) = home.marks[0]
        Path(path).write_text("of another machine")
        monkeypatch.setattr("cluster.place.own_address", lambda: "10.0.0.9")
        with pytest.raises(UserError, match="does not share this folder") as error:
            Home(home.folder, ((path, text + "."),)).enter()
        assert error.value.where == f"10.0.0.9: {tmp_path}"
    assert list(tmp_path.iterdir()) == []
    dead = tmp_path / f".driver-{os.uname().nodename}-99999999"
    dead.touch()
    with join(cluster, shared=[tmp_path]) as session:
        assert not dead.exists() and len(list(tmp_path.iterdir())) == 1
        assert [found for _, found in session.map(len, ["abc"])] == [3]
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_keeps_to_what_it_may_use_and_to_machines_that_share(cluster, tmp_path):
    """Of two CPUs it may use one; then a machine finds something else where the driver has left its mark."""
    said: list[str] = []
    with join(cluster, cpus=1, shared=[tmp_path], wait=1.0, say=said.append) as session:
        one = toys.sweep_of(tmp_path / "one", toys.config(trials=3), {"seconds": 0.5})
        drive(one, session)
        spans = sorted((float(a[2]), float(b[2])) for a, b in toys.runs(tmp_path / "one").values())
        assert len(spans) == 3 and most_at_once(spans) == 1
        two = toys.sweep_of(tmp_path / "two", toys.config(resources={"gpus": 1}), {})
        with pytest.raises(UserError, match="1 CPUs and 1 GPUs; this cluster has 2 CPUs and 0 GPUs"):
            drive(two, session)
        assert "waiting up to 1 s" in said[0] and not two.study.get_trials()
        three = toys.sweep_of(tmp_path / "three", toys.config(resources={"cpus": 2}), {})
        with pytest.raises(UserError, match="2 CPUs are asked for at once, and this run may use 1"):
            drive(three, session)
        ((path, text),) = session.home.marks
        session.home = replace(session.home, marks=((path, text + "."),))
        four = toys.sweep_of(tmp_path / "four", toys.config(), {})
        with pytest.raises(UserError, match="does not share this folder") as error:
            drive(four, session)
        assert str(tmp_path) in error.value.where and not toys.runs(tmp_path / "four")


def test_a_port_in_use_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.node.TRIES", 0)
    auth = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")
    for name in (*auth, "RAY_TMPDIR", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # a node sets them for good
    # how long Ray looks for a head that has ended
    for name, seconds in (
        ("RAY_gcs_rpc_server_connect_timeout_s", "1"),
        ("RAY_py_gcs_connect_timeout_s", "3"),
    ):
        monkeypatch.setenv(name, seconds)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = iter([port])
        monkeypatch.setattr("cluster.node.free_port", lambda: next(ports, None) or free_port())
        with (
            pytest.raises(UserError, match=f"port {port} is in use"),
            Node(tmp_path / "token", cpus=1) as node,
        ):
            folder = node.folder
            node.wait_for(1, 120)
        assert not folder.exists() and not (tmp_path / "token").exists()
