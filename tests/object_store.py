"""A real S3 server in a process of its own, and a proxy before it that injects faults by a seeded list.

The server is moto's. It holds its buckets in memory; the proxy knows what it was told to keep, and tells it again when it is
started after a kill.
"""

import contextlib
import http.client
import multiprocessing
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.processes import free_port

KINDS = ("500", "slow down", "refused", "lost", "cut")
ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "wrong": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "skewed": (403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
}  # fmt: skip
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Server:
    """moto_server on loopback. `kill` is SIGKILL."""

    def __init__(self):
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, empty."""
        command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p"]
        self.process = subprocess.Popen(
            [*command, str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None and time.monotonic() < end, "the S3 server did not start"
            time.sleep(0.05)

    def ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of its answer."""
        there = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            there.request(method, path, body, dict(headers))
            found = there.getresponse()
            return found.status, dict(found.getheaders()), found.read()
        finally:
            there.close()

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Proxy:
    """HTTP on loopback, handed on to `target`, a fault now and then.

    Faults: "500" and "slow down" are answered in the server's stead; "refused" closes the connection before the server is
    asked, "lost" after it has done what it was asked, "cut" in the middle of its answer. `plan` is the list of faults to
    come, one a request, None for none; after it there are none.
    """

    def __init__(self, target: Server):
        self.target, self.port, self.plan = target, free_port(), iter(())
        self.changes: list[tuple[str, str, bytes, dict[str, str]]] = []  # what the server was told to keep
        self.seen: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []  # method and path of each request
        self.guard, self.server = threading.Lock(), None
        self.open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def disturb(
        self, seed: int, share: float = 0.25, count: int = 10_000, kinds: Sequence[str] = KINDS
    ) -> None:
        """Faults in `share` of the next `count` requests."""
        dice = random.Random(seed)
        self.plan = iter([dice.choice(kinds) if dice.random() < share else None for _ in range(count)])

    def up(self) -> None:
        """Listen."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy.open.add(self.connection)

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy.guard:
                    fault = next(proxy.plan, None)
                    proxy.seen[fault or "none"] += 1
                    proxy.asked.append((self.command, self.path))
                with contextlib.suppress(OSError):
                    proxy.handle(self, body, fault)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads, allow_reuse_address = True, True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Listener(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections and break those that are open."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        for one in list(self.open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    def handle(self, asked: BaseHTTPRequestHandler, body: bytes, fault: str | None) -> None:
        """Answer one request."""
        asked.close_connection = fault is not None
        if fault == "refused":
            return
        if fault in ANSWERS:
            status, code, message = ANSWERS[fault]
            text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
            return _send(asked, status, {"Content-Type": "application/xml"}, text)
        headers = {name: value for name, value in asked.headers.items() if name.lower() != "expect"}
        try:
            found, told, data = self.target.ask(asked.command, asked.path, body, headers)
        except OSError:
            asked.close_connection = True
            return None
        if asked.command in ("PUT", "POST", "DELETE") and found < 300:
            with self.guard:
                self.changes.append((asked.command, asked.path, body, headers))
        if fault == "lost":
            return None
        return _send(asked, found, told, data, len(data) // 2 if fault == "cut" else None)


def _send(
    asked: BaseHTTPRequestHandler,
    status: int,
    headers: Mapping[str, str],
    data: bytes,
    only: int | None = None,
) -> None:
    asked.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in ("content-length", "connection", "transfer-encoding"):
            asked.send_header(name, value)
    length = next((v for n, v in headers.items() if n.lower() == "content-length"), len(data))
    asked.send_header("Content-Length", str(length if asked.command == "HEAD" else len(data)))
    asked.end_headers()
    if asked.command != "HEAD":
        asked.wfile.write(data[:only])
    asked.wfile.flush()


class Cloud:
    """A server, its proxy and a bucket."""

    def __init__(self):
        self.server, self.bucket = Server(), "s3://speech"
        self.server.start()
        self.proxy = Proxy(self.server)
        self.proxy.up()

    def outage(self, seconds: float) -> None:
        """The server is killed, nobody answers for a while, then it stands again with what it held."""
        self.proxy.down()
        self.server.kill()
        time.sleep(seconds)
        self.server.start()
        for change in self.proxy.changes:
            assert self.server.ask(*change)[0] < 300
        self.proxy.up()


@contextmanager
def cloud(folder: Path) -> Iterator[Cloud]:
    """A running `Cloud`; the environment of this process and its children leads to it."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    made = Cloud()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **KEYS,
            "AWS_ENDPOINT_URL": made.proxy.url,
            "SER_CACHE": str(folder / "cache"),
        }.items():
            patch.setenv(name, value)
        patch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(made.bucket)
        try:
            yield made
        finally:
            made.proxy.plan = iter(())
            s3fs.S3FileSystem.clear_instance_cache()
            made.proxy.down()
            made.server.kill()


def killed_at(proxy: Proxy, request: int, work: Callable[[], object]) -> bool:
    """Does `work` in a forked child that gets SIGKILL when the proxy has heard `request` requests more; False where it ended before."""
    proxy.asked.clear()
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while child.is_alive() and len(proxy.asked) < request:
        child.join(0.002)
    if child.is_alive():
        child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL
