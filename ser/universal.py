"""Re-sharding: DeepSpeed's universal format, which any number of workers can load.

Guarantees: fp32 weights, both Adam moments and the step count come out of a conversion and a load as they went in, to
the bit; the converter runs in a process of its own that ends when its parent does, however that ends.
Gives up: the converter unpickles, so the caller has verified the source before; ZeRO 1 and 2 share a format, ZeRO 3 has
another one, and DeepSpeed cannot turn one into the other.
"""

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SHOWN = 400  # characters of a failed converter's last words


class ConversionFailed(Exception):
    """DeepSpeed's converter did not end well; the text is its last line."""


def family(stage: int) -> int:
    """Stages of one family read each other's universal checkpoints."""
    return {1: 2}.get(stage, stage)


def convert(source: Path, target: Path) -> None:
    """Write `source`, a checkpoint whose files the caller has verified, in universal format to `target`.

    Args:
        source: Folder that DeepSpeed saved.
        target: Folder to make. Beside it DeepSpeed leaves a file `latest_universal`.

    Raises:
        ConversionFailed: The converter failed.
    """
    base = source.parent.resolve()
    # A world of its own without an accelerator, whatever this process is a rank of.
    foreign = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # Relative names: DeepSpeed reads folder names as patterns, and those of a run directory are the user's.
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            __file__,
            str(source.resolve().relative_to(base)),
            os.path.relpath(target, base),
        ],
        cwd=base,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]  # a pipe, as asked; open until the end
        said = process.stderr.read()  # pyright: ignore[reportOptionalMemberAccess]
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                pipe.close()
    if status != 0:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
        raise ConversionFailed(lines[-1][-SHOWN:])


@contextmanager
def loading(engine: Any, optimizer: Any) -> Iterator[None]:
    """Inside, the DeepSpeed engine's `load_checkpoint` reads a universal checkpoint; afterwards what it broke is mended.

    Seen in DeepSpeed 0.19.8: ZeRO 3 gives all parameter groups the first one's hyper-parameters, and all its partitions one
    step counter, which each of them then advances; ZeRO 1 and 2 fail on a rank that holds nothing of a parameter group.

    Args:
        engine: The DeepSpeed engine.
        optimizer: The optimizer inside it.
    """
    ours = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        with _stand_ins(engine.optimizer):
            yield
    finally:
        engine._config.load_universal_checkpoint = False
    for group, values in zip(optimizer.param_groups, ours, strict=True):
        group.update(values)
    steps = [state["step"] for state in optimizer.state.values() if "step" in state]
    for state in optimizer.state.values():
        state["step"] = max(steps).clone()


@contextmanager
def _stand_ins(wrapped: Any) -> Iterator[None]:
    """Give each group of which this rank holds nothing a parameter that DeepSpeed's loader finds nothing for."""
    import torch

    name = "load_hp_checkpoint_state_from_checkpoint_dir"  # of ZeRO 1 and 2
    original = getattr(wrapped, name, None)
    if original is None:
        yield
        return

    def load(groups_name: str, folder: str) -> None:
        groups, added = getattr(wrapped, groups_name), []
        for group in groups:
            if all(parameter._hp_mapping is None for parameter in group):
                stand_in: Any = torch.nn.Parameter(torch.empty(0))
                stand_in._hp_mapping = SimpleNamespace(get_optim_state_keys=list)
                stand_in.load_hp_checkpoint_state = lambda *_, **__: None
                wrapped.param_names[stand_in] = ""
                group.append(stand_in)
                added.append((group, stand_in))
        try:
            original(groups_name, folder)
        finally:
            for group, stand_in in added:
                group.pop()
                del wrapped.param_names[stand_in]

    setattr(wrapped, name, load)
    try:
        yield
    finally:
        delattr(wrapped, name)


def _end_with_parent() -> None:
    """End this process when the one that holds the other end of standard input is gone."""

    def watch() -> None:
        os.read(0, 1)  # unbuffered: a buffer's lock would be held when this process ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """The converter's process: SOURCE TARGET, both relative to the working directory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("target")
    given = parser.parse_args()
    _end_with_parent()
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=given.source, output_folder=given.target, num_extract_workers=1, num_merge_workers=1,
            keep_temp_folder=False, strict=True, inject_missing_state=True,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
