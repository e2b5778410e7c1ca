"""DeepSpeed's C++ operations, compiled once into a folder that later processes load them from.

torch marks a folder in which it builds by a file `lock`, and whoever finds that waits until it is gone: for ever, where the
builder was killed. Here the processes of a machine take turns by a lock on its own disk, which the kernel gives back when
the holder dies, and a mark with the machine's name tells the next one that whoever built there did not come to an end, so
that torch's file is nobody's any more.
Gives up: a builder of another program or another machine, killed in the same folder; its file is waited for as torch does.
"""

import hashlib
import math
import os
import tempfile
from pathlib import Path

from ser.distributed import prepare_environment
from shards.lock import hold

BUILDING = "ser-builds-"  # and the machine


def compile_operations() -> None:
    """Load what DeepSpeed computes collectives of CPUs with; compiles it where that was not done (a minute)."""
    prepare_environment()
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops import __compatible_ops__  # pyright: ignore[reportAttributeAccessIssue]
    from torch.utils.cpp_extension import _get_build_directory

    accelerator = get_accelerator()
    assert accelerator is not None
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is None or not __compatible_ops__.get(builder.NAME, False) or installed_ops.get(builder.name):
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    mark = folder / f"{BUILDING}{os.uname().nodename}"
    with hold(_turn(folder), "DeepSpeed's operations are being compiled", "wait for it", patience=math.inf):
        if mark.exists():
            (folder / "lock").unlink(missing_ok=True)
        mark.touch()
        builder.load(verbose=False)
        mark.unlink(missing_ok=True)


def _turn(folder: Path) -> str:
    """The file on this machine's own disk by which its processes take turns at a folder."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return os.path.join(tempfile.gettempdir(), f"ser-compiles-{os.getuid()}-{digest}.lock")
