"""DeepSpeed's C++ operations, compiled once into a folder that later processes load them from.

torch marks a folder in which it builds by a file `lock`, and whoever finds that waits until it is gone: for ever, where the
builder was killed. Here processes take turns by a lock that the kernel gives back when its holder dies, and a mark of our own
tells the next one that whoever built before did not come to an end, so that torch's file is nobody's any more.
Gives up: a builder of another program, killed in the same folder; its file is waited for as torch does.
"""

import math
from pathlib import Path

from shards.lock import hold

BUILDING = "ser-builds"


def compile_operations() -> None:
    """Load what DeepSpeed computes collectives of CPUs with; compiles it where that was not done (a minute)."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__  # pyright: ignore[reportAttributeAccessIssue]
    from torch.utils.cpp_extension import _get_build_directory

    accelerator = get_accelerator()
    assert accelerator is not None
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is None or not __compatible_ops__.get(builder.NAME, False):
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    mark = folder / BUILDING
    with hold(
        folder / "ser.lock", "DeepSpeed's operations are being compiled", "wait for it", patience=math.inf
    ):
        if mark.exists():
            (folder / "lock").unlink(missing_ok=True)
        mark.touch()
        builder.load(verbose=False)
        mark.unlink()
