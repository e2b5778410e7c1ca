"""Which generation of its dataset a run reads: written down when the run first opens it, and kept.

Guarantees: every process of a run reads the generation that stands in `<run>/dataset.json`, whatever others add to the
dataset meanwhile. The next call of `ser run` moves to the newest one, and says so, where the recipe's `data` or
`protocol` changed, a speaker was withdrawn since, or the old generation is gone (erased, packed anew).
Gives up: a withdrawal reaches a run at its next call, not in its middle. Two runs of one directory are not arbitrated here.

Each dataset also knows the directories of its runs (`runs/<hash>.json` beside its shards), so that whoever asks who has
heard a speaker finds their models.
"""

import hashlib
import json
import socket
from typing import Any

from ser.checkpoint import write_json
from ser.recipe import Recipe
from shards import manifest
from shards.errors import UserError
from shards.store import Store

NAME = "dataset.json"


def read(recipe: Recipe) -> dict[str, Any] | None:
    """The run's pin ({generation, content_hash, asked}); None where there is none or the recipe asks for other data."""
    path = recipe.directory / NAME
    if not path.is_file():
        return None
    pin = json.loads(path.read_text())
    return pin if pin["asked"] == _asked(recipe) else None


def missing_withdrawals(pin: dict[str, Any], meta: dict[str, Any]) -> list[str]:
    """Speakers that were withdrawn after the pinned generation."""
    return [entry["speaker"] for entry in meta["withdrawn"] if entry["generation"] > pin["generation"]]


def settle(recipe: Recipe) -> str:
    """Pin the run to a generation, or move it to the newest where it must be.

    Returns:
        What there is to say about it in one line, or "".

    Raises:
        UserError: There is no dataset.
    """
    meta = manifest.require(Store(recipe.data.path))
    path, newest = recipe.directory / NAME, meta["generation"]
    old = json.loads(path.read_text()) if path.is_file() else None
    why = "" if old is None else _why_move(recipe, old, meta)
    if old is not None and not why:
        if old["generation"] == newest:
            return ""
        return f"data: this run keeps generation {old['generation']}; the newest is {newest} (delete {path} to move to it)"
    recipe.directory.mkdir(parents=True, exist_ok=True)
    pin = {"generation": newest, "content_hash": meta["content_hash"], "asked": _asked(recipe)}
    write_json(path, pin)
    if old is None or (old["generation"], old["content_hash"]) == (newest, meta["content_hash"]):
        return ""
    return f"data: generation {old['generation']} -> {newest}, because {why}; only trainings whose own rows changed are repeated"


def refuse_withdrawn(recipe: Recipe) -> None:
    """For a training that is started alone: refuse a pin that is older than a withdrawal.

    Raises:
        UserError: Who was withdrawn since, and how to move on.
    """
    pin = read(recipe)
    if pin is None:
        return
    gone = missing_withdrawals(pin, manifest.require(Store(recipe.data.path)))
    if gone:
        raise UserError(
            f"this run reads generation {pin['generation']}, and {', '.join(gone[:3])} left the dataset since",
            where=str(recipe.directory / NAME),
            hint=f"delete this file to read the newest generation (ser run {recipe.name} does so)",
        )


def _asked(recipe: Recipe) -> dict[str, Any]:
    asked = {"data": recipe.data.model_dump(mode="json"), "protocol": recipe.protocol}
    return json.loads(json.dumps(asked))  # as it is read back


def _why_move(recipe: Recipe, pin: dict[str, Any], meta: dict[str, Any]) -> str:
    """Why a pin no longer holds, "" where it does."""
    if pin["asked"] != _asked(recipe):
        return "the recipe's data or protocol changed"
    gone = missing_withdrawals(pin, meta)
    if gone:
        return f"{', '.join(gone[:3])}{' and others' if len(gone) > 3 else ''} withdrawn since"
    held = [shard for shard in meta["shards"] if shard["generation"] <= pin["generation"]]
    if manifest.content_hash(held) != pin["content_hash"]:
        return "the old one is gone"
    return ""


def register(recipe: Recipe) -> None:
    """Tell the dataset where this run lies."""
    run = recipe.address
    name = f"runs/{hashlib.sha256(run.encode()).hexdigest()[:16]}.json"
    store = Store(recipe.data.path)
    if not store.exists(name):
        about = {"run": run, "recipe": recipe.name, "host": socket.gethostname()}
        store.put(name, json.dumps(about, indent=1, sort_keys=True).encode())


def registered(store: Store) -> list[tuple[str, str]]:
    """(directory or address, host) of every run that has read this dataset."""
    found = [json.loads(store.read(name)) for name in store.list("runs") if name.endswith(".json")]
    return [(str(one["run"]), str(one["host"])) for one in found]
