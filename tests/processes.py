"""Run functions in processes of their own: alone, as ranks of a process group, and until a SIGKILL.

Processes are forked from a server that has imported torch, DeepSpeed and transformers once (and started no thread), so
that one costs a fraction of a second instead of ten.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any


def context() -> Any:
    """Where processes come from."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.preload"])
    return found


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _entry(function: Callable, rank: int, world: int, port: int, out: Any, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    try:
        out.put((rank, function(*args), None))
    except BaseException:
        out.put((rank, None, traceback.format_exc()))
    if torch.distributed.is_initialized():
        with contextlib.suppress(Exception):
            torch.distributed.destroy_process_group()


def _start(function: Callable, world: int, args: tuple) -> tuple[list[Any], Any]:
    made = context()
    out, port = made.Queue(), free_port()
    ranks = [made.Process(target=_entry, args=(function, r, world, port, out, args)) for r in range(world)]
    for process in ranks:
        process.start()
    return ranks, out


def run_ranks(function: Callable, world: int, *args: Any, timeout: float = 300) -> list[Any]:
    """`function(*args)` on every rank of a fresh group; results in rank order. A failing rank fails the test."""
    ranks, out = _start(function, world, args)
    results: dict[int, Any] = {}
    try:
        while len(results) < world:
            rank, value, error = out.get(timeout=timeout)
            assert error is None, f"rank {rank} failed:\n{error}"
            results[rank] = value
    except queue.Empty:
        raise AssertionError(
            f"ranks {sorted(set(range(world)) - set(results))} said nothing in {timeout} s"
        ) from None
    finally:
        # A rank that failed leaves the others waiting in a collective.
        for process in ranks:
            process.join(timeout=20 if len(results) == world else 0.2)
            if process.is_alive():
                process.kill()
                process.join()
    return [results[rank] for rank in range(world)]


def run_killed(function: Callable, world: int, *args: Any, timeout: float = 300) -> None:
    """`function(*args)` on every rank, one of which must kill itself; then the others are killed, too."""
    ranks, _ = _start(function, world, args)
    end = time.monotonic() + timeout
    try:
        while not any(process.exitcode == -signal.SIGKILL for process in ranks):
            assert any(process.is_alive() for process in ranks), "no rank was killed: the fault was never met"
            assert time.monotonic() < end, f"no rank was killed in {timeout} s"
            multiprocessing.connection.wait([p.sentinel for p in ranks if p.is_alive()], timeout=0.5)
    finally:
        for process in ranks:
            process.kill()
            process.join()
