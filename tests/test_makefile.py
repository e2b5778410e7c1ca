"""The Makefile: cleaning removes what is built, never what was trained or packed."""

import shutil
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_clean_keeps_runs_and_data(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = ["runs/demo/DONE", "data/demo/dataset.json", "data/__pycache__/x", "shards/a.py"]
    gone = [".venv/bin/python", "shards/__pycache__/a.pyc", ".ruff_cache/x", "ser_distill.egg-info/PKG-INFO"]
    for name in [*kept, *gone]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    subprocess.run(["make", "--silent", "clean"], cwd=tmp_path, check=True)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"Makefile", *kept}
