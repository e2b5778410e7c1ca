"""ser.doctor and ser.environment: what is wrong is found, what is mended is only that, and nothing is guessed."""

import importlib.util
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from ser import doctor, environment


@pytest.fixture
def audio(tmp_path, monkeypatch):
    """A torchaudio folder with one compiled file beside a torch of our choosing."""
    folder = tmp_path / "torchaudio"
    (folder / "lib").mkdir(parents=True)
    for name in ("__init__.py", "lib/_torchaudio.so", "lib/notes.txt"):
        (folder / name).touch()
    real = importlib.util.find_spec
    found = SimpleNamespace(origin=str(folder / "__init__.py"))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: found if name == "torchaudio" else real(name, *rest)
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    return folder


def of(check):
    return next(finding for finding in doctor.examine() if finding.check == check)


@pytest.mark.slow
def test_an_extension_beside_a_cpu_torch_is_found_and_only_it_is_removed(audio):
    found = of("torchaudio loads beside this torch")
    assert not found.well and "--mend" in found.advice
    assert doctor.mend() == 1 and doctor.mend() == 0
    assert sorted(p.name for p in audio.rglob("*") if p.is_file()) == ["__init__.py", "notes.txt"]
    assert of("torchaudio loads beside this torch").well


@pytest.mark.slow
def test_an_extension_that_loads_stays(audio):
    """A CPU build of torchaudio, whose extension is in use."""
    import _ctypes

    shutil.copy(_ctypes.__file__, audio / "lib" / "good.so")
    assert [path.name for path in doctor.torchaudio_extensions()] == ["_torchaudio.so"]
    assert doctor.mend() == 1
    assert (audio / "lib" / "good.so").exists() and not (audio / "lib" / "_torchaudio.so").exists()


@pytest.mark.parametrize("kind", ["cuda", "hip"])
def test_a_torch_with_a_gpu_keeps_its_extension(audio, monkeypatch, kind):
    monkeypatch.setattr(torch.version, kind, "12.8")
    assert doctor.torchaudio_extensions() == [] and doctor.mend() == 0
    assert (audio / "lib" / "_torchaudio.so").exists()


def test_what_is_missing_is_named_with_what_to_type(audio, monkeypatch, tmp_path, capsys):
    here = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *r: None if name == "ray" else here(name, *r)
    )
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("SER_CORPORA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(doctor.sys, "argv", ["doctor", "--mend"])
    assert doctor.main() == 1
    lines = capsys.readouterr().out.splitlines()
    bad = {line[5:]: lines[i + 1] for i, line in enumerate(lines) if line.startswith("FAIL")}
    assert set(bad) == {"ninja", "C++ compiler", "ray", "SER_CORPORA"}
    assert "ser-distill[cluster]" in bad["ray"] and "nowhere" in bad["SER_CORPORA"]
    assert "pip install ninja" in bad["ninja"] and "g++" in bad["C++ compiler"]


def test_all_well_is_exit_code_0(monkeypatch, capsys):
    well = [doctor.Finding("a", True, "do not print this")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(well))
    monkeypatch.setattr(doctor.sys, "argv", ["doctor"])
    assert doctor.main() == 0 and capsys.readouterr().out == "ok   a\n"


def test_the_environment_tells_versions_and_the_commit_of_this_checkout_only(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-here"))
    import numpy

    told = environment.describe()
    assert told["packages"] == {"numpy": numpy.__version__, "no-such-package-here": None}
    assert told["cpus"] >= 1 and isinstance(told["gpus"], list)

    checkout = tmp_path / "checkout"
    (checkout / "ser").mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(checkout / "ser" / "environment.py"))
    assert environment.describe()["commit"] is None
    run = [
        "git",
        "-C",
        str(checkout),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "commit.gpgsign=false",
    ]
    subprocess.run([*run, "init", "-q"], check=True)
    assert environment.describe()["commit"] in (None, "HEAD"), "a checkout without a commit"
    subprocess.run([*run, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    commit = environment.describe()["commit"]
    assert commit is not None and len(commit) == 40 and int(commit, 16)
