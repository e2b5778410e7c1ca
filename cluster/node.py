"""One machine's part of a Ray cluster that lives as long as a batch job: started, watched and ended by its process.

`ray symmetric-run` does not do here: it refuses a machine on which anyone's Ray runs, ends every Ray on the machine with
`ray stop`, hands no signal to the command, and exits 0 when the cluster did not start (Ray 2.60).

Guarantees: ports are free ones, the folder is this job's alone, the cluster has a token of its own (a private file), and
what was started here is ended here, nobody else's Ray.
"""

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster import own
from shards.errors import UserError

ENDING = 15.0  # seconds in which Ray's processes end before they are killed
TRIES = 3  # starts after the first
# At SIGTERM `ray start --block` waits for work to leave this machine (30 s, Ray 2.60); ours has ended then, or is to end.
AT_ONCE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}


class Node:
    """Context of `ray start --block` on this machine.

    Args:
        token: File of the cluster's token; the head makes it.
        head: "IP:PORT" of the head; None makes this machine the head.
        cpus: CPUs that Ray may use here; default what Ray finds.
        gpus: GPUs likewise.
        at: This machine's address in the cluster; default that on the network which leads to the head.

    Raises:
        UserError: Ray did not start; its last words are shown.
    """

    def __init__(
        self,
        token: Path,
        head: str | None = None,
        cpus: int | None = None,
        gpus: int | None = None,
        at: str | None = None,
    ):
        self.token, self.head, self.cpus, self.gpus = token, head, cpus, gpus
        self.at = at or (socket_address(head.rpartition(":")[0]) if head else socket_address())

    def __enter__(self) -> "Node":
        self.folder, self.lock = own.folder()
        if self.head is None:
            self.token.unlink(missing_ok=True)
            # where the others read it: often on another file system than our folder
            own.write_token(self.token)
        # Ours too: what asks the cluster for its nodes is this process.
        os.environ |= own.token_variables(self.token)
        os.environ |= {"RAY_TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0"}
        self.address = self.head or f"{self.at}:{free_port()}"
        self.log, self.tries = self.folder / "start.log", TRIES
        self._start()
        return self

    def _start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(self.at),
                env=os.environ | AT_ONCE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _command(self, at: str) -> list[str]:
        where = ["--head", "--port", self.address.rpartition(":")[2], "--include-dashboard=false"]
        if self.head is not None:
            where = ["--address", self.head]
        elif importlib.util.find_spec(
            "grpc"
        ):  # then Ray starts its client's server too, on 10001 unless told
            where += ["--ray-client-server-port", str(free_port())]
        have = [f"--num-cpus={self.cpus}"] if self.cpus is not None else []
        have += [f"--num-gpus={self.gpus}"] if self.gpus is not None else []
        quiet = ["--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
        quiet += [f"--dashboard-agent-listen-port={free_port()}"]
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", at]
        return [*start, *where, *have, *quiet]

    def alive(self) -> bool:
        """Whether Ray runs here, started again where it ended: it gives itself 30 s, too few on a busy machine."""
        if self.process.poll() is None:
            return True
        self._end()
        if self.tries == 0:
            return False
        self.tries -= 1
        self._start()
        return True

    def wait_for(self, nodes: int, patience: float, ask: Callable[[], None] = lambda: None) -> None:
        """Return once `nodes` machines have joined (asked on the head); `ask` may end the waiting by an exception.

        Raises:
            UserError: They did not within `patience` seconds, or Ray ended here.
        """

        def look() -> None:
            ask()
            if self.alive():
                return
            port, host = self.address.rpartition(":")[2], os.uname().nodename
            if self.head is None and taken(int(port)):
                hint = "start it again: it takes another free port"
                raise UserError(f"Ray did not start: port {port} is in use", where=host, hint=hint)
            raise UserError("Ray did not start", where=f"{host}: {self.last_words()}")

        await_nodes(self.address, nodes, patience, look)

    def last_words(self) -> str:
        """The end of what `ray start` said."""
        return self.log.read_text(errors="replace")[-800:].strip() if self.log.is_file() else ""

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING)

    def __exit__(self, *_: object) -> None:
        self._end()
        if self.head is None:
            self.token.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            self.lock.close()


def await_nodes(address: str, nodes: int, patience: float, look: Callable[[], None] = lambda: None) -> None:
    """Return once `nodes` machines have joined the cluster at `address`; `look` may end the waiting by an exception.

    Raises:
        UserError: They did not within `patience` seconds.
    """
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]  # compiled, no stubs

    own.forget_token()  # of the environment that Ray was imported with
    end, here, client = time.monotonic() + patience, 0, None
    while here < nodes:
        look()
        if time.monotonic() > end:
            raise UserError(
                f"{here} of {nodes} machines joined within {patience:.0f} s",
                where=address,
                hint="look at the log of the others; a firewall, or the wrong network (environment: GLOO_SOCKET_IFNAME)?",
            )
        time.sleep(0.2)
        with contextlib.suppress(Exception):  # not there yet
            client = client or GcsClient(address=address)
            here = sum(1 for n in client.get_all_node_info(timeout=2).values() if n.state == 0)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def taken(port: int) -> bool:
    """Whether another program listens at a port of this machine."""
    with socket.socket() as s:
        try:
            s.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def socket_address(towards: str = "192.0.2.1") -> str:
    """This machine's address on the network that leads to another (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect((towards, 9))
            return s.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())


if __name__ == "__main__":  # python -m cluster.node COUNT: wait for so many machines at $RAY_ADDRESS
    try:
        await_nodes(os.environ["RAY_ADDRESS"], int(sys.argv[1]), 1200.0)
    except UserError as error:
        sys.exit(f"error: {error}")
