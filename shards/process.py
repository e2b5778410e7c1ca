"""Which process somebody else's number means: by its start, and by the machine that numbers it."""

import contextlib
import os
from pathlib import Path


def started(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is no such process, or only its remains."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def place() -> dict[str, str]:
    """Where process numbers mean the same: host, boot, and the container's own numbering."""
    boot, numbering = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbering = os.readlink("/proc/self/ns/pid")
    return {"host": os.uname().nodename, "boot": boot, "numbering": numbering}
