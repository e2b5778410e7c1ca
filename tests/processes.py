"""Run a function in several processes that form one process group, as torchrun would."""

import multiprocessing
import os
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any


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
        torch.distributed.destroy_process_group()


def run_ranks(function: Callable, world: int, *args: Any, timeout: float = 300) -> list[Any]:
    """`function(*args)` on every rank of a fresh group; results in rank order. A failing rank fails the test."""
    context = multiprocessing.get_context("spawn")
    out, port = context.Queue(), free_port()
    ranks = [context.Process(target=_entry, args=(function, r, world, port, out, args)) for r in range(world)]
    for process in ranks:
        process.start()
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
        for process in ranks:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()
    return [results[rank] for rank in range(world)]
