"""Hosts of a test: network namespaces on one bridge, each with an address and processes of its own; they share the disk.

A host dies as a machine does: every process in it by SIGKILL; or it is cut off, and its processes live on without a network.
Needs root and iproute2 (`missing` says so); elsewhere `Loopback` gives hosts addresses 127.X.Y.2, .3, ... of one network,
which cannot be cut. Names and addresses are those of this process, so that several may have hosts at once; leavings of killed
tests are removed by the next.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import own
from tests.conftest import ROOT

PREFIX = "ser-test-"
# A host that is cut off is found dead in 25 s; Ray gives it 65 (period + timeout, five times).
HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "4000"}


def missing() -> str:
    """Why there can be no hosts here; "" where there can."""
    if shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        return "no ip: apt-get install iproute2"
    if os.getuid() != 0:
        return "network namespaces need root"
    name = f"{PREFIX}{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Hosts:
    """Context of a bridge; `start` adds a host to the Ray cluster whose head is the first of them."""

    NETWORK = 10

    def __init__(self, env: Mapping[str, str] = {}):
        pid = os.getpid()
        self.net, self.bridge = f"{self.NETWORK}.{64 + pid % 128}.{pid // 128 % 256}", f"serb{pid}"
        self.env = {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | HEALTH | dict(env)
        self.live: dict[str, subprocess.Popen] = {}
        self.off: dict[str, subprocess.Popen] = {}
        self.made: list[str] = []

    def __enter__(self) -> "Hosts":
        self.folder = Path(tempfile.mkdtemp(prefix="ser-hosts-", dir="/tmp"))
        self.token, self.head = self.folder / "token", ""
        self._make_network()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.made:
            self.kill(name)
        self._remove_network()
        own.sweep(own.BELOW)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_network(self) -> None:
        sweep()
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.net}.254/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def _remove_network(self) -> None:
        for name in self.made:
            with contextlib.suppress(subprocess.CalledProcessError):  # its other end is gone already
                _ip("link", "del", self._veth(name))
            _ip("netns", "del", _space(name))
        _ip("link", "del", self.bridge)

    def _veth(self, name: str) -> str:
        return f"serv{os.getpid()}{name[1:]}"[-15:]

    def address(self, name: str) -> str:
        """The address of host "hN"."""
        return f"{self.net}.{name[1:]}"

    def cut(self, name: str) -> None:
        """Take a host off the network; its processes do not notice but by what they no longer reach."""
        subprocess.run(self.cutting(name), check=True)
        self.off[name] = self.live.pop(name)

    def cutting(self, name: str) -> list[str]:
        """The command that takes a host off the network."""
        return ["ip", "-n", _space(name), "link", "set", "eth0", "down"]

    def give_up(self, name: str, seconds: int = 600) -> None:
        """Tell the cluster that a host goes in so many seconds, as for a spot machine; what kills it then is not ours."""
        joined = {"RAY_ADDRESS": self.head, **self.auth}
        ask = "import ray; ray.init(log_to_driver=False)\nfor n in ray.nodes(): print(n['NodeManagerAddress'], n['NodeID'])"
        told = self._ask("h1", [sys.executable, "-c", ask], joined)
        nodes = dict(line.split() for line in told.splitlines() if line.startswith(self.net))
        words = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--node-id"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.head, *words]
        command += [nodes[self.address(name)], "--deadline-remaining-seconds", str(seconds)]
        self._ask("h1", command, joined)
        self.off[name] = self.live.pop(name)

    def add(self, name: str) -> None:
        """A host without processes."""
        space, here = _space(name), self._veth(name)
        there = here.replace("serv", "serw")
        _ip("netns", "add", space)
        self.made.append(name)
        _ip("link", "add", here, "type", "veth", "peer", "name", there)
        _ip("link", "set", there, "netns", space, "name", "eth0")
        _ip("link", "set", here, "master", self.bridge, "up")
        _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")
        _ip("-n", space, "route", "add", "default", "via", f"{self.net}.254")

    def start(self, *names: str, seconds: float = 600, without: Path | None = None, gpus: int = 0) -> None:
        """Add hosts with Ray, one CPU each; the first ever is the head. `without` is a folder that they see empty.

        `gpus` are such that Ray counts and nobody looks at.
        """
        for name in names:
            self.add(name)
            command = [
                sys.executable,
                "-m",
                "tests.host",
                str(self.token),
                self.head,
                "1",
                self.address(name),
                str(gpus),
            ]
            if without is not None:
                hide = f"mount -t tmpfs none {shlex.quote(str(without))} && exec {shlex.join(command)}"
                command = ["unshare", "--mount", "sh", "-c", hide]
            with (
                (self.folder / f"{name}.out").open("wb") as out,
                (self.folder / f"{name}.log").open("wb") as log,
            ):
                self.live[name] = self.run(name, command, stdin=subprocess.PIPE, stdout=out, stderr=log)
            if not self.head:
                self._until(lambda name=name: self._said(name), seconds)
                self.head = self._said(names[0])
        alive = len(self.live)
        command = [sys.executable, "-m", "cluster.node", str(alive)]
        done = self.run("h1", command, env={"RAY_ADDRESS": self.head, **self.auth}, stderr=subprocess.PIPE)
        assert done.wait(seconds) == 0, done.stderr and done.stderr.read()

    def _said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text().strip()

    def _until(self, ready: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not ready():
            logs = "\n".join(p.read_text(errors="replace")[-2000:] for p in self.folder.glob("*.log"))
            assert time.monotonic() < end, logs
            time.sleep(0.1)

    @property
    def auth(self) -> dict[str, str]:
        """Variables by which a process has the cluster's token."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def run(
        self, name: str, command: Sequence[str], env: Mapping[str, str] = {}, **options: Any
    ) -> subprocess.Popen:
        """Start a command on a host."""
        return subprocess.Popen(
            [*self.enter(name), *command], cwd=ROOT,
            env=os.environ | self.env | {"SER_TEST_HOST": name, "SER_TEST_AT": self._mark(name)} | dict(env),
            start_new_session=True, **options,
        )  # fmt: skip

    def _ask(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> str:
        done = self.run(name, command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = done.communicate(timeout=180)
        assert done.returncode == 0, err
        return out

    def enter(self, name: str) -> list[str]:
        """Beginning of a command that runs on a host."""
        return ["ip", "netns", "exec", _space(name)]

    def _mark(self, name: str) -> str:
        return f"{self.folder}/{name}/"

    def pids(self, name: str) -> list[int]:
        """Processes of a host."""
        return [int(pid) for pid in _ip("netns", "pids", _space(name)).split()]

    def kill(self, name: str) -> None:
        """SIGKILL to all that runs on a host, until nothing does."""
        while pids := self.pids(name):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if process := self.live.pop(name, None) or self.off.pop(name, None):
                process.wait(20)
            time.sleep(0.02)


class Loopback(Hosts):
    """Hosts for whom neither root nor iproute2 is needed: all on this machine's network, told apart by their environment."""

    NETWORK = 127

    def _make_network(self) -> None: ...

    def _remove_network(self) -> None: ...

    def address(self, name: str) -> str:
        """The address of host "hN"."""
        return f"{self.net}.{1 + int(name[1:])}"

    def add(self, name: str) -> None:
        """A host without processes."""
        self.made.append(name)

    def cut(self, name: str) -> None:
        """Not to be had here."""
        raise NotImplementedError("all hosts are on one network")

    def pids(self, name: str) -> list[int]:
        """Processes of a host."""
        found, mark = [], f"SER_TEST_AT={self._mark(name)}\0".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def enter(self, name: str) -> list[str]:
        """Nothing to enter."""
        return []


def sweep() -> None:
    """Remove what killed tests left; another process may do so at the same time."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        pid = name.removeprefix(PREFIX).split("-")[0]
        if name.startswith(PREFIX) and not Path("/proc", pid).exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                for process in _ip("netns", "pids", name).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                _ip("netns", "del", name)
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "del", f"serb{pid}")


def _space(name: str) -> str:
    return f"{PREFIX}{os.getpid()}-{name}"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
