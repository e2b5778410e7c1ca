"""DeepSpeed's operations are loaded though whoever compiled them was killed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.submitting import until

LOAD = "from ser.compiled import compile_operations; compile_operations()"
NAME = "deepspeed_shm_comm"


@pytest.fixture
def folder(tmp_path):
    """A copy of what this environment has compiled."""
    made = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path(sys.prefix) / "torch_extensions")) / NAME
    if not (made / f"{NAME}.so").is_file():
        pytest.skip("DeepSpeed's operations are not compiled in this environment: make env")
    shutil.copytree(made, tmp_path / NAME, ignore=shutil.ignore_patterns("lock", "ser*"))
    return tmp_path / NAME


def load(folder: Path, **more: str) -> subprocess.Popen:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder.parent), **more}
    return subprocess.Popen([sys.executable, "-c", LOAD], env=environment, start_new_session=True)


@pytest.mark.slow
def test_a_builder_killed_while_it_compiles_is_followed_by_another(folder, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    stuck = tools / "ninja"  # stands for a compiler that takes its time
    stuck.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1.11.1 && exit\nexec sleep 600\n')
    stuck.chmod(0o755)
    killed = load(folder, PATH=f"{tools}:{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}")
    until((folder / "lock").exists, "torch to build", 120)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert (folder / "lock").exists(), "torch's mark outlives its builder"

    # two at once, as the workers of a training: one clears up, the other waits for it
    both = [load(folder), load(folder)]
    assert [one.wait(timeout=240) for one in both] == [0, 0]
    assert not list(folder.glob("lock")) and not list(folder.glob("ser*"))
