"""The `ser` command: its verbs, and a user's mistakes in words, with exit code 2 and no traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
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
        "role": "baseline", "model": tiny.CONV, "objective": [{"loss": "cross_entropy"}], "train": tiny.training(1),
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
    "an empty variant": (["run", "{recipe}", "--variant", "empty"], "the variant 'empty' holds no keys"),
    "a variant of words": (["run", "{recipe}", "--variant", "words"], "the variant 'words' is no mapping"),
    "not UTF-8": (["run", "{folder}/latin.yaml"], "not UTF-8 text: byte 0xe4"),
    "a number as a key": (["run", "{folder}/number.yaml"], "unknown key 3"),
    "a list of models": (
        ["run", "{recipe}", "models=[{{train: {{}}}}]", "models.0.train.steps=2"],
        "models: Input should be a valid dictionary",
    ),
    "a limit of a recipe's": (
        ["pack", "{recipe}", "--max-seconds", "9"],
        "a recipe and --max-seconds do not go",
    ),
    "an endless limit": (["run", "{recipe}", "data.max_seconds=.inf"], "data.max_seconds: Input should be"),
    "generating with an unknown key": (
        ["run", "{recipe}", "data.corpora.0={{reader: spokenaffect, root: x, generate: {{utterence: 3}}}}"],
        "did you mean 'utterances'",
    ),
    "generating with a word": (
        [
            "run",
            "{recipe}",
            "data.corpora.0={{reader: spokenaffect, root: x, generate: {{utterances: many}}}}",
        ],
        "data.corpora.0.generate.utterances",
    ),
    "generating what is not generated": (
        ["run", "{recipe}", "data.corpora.0.generate={{utterances: 3}}"],
        "`generate` is for spokenaffect alone",
    ),
    "no corpus folder": (["run", "{recipe}"], "there is no manifest"),
    "no reader": (["pack", "--corpus", "emodbb=/x", "--out", "{folder}/d"], "emodb"),
    "nothing to pack": (["pack"], "nothing to pack"),
    "a recipe and corpora": (
        ["pack", "{recipe}", "--corpus", "emodb=/x"],
        "a recipe and --corpus do not go together",
    ),
    "a recipe and a withdrawal": (["pack", "{recipe}", "--withdraw-speaker", "a/b"], "do not go together"),
    "corpora and a withdrawal": (
        ["pack", "--corpus", "emodb=/x", "--out", "{folder}/d", "--erase"],
        "--erase and --corpus do not go together",
    ),
    "a variant of nothing": (["pack", "--variant", "x", "--corpus", "emodb=/x"], "a variant of which recipe"),
    "an unknown key to pack": (["pack", "{recipe}", "data.pth=x"], "did you mean 'path'"),
    "an unknown variant to pack": (["pack", "{recipe}", "--variant", "small"], "no variant 'small'"),
    "memory": (["pack", "{recipe}", "data.path=memory://x"], "seen by one process"),
    "not READER=FOLDER": (["pack", "--corpus", "emodb", "--out", "{folder}/d"], "is not READER=FOLDER"),
    "no dataset": (["verify", "{folder}/nowhere"], "{folder}/nowhere"),
    "no dataset to describe": (["data", "{folder}/nowhere"], "{folder}/nowhere"),
    "unknown model": (["train", "{recipe}", "--model", "studnt"], "studnt"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_in_words(name, tmp_path, capfd):
    arguments, expected = MISTAKES[name]
    places = {"recipe": recipe(tmp_path, variants={"empty": None, "words": "big"}), "folder": tmp_path}
    text = places["recipe"].read_text()
    (tmp_path / "latin.yaml").write_bytes(f"about: l\u00e4ngst\n{text}".encode("latin-1"))
    (tmp_path / "number.yaml").write_text(f"3: x\n{text}")
    code, out, err = ser(capfd, *(a.format(**places) for a in arguments))
    assert code == 2, out + err
    assert err.startswith("error: ") and "Traceback" not in out + err
    assert expected.format(**places) in err


def test_a_wrong_fold_and_a_wrong_model_are_named(tmp_path, tiny_dataset, capfd):
    path = recipe(tmp_path, data={"path": tiny_dataset, "corpora": [{"reader": "manifest", "root": "x"}]})
    from launch.packing import name_of, options
    from ser.recipe import load
    from shards import origin
    from shards.store import Store

    data = load(str(path)).data
    packed = {name_of(corpus): origin.Look("", [], {}) for corpus in data.corpora}
    origin.Known(options(data), packed).save(Store(tiny_dataset))
    try:
        code, _, err = ser(capfd, "run", path, "folds=[session-ses9]")
        assert code == 2 and "no fold 'session-ses9'" in err and "session-ses0" in err
        code, _, err = ser(capfd, "train", path, "--model", "studnt")
        assert code == 2 and "no model 'studnt'" in err and "student" in err
    finally:
        (Path(tiny_dataset) / ".recipe").unlink()


def test_a_recipe_prints_in_full(tmp_path, capfd):
    code, out, _ = ser(capfd, "recipe", recipe(tmp_path), "models.student.train.steps=17")
    values = yaml.safe_load(out)
    assert code == 0 and values["models"]["student"]["train"]["steps"] == 17
    assert values["models"]["student"]["train"]["clip"] == 1.0, "defaults are printed, too"


@pytest.mark.slow
def test_a_packed_dataset_is_verified_and_described(tiny_dataset, capfd):
    code, out, _ = ser(capfd, "verify", tiny_dataset)
    assert code == 0 and "ok" in out
    code, out, _ = ser(capfd, "data", tiny_dataset)
    assert code == 0 and "64" in out and "CC0" in out
    code, _, err = ser(capfd, "data", tiny_dataset, "--who-heard", "tiny/nobody")
    assert code == 2 and "no speaker" in err


def heard(folder: Path, speaker: str) -> None:
    """What a training leaves of its exposure."""
    folder.mkdir(parents=True)
    told = {"schema": 1, "fit": [speaker], "select": [], "unknown": []}
    (folder / "model.json").write_text(json.dumps({"meta": {"exposure": told}}))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_who_heard_a_speaker_is_found_everywhere_even_when_erased(
    scheme, tmp_path, tiny_dataset, capfd, monkeypatch
):
    from ser import pin
    from ser.recipe import load
    from shards.dataset import Dataset
    from shards.targets import Output, TargetSpec, TargetStore

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("targets", "runs"))
    url = f"{scheme}{tmp_path / 'dataset'}"
    resolved = load(str(recipe(tmp_path)), [f"data.path={url}", f"run_dir={tmp_path / 'elsewhere/run'}"])
    pin.register(resolved)
    told = {"schema": 1, "fit": ["tiny/s7"], "select": [], "unknown": []}
    spec = TargetSpec("text", (Output("logits", "utterance", (4,), "float32"),), {"exposure": told})
    TargetStore.create(Dataset.open(url), spec)
    heard(resolved.directory / "folds/f/m/seed-0/model", "tiny/s7")
    heard(tmp_path / "exports/mine", "tiny/s7")
    heard(tmp_path / "exports/other", "tiny/s1")
    (tmp_path / "exports/model.json").write_text("[]")
    for state in ("", " (withdrawn)", " (withdrawn)"):
        code, out, err = ser(capfd, "data", url, "--who-heard", "tiny/s7", "--runs", tmp_path / "exports")
        assert code == 0 and f"who has heard tiny/s7{state}" in out, out + err
        for part in (
            "elsewhere/run/folds/f/m/seed-0/model",
            "exports/mine",
            f"targets/text/{spec.fingerprint}",
        ):
            assert part in out, out
        assert "exports/other" not in out
        assert (
            f"searched: 1 sets of targets; models in {tmp_path / 'elsewhere/run'}, {tmp_path / 'exports'}"
            in out
        )
        how = ["--withdraw-speaker", "tiny/s7"] if not state else ["--erase"]
        assert ser(capfd, "pack", "--out", url, *how)[0] == 0
    shutil.rmtree(resolved.directory)
    code, out, err = ser(capfd, "data", url, "--who-heard", "tiny/s7")
    assert (
        code == 0 and "models in no folder" in out and f"not searched: {resolved.directory} (of host" in err
    )
    code, _, err = ser(capfd, "data", url, "--who-heard", "tiny/s17")
    assert code == 2 and "is or was in the dataset" in err and "did you mean" in err


def test_pack_takes_a_recipes_overrides_and_variants(tmp_path, capfd, monkeypatch):
    from launch import run as stages

    asked = []
    monkeypatch.setattr(
        stages, "run", lambda recipe, display, until, only: asked.append((recipe, until)) or []
    )
    path = recipe(tmp_path, variants={"small": {"data": {"shard_seconds": 7}}})
    code, out, err = ser(capfd, "pack", path, "data.path=elsewhere", "--variant", "small")
    assert code == 0, out + err
    ((resolved, until),) = asked
    assert (resolved.data.path, resolved.data.shard_seconds, until) == ("elsewhere", 7, "pack")


def test_pack_takes_limits(tmp_path, capfd):
    (tmp_path / "wav" / "sad").mkdir(parents=True)
    for seconds in (1, 2, 121, 122, 123):
        soundfile.write(tmp_path / "wav" / "sad" / f"{seconds}.wav", np.full(seconds * 1000, 0.1), 1000)
    pack = ["pack", "--corpus", f"audiofolder={tmp_path / 'wav'}", "--workers", "1", "--out"]
    code, _, err = ser(capfd, *pack, tmp_path / "all")
    assert code == 2 and "3 of 5 utterances have broken audio" in err and "--max-quarantined" in err
    code, _, err = ser(capfd, *pack, tmp_path / "some", "--max-quarantined", "0.6")
    assert code == 0 and "3 utterances were left out" in err and "--max-seconds" in err
    code, _, err = ser(capfd, *pack, tmp_path / "all", "--max-seconds", "122.5")
    assert code == 0 and "1 utterances were left out" in err
    code, _, err = ser(capfd, *pack, tmp_path / "none", "--max-seconds", "nan")
    assert code == 2 and "max_seconds is nan" in err and not (tmp_path / "none" / "dataset.json").exists()


def test_the_entry_point_is_installed():
    command = Path(sys.executable).parent / "ser"
    if not command.exists():
        pytest.skip("the package is not installed here")
    done = subprocess.run(
        [command, "run", "nothing-like-this"], capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"}
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ")
