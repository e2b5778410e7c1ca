"""What a run was made with: versions, machine, the code's commit. Recorded, never part of an identity."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "deepspeed",
    "ray",
    "transformers",
    "torchaudio",
    "webdataset",
    "optuna",
    "numpy",
    "scipy",
    "pyarrow",
)


def describe() -> dict[str, Any]:
    """Versions of the packages that compute, the machine, and the commit of this checkout where there is one."""
    import torch

    return {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
