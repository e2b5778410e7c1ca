"""A student in use: the trained model alone, in a form that other programs load.

    safetensors   this project's own folder (model.safetensors, model.json), what `ser predict` opens
    hf            a folder that transformers' AutoModelForAudioClassification loads, where the architecture is stock
    onnx          model.onnx, dynamic in batch and length, from waveform and lengths to all that the model answers

Guarantees: nothing of the training (projectors, teachers, optimiser) travels along; `hf` and `onnx` are compared with the
model itself before they are handed over, and refused where they differ; every export carries a card (README.md) with
classes, scale, protocol, whom it heard, and every licence that its data and teachers bring.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ser.export.card import card
from ser.models import SERModel, load, save
from ser.predict import find_model
from shards import atomic
from shards.errors import UserError

# What the model was, beside an export that is not this project's own folder; `ser data --who-heard` reads it.
FACTS = "ser.json"


def export(run: str, to: str, out: str | None = None, model: str | None = None) -> Path:
    """Write a trained model alone.

    Args:
        run: A training's folder, a saved model, or a run directory (then `model` names the one).
        to: "hf", "onnx" or "safetensors".
        out: Folder to write; None takes `export-<to>` beside the model.
        model: Name in the run's recipe; a run with a single student needs none.

    Returns:
        The folder.

    Raises:
        UserError: No model, a form that this model does not have, or an answer that came out otherwise.
    """
    forms: dict[str, Callable[[SERModel, dict[str, Any], Path], dict[str, Any]]] = {
        "safetensors": _own, "hf": _hf, "onnx": _onnx,
    }  # fmt: skip
    if to not in forms:
        raise UserError(f"no form {to!r}", where="ser export --to", hint=f"one of {', '.join(forms)}")
    source = choose(run, model)
    target = Path(out) if out else source.parent / f"export-{to}"
    if target.resolve() == source.resolve():
        raise UserError(
            "the export would overwrite the model itself", where=str(target), hint="give another --out"
        )
    trained, meta = load(source)
    target.mkdir(parents=True, exist_ok=True)
    told = forms[to](trained, meta, target)
    if to != "safetensors":
        atomic.write(target / FACTS, (json.dumps({"meta": meta, "export": told}, indent=1) + "\n").encode())
    atomic.write(target / "README.md", card(trained, meta, to, told).encode())
    return target


def choose(run: str, model: str | None) -> Path:
    """The saved model that is meant; of several folds and seeds the first, since they are alike in all but their data.

    Raises:
        UserError: There is none, or several and no name.
    """
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        return find_model(run)
    found = sorted(folder.glob("folds/*/*/seed-*/model/model.json"))
    found = [
        path.parent for path in found if "-part-" not in path.parts[-3] and "-trial-" not in path.parts[-3]
    ]
    roles = {path: json.loads((path / "model.json").read_text())["meta"].get("role") for path in found}
    names = {path: path.parts[-3] for path in found}
    wanted = {path for path in found if (names[path] == model if model else roles[path] == "student")}
    if len({names[path] for path in wanted}) != 1:
        known = ", ".join(dict.fromkeys(names.values())) or "none is finished"
        what = f"no finished model {model!r}" if model else "which model of this run?"
        raise UserError(what, where=run, hint=f"--model NAME; models: {known}")
    return min(wanted)


def _own(model: SERModel, meta: dict[str, Any], folder: Path) -> dict[str, Any]:
    save(model, folder, meta)
    return {}


def _hf(model: SERModel, meta: dict[str, Any], folder: Path) -> dict[str, Any]:
    from ser.export.hf import write

    return write(model, meta, folder)


def _onnx(model: SERModel, meta: dict[str, Any], folder: Path) -> dict[str, Any]:
    from ser.export.onnx import write

    return write(model, meta, folder)
