"""Who am I among the processes of this training: rank, world, device, and the few collectives the loop needs.

`join()` works under torchrun and Ray Train (which set RANK, WORLD_SIZE, MASTER_ADDR), and alone: a single process
gets a world of one without opening a port. A worker that lives on for several trainings joins once.
"""

import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shards.errors import UserError


@dataclass(frozen=True)
class World:
    """This process's place. `size` ranks, `rank` in 0..size-1, `device` to compute on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True on the one rank that writes logs and files."""
        return self.rank == 0


def prepare_environment() -> None:
    """Set what DeepSpeed reads from the environment; call before its first import.

    Compiled operations go to a folder inside the Python environment, so that they are built once; ninja and the
    compiler are looked up on PATH, where an environment that was not activated is missing.
    """
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    scripts = os.path.join(sys.prefix, "bin")
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    os.environ.setdefault("LOCAL_RANK", "0")


def join(timeout_seconds: float = 1800) -> World:
    """Join the process group named by the environment, or make a world of one. Safe to call again."""
    prepare_environment()
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=timeout_seconds)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=timeout)
        else:
            # An in-memory store: a world of one needs no port, so many of them can share a host.
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # documented, not in __all__
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def any_rank(flag: bool, world: World) -> bool:
    """True on every rank when `flag` is true on any."""
    if world.size == 1:
        return flag
    # int32: unlike bool, supported by every backend's reductions
    tensor = torch.tensor([int(flag)], dtype=torch.int32, device=world.device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def sum_ranks(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Sum of a tensor over all ranks (in place; the same tensor is returned)."""
    if world.size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def gather_objects(value: Any, world: World) -> list[Any]:
    """Every rank's value, in rank order, on every rank. For small results (predictions, counts)."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], Any], world: World) -> Any:
    """The main rank's `function()` on every rank, its `UserError` included: none is left waiting for the others."""
    outcome = None
    if world.main:
        try:
            outcome = function()
        except UserError as error:
            outcome = error
    outcome = gather_objects(outcome, world)[0]
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def barrier(world: World) -> None:
    """Wait for every rank."""
    if world.size > 1:
        dist.barrier()
