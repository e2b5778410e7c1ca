"""The `ser` command: its verbs, and a user's mistakes in words, with exit code 2 and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import cli
from tests import tiny
from tests.conftest import ROOT

VERBS = (
    "pack",
    "verify",
    "train",
    "targets",
    "distill",
    "evaluate",
    "report",
    "run",
    "recipe",
    "doctor",
    "data",
)


def recipe(folder: Path, **changes) -> Path:
    model = {
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "ccc"}], "train": tiny.training(1),
    }  # fmt: skip
    values = tiny.recipe_values(folder, str(folder / "dataset"), {"student": model}) | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def ser(capfd, *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of `ser ARGUMENTS`, in this process."""
    before = sys.argv
    sys.argv = ["ser", *map(str, arguments)]
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    out, err = capfd.readouterr()
    return int(code or 0), out, err  # type: ignore[call-overload]


def test_help_lists_the_verbs_in_a_second_or_so(capfd):
    code, out, _ = ser(capfd, "--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in VERBS)
    code = "import sys, launch.cli; print([m for m in ('torch', 'ray', 'deepspeed', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "help must not wait for heavy imports"


MISTAKES = {
    "no recipe": (["run", "nothing-like-this"], "no recipe 'nothing-like-this'"),
    "unknown key": (["run", "{recipe}", "models.student.train.stepss=3"], "did you mean 'steps'"),
    "not key=value": (["run", "{recipe}", "models.student"], "is not key=value"),
    "through a value": (["run", "{recipe}", "name.x=3"], "goes through 'name'"),
    "wrong type": (["run", "{recipe}", "models.student.train.steps=many"], "models.student.train.steps"),
    "bad yaml value": (["run", "{recipe}", "seeds=[1, 2"], "seeds"),
    "bad list place": (["run", "{recipe}", "data.corpora.7.root=x"], "data.corpora.7"),
    "no such list place": (["run", "{recipe}", "folds.first=x"], "folds.first"),
    "no variant": (["run", "{recipe}", "--variant", "small"], "no variant 'small'"),
    "no corpus folder": (["run", "{recipe}"], "there is no manifest"),
    "no reader": (["pack", "--corpus", "emodbb=/x", "--out", "{folder}/d"], "emodb"),
    "nothing to pack": (["pack"], "nothing to pack"),
    "not READER=FOLDER": (["pack", "--corpus", "emodb", "--out", "{folder}/d"], "is not READER=FOLDER"),
    "no dataset": (["verify", "{folder}/nowhere"], "{folder}/nowhere"),
    "no dataset to describe": (["data", "{folder}/nowhere"], "{folder}/nowhere"),
    "unknown model": (["train", "{recipe}", "--model", "studnt"], "studnt"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_in_words(name, tmp_path, capfd):
    arguments, expected = MISTAKES[name]
    places = {"recipe": recipe(tmp_path), "folder": tmp_path}
    code, out, err = ser(capfd, *(a.format(**places) for a in arguments))
    assert code == 2, out + err
    assert err.startswith("error: ") and "Traceback" not in out + err
    assert expected.format(**places) in err


def test_a_wrong_fold_and_a_wrong_model_are_named(tmp_path, tiny_dataset, capfd):
    path = recipe(tmp_path, data={"path": tiny_dataset, "corpora": [{"reader": "manifest", "root": "x"}]})
    from ser.job import digest
    from ser.recipe import load

    data = load(str(path)).data
    mark = Path(tiny_dataset) / ".recipe"
    mark.write_text(digest([c.model_dump(mode="json") for c in data.corpora] + [data.shard_seconds]))
    try:
        code, _, err = ser(capfd, "run", path, "folds=[session-ses9]")
        assert code == 2 and "no fold 'session-ses9'" in err and "session-ses0" in err
        code, _, err = ser(capfd, "train", path, "--model", "studnt")
        assert code == 2 and "no model 'studnt'" in err and "student" in err
    finally:
        mark.unlink()


def test_a_recipe_prints_in_full(tmp_path, capfd):
    code, out, _ = ser(capfd, "recipe", recipe(tmp_path), "models.student.train.steps=17")
    values = yaml.safe_load(out)
    assert code == 0 and values["models"]["student"]["train"]["steps"] == 17
    assert values["models"]["student"]["train"]["clip"] == 1.0, "defaults are printed, too"


def test_a_packed_dataset_is_verified_and_described(tiny_dataset, capfd):
    code, out, _ = ser(capfd, "verify", tiny_dataset)
    assert code == 0 and "ok" in out
    code, out, _ = ser(capfd, "data", tiny_dataset)
    assert code == 0 and "64" in out and "CC0" in out
    code, _, err = ser(capfd, "data", tiny_dataset, "--who-heard", "tiny/nobody")
    assert code == 2 and "no speaker" in err


def test_the_entry_point_is_installed():
    command = Path(sys.executable).parent / "ser"
    if not command.exists():
        pytest.skip("the package is not installed here")
    done = subprocess.run(
        [command, "run", "nothing-like-this"], capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"}
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ")
