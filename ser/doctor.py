"""Checks of the environment that save an hour: `ser doctor`, and `python -m ser.doctor --mend --build` in the Makefile.

A torchaudio built for CUDA beside a CPU torch cannot load its extension, and `transformers` dies with it on import.
What this project uses of torchaudio is Python; `mend` removes the extension from this environment only.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it is well, and what to do when not."""

    check: str
    well: bool
    advice: str = ""


def torchaudio_extensions() -> list[Path]:
    """Compiled torchaudio files that cannot load beside this torch (empty when all is well): each is tried."""
    import torch

    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None or torch.version.cuda or torch.version.hip:
        return []
    return [path for path in sorted((Path(spec.origin).parent / "lib").glob("*.so")) if not _loads(path)]


def _loads(path: Path) -> bool:
    """Whether a compiled file loads beside torch, tried in a process of its own: a bad one can end the process."""
    code = "import ctypes, sys, torch; ctypes.CDLL(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True).returncode == 0


def examine() -> Iterator[Finding]:
    """Run every check, cheapest first."""
    yield Finding(
        "python >= 3.11", sys.version_info >= (3, 11), "make the environment with PYTHON=python3.11"
    )
    stale = torchaudio_extensions()
    yield Finding(
        "torchaudio loads beside this torch",
        not stale,
        "run: python -m ser.doctor --mend  (removes the CUDA extension that a CPU torch cannot load)",
    )
    scripts = Path(sys.prefix) / "bin"
    ninja = shutil.which("ninja") or (scripts / "ninja").exists()
    yield Finding("ninja", bool(ninja), "pip install ninja (DeepSpeed compiles its operations with it)")
    yield Finding(
        "C++ compiler",
        bool(shutil.which("g++") or shutil.which("c++")),
        "install g++ (Debian: apt-get install g++)",
    )
    for module, extra in (
        ("deepspeed", "train"),
        ("webdataset", "train"),
        ("ray", "cluster"),
        ("optuna", "cluster"),
    ):
        found = importlib.util.find_spec(module) is not None
        yield Finding(module, found, f"pip install 'ser-distill[{extra}]'")
    home = os.environ.get("SER_CORPORA", "")
    yield Finding(
        "SER_CORPORA", not home or Path(home).is_dir(), f"SER_CORPORA names {home}, which is not a folder"
    )


def mend() -> int:
    """Remove torchaudio's unloadable extension from this environment; returns how many files went."""
    stale = torchaudio_extensions()
    for path in stale:
        path.unlink()
    return len(stale)


def build() -> None:
    """Compile DeepSpeed's C++ operations once, into the folder that every later run uses."""
    from ser.compiled import compile_operations

    compile_operations()


def main() -> int:
    """Command line: print the findings; exit code 1 when one is not well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mend", action="store_true", help="remove what cannot load")
    parser.add_argument("--build", action="store_true", help="compile DeepSpeed's operations now")
    arguments = parser.parse_args()
    if arguments.mend:
        mend()
    findings = list(examine())
    for finding in findings:
        print(
            f"{'ok  ' if finding.well else 'FAIL'} {finding.check}"
            + ("" if finding.well else f"\n     {finding.advice}")
        )
    if arguments.build:
        build()
    return 0 if all(f.well for f in findings) else 1


if __name__ == "__main__":
    raise SystemExit(main())
