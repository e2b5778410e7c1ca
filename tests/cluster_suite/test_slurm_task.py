"""Tasks of a Slurm job that cannot come together, without Slurm: two processes with its variables."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Read before anything else by the Python of a machine whose environment is not that of the first.
OTHER_VERSION = """
import importlib.util, sys
spec = importlib.util.find_spec("ray")
version = importlib.util.spec_from_file_location("ray._version", spec.submodule_search_locations[0] + "/_version.py")
module = importlib.util.module_from_spec(version)
version.loader.exec_module(module)
module.version = "0.0.1"
sys.modules["ray._version"] = module
"""


def task(home: Path, rank: int, *paths: Path) -> subprocess.Popen:
    """One task of a job of two machines."""
    command = [sys.executable, "-m", "launch.slurm_task", "ray", str(home), str(home / "outcome.json")]
    env = os.environ | {
        "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT])),
    }  # fmt: skip
    return subprocess.Popen(
        [*command, sys.executable, "-c", "print('it ran')"],
        cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_machine_with_another_ray_ends_the_job_in_its_own_words(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    (other / "sitecustomize.py").write_text(OTHER_VERSION)
    tasks = [task(home, 0), task(home, 1, other)]
    try:
        said = [one.communicate(timeout=300)[0] for one in tasks]  # left alone the first waits for 600 s
    finally:
        for one in tasks:
            for child in psutil.Process(one.pid).children(recursive=True) if one.poll() is None else ():
                child.kill()
            one.kill()
    assert tasks[0].returncode == 2, said[0]
    assert "Ray did not start on a machine of this job" in said[0] and os.uname().nodename in said[0]
    assert "Version mismatch" in said[0] and "0.0.1" in said[0] and "it ran" not in said[0]
    assert not list(home.iterdir()), "meeting, token and words are removed"
