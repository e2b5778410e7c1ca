"""The house's order: who may import whom, what lies where, and what never stands in a source file."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("shards", "ser", "cluster", "launch")
MAY_IMPORT = {
    "shards": {"shards"},
    "ser": {"shards", "ser"},
    "cluster": {"shards", "ser", "cluster"},
    "launch": {"shards", "ser", "cluster", "launch"},
}
SHARDS_LIBRARIES = {
    "numpy", "scipy", "soundfile", "soxr", "torch", "torchaudio", "webdataset", "pyarrow", "fsspec",
}  # fmt: skip
# espeak-ng makes the synthetic corpus; PyYAML reads one corpus's own YAML files. Both are imported on use.
SHARDS_LAZY = {"espeakng_loader", "yaml"}
NEVER = {"ser": {"ray"}, "shards": {"ray", "deepspeed", "transformers", "pydantic"}}
TOP_LEVEL = {
    "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "requirements.lock",
    "shards", "ser", "cluster", "launch", "tests",
}  # fmt: skip


def sources(*folders: str) -> list[Path]:
    """Python files of the repository."""
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level module, on loading the file) of every import; those inside functions are made on use."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.split(".")[0], id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0], id(node) not in inside
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "__import__",
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value).split(".")[0], False


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder):
    for path in sources(folder):
        for module, _ in imports(path):
            if module in FOLDERS:
                assert module in MAY_IMPORT[folder], f"{path} imports {module}"
            assert module != "tests", f"{path} imports tests"
            assert module not in NEVER.get(folder, ()), f"{path} imports {module}"


def test_shards_stands_on_few_libraries():
    known = set(sys.stdlib_module_names) | {"shards"} | SHARDS_LIBRARIES
    for path in sources("shards"):
        for module, at_once in imports(path):
            assert module in known or (module in SHARDS_LAZY and not at_once), f"{path} imports {module}"


@pytest.mark.parametrize(
    "module,absent",
    [
        ("shards.dataset", ("ser", "ray", "deepspeed", "transformers", "pydantic")),
        ("ser.recipe", ("ray", "deepspeed", "transformers", "matplotlib", "sklearn")),
        ("launch.cli", ("ray", "deepspeed", "transformers", "torch", "matplotlib")),
    ],
)
def test_heavy_libraries_are_imported_on_use(module, absent):
    code = f"import sys, {module}; print(sorted(set(sys.modules) & set({absent!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tracked() -> list[str]:
    """Paths that git knows or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_the_top_level_holds_what_is_allowed():
    top = {path.split("/")[0] for path in tracked()}
    strange = {name for name in top - TOP_LEVEL if not name.startswith(".")}
    assert strange == set()


FORBIDDEN = {
    "unpickling": r"^\s*(import|from) (pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b|pickle\.loads?\(",
    "a shell": r"shell\s*=\s*True|os\.system\(|os\.popen\(|pipe:",
    "eval": r"(?<![\w.])(eval|exec)\(",
    "unsafe YAML": r"yaml\.(load|unsafe_load|full_load)\(",
    "extracting archives": r"\.extractall\(|\b(tar|archive|zip\w*)\.extract\(",
    "numpy pickles": r"allow_pickle\s*=\s*True",
}


# Batches travel from this process's own workers through shared memory; no file is read.
EXEMPT = {("unpickling", "shards/parcel.py")}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_source_runs_what_it_reads(what):
    found = []
    for path in sources(*FOLDERS):
        if (what, str(path.relative_to(ROOT))) in EXEMPT:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("#")[0]
            if re.search(FORBIDDEN[what], code) and not code.lstrip().startswith(('"', "'")):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_no_checkpoint_brings_its_own_code():
    """Left out, transformers would ask on the terminal."""
    calls = 0
    for path in sources(*FOLDERS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
                calls += 1
    assert calls >= 3


def test_torch_load_is_always_weights_only():
    for path in sources(*FOLDERS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load_checkpoint"):
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_only_the_engine_lets_deepspeed_load():
    """DeepSpeed unpickles; `ser.checkpoint` has checked every hash before."""
    users = [p.name for p in sources(*FOLDERS) if re.search(r"\.load_checkpoint\(", p.read_text())]
    assert users == ["engine.py"]
    callers = [p.name for p in sources(*FOLDERS) if re.search(r"engine\.load\(", p.read_text())]
    assert callers == ["checkpoint.py"]


def test_sources_are_ascii_without_places_of_one_machine():
    for name in tracked():
        path = ROOT / name
        if (
            path.suffix in (".py", ".yaml", ".toml", ".md", ".html", "")
            and path.is_file()
            and "tests/data" not in name
        ):
            text = path.read_bytes()
            assert text.isascii(), f"{name} is not ASCII"
            assert not re.search(rb"/(root|home/\w+|work)/", text), f"{name} names a place of one machine"


def test_every_module_says_what_it_is():
    for path in sources(*FOLDERS):
        text = path.read_text()
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_files_are_short():
    long = {
        str(p.relative_to(ROOT)): n
        for p in sources(*FOLDERS, "tests")
        if (n := len(p.read_text().splitlines())) > 400
    }
    assert long == {}
