"""Hub models of a recipe, for machines without internet: fetched once at one commit, hashed, and checked where they are used.

`fetch` writes `<recipe>.hub.json` beside the recipe: name, what was asked for, commit, sha256 of every file. A recipe that is
read takes its commits from there (`pinned`), so that they stand in its resolved form and in every job.

Guarantees: with HF_HUB_OFFLINE=1 a hub model without a commit, one that is not whole in the cache, and one whose files
are not those that were fetched are refused before anything starts. Fetching again gives the same commit, and the same bytes
or an error. The cache is huggingface_hub's own (HF_HOME), so every other program reads it too.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ser.contents import sha256_of
from ser.models.config import FusedConfig, ModelConfig, PretrainedConfig
from ser.strict import Strict
from shards import atomic
from shards.errors import UserError

if TYPE_CHECKING:
    from ser.recipe import Recipe

COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS = (".safetensors", ".bin")
BESIDE = (".json", ".txt", ".model", ".jinja")
# Looked for whether or not a repository has it; that it has none is remembered in the cache.
ASKED_FOR = "preprocessor_config.json"


class Pinned(Strict):
    """A hub model at one commit.

    Attributes:
        name: On the hub.
        asked: The branch, tag or commit that the recipe names; None is the default branch.
        revision: The commit.
        files: sha256 by file name.
    """

    name: str
    asked: str | None = None
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    files: dict[str, str] = {}


def hub_models(recipe: "Recipe") -> Iterator[tuple[str, PretrainedConfig]]:
    """(model of the recipe, configuration) of everything that is named on the hub; local folders are not."""
    for name, entry in recipe.models.items():
        for part in pretrained_parts(entry.model):
            if part.name and not is_folder(part.name):
                yield name, part


def pretrained_parts(config: ModelConfig | None) -> Iterator[PretrainedConfig]:
    """Every backbone of the transformers library in a model's own configuration."""
    if isinstance(config, FusedConfig):
        for part in config.components.values():
            yield from pretrained_parts(part)
    elif isinstance(config, PretrainedConfig):
        yield config


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder of this machine."""
    return Path(name).expanduser().is_dir()


def lock_of(recipe_file: Path) -> Path:
    """Where the commits of a recipe's hub models stand: `recipe.yaml` -> `recipe.hub.json`."""
    return recipe_file.with_suffix(".hub.json")


def pinned(values: dict[str, Any], recipe_file: Path) -> dict[str, Any]:
    """A recipe's plain values with the commits of its lock file in place; unchanged where there is none.

    Raises:
        UserError: The lock file cannot be read.
    """
    lock = lock_of(recipe_file)
    if not lock.is_file():
        return values
    try:
        entries = [Pinned(**one).model_dump() for one in json.loads(lock.read_text())["models"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the lock file of hub models cannot be read: {str(error).splitlines()[0]}",
            where=str(lock),
            hint="delete it, and run ser fetch RECIPE again",
        ) from None
    commits = {(one["name"], one["asked"]): one["revision"] for one in entries}

    def pin(value: Any) -> Any:
        if isinstance(value, list):
            return [pin(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {key: pin(item) for key, item in value.items()}
        name, asked = found.get("name"), found.get("revision")
        if isinstance(name, str) and (name, asked) in commits and not is_folder(name):
            found["revision"] = commits[name, asked]
        return found

    models = {name: pin(entry) for name, entry in (values.get("models") or {}).items()}
    # What the recipe itself says of a model stands above what lies beside it.
    said = {(one.get("name"), one.get("revision")) for one in values.get("hub") or []}
    more = [one for one in entries if (one["name"], one["revision"]) not in said]
    return {**values, "models": models, "hub": [*(values.get("hub") or []), *more]}


def check(recipe: "Recipe") -> None:
    """Refuse hub models that a job without internet cannot load, or that are not what was fetched.

    Raises:
        UserError: Naming the key, and the command to run where there is internet.
    """
    named = list(hub_models(recipe))
    if not named:
        return
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.is_offline_mode():
        refuse_unpinned(recipe, "HF_HUB_OFFLINE is set")
    command = _command(recipe)
    known = {(one.name, one.revision): one for one in recipe.hub}
    for model, config in named:
        assert config.name is not None
        offline = constants.is_offline_mode() or config.local_files_only
        revision = config.revision or ""
        if not COMMIT.fullmatch(revision):
            continue
        entry = known.get((config.name, revision))
        wanted = entry.files if entry else {"config.json": ""}
        for file, sha in wanted.items():
            found = try_to_load_from_cache(config.name, file, revision=revision)
            if not isinstance(found, str):
                if offline:
                    raise UserError(
                        f"{file} of the hub model {config.name} at {revision[:12]} is not in the cache",
                        where=f"{recipe.name}: models.{model}",
                        hint=command,
                    )
            elif sha and sha256_of(Path(found)) != sha:
                raise UserError(
                    f"{file} of the hub model {config.name} is not the file that was fetched: its sha256 differs",
                    where=found,
                    hint=f"delete it, then {command}",
                )


def refuse_unpinned(recipe: "Recipe", why: str) -> None:
    """Refuse hub models whose commit is not known, where no hub can be asked for it.

    Raises:
        UserError: Says `why`, and names the key and the command to run where there is internet.
    """
    for model, config in hub_models(recipe):
        revision = config.revision or ""
        if not COMMIT.fullmatch(revision):
            raise UserError(
                f"{why}, and the hub model {config.name} has no commit"
                + (f" ({revision} may move)" if revision else ""),
                where=f"{recipe.name}: models.{model}: revision",
                hint=_command(recipe),
            )


def _command(recipe: "Recipe") -> str:
    from huggingface_hub import constants

    return f"where there is internet, with the same HF_HOME ({constants.HF_HOME}): ser fetch {recipe.name}"


def fetch(
    recipe: "Recipe", recipe_file: Path, update: bool = False, say: Callable[[str], None] = print
) -> list[Pinned]:
    """Put every hub model of a recipe into the cache, and write its lock file.

    Args:
        recipe: As it was read; commits of an older lock file are kept.
        recipe_file: The lock file lies beside it.
        update: Ask again which commits the names stand for.
        say: Told what was fetched, a line a model.

    Returns:
        The models, in order of the recipe.

    Raises:
        UserError: No internet, no such model or revision, files that differ from the lock file's, no place to write.
    """
    from huggingface_hub import constants

    before = {(one.name, one.revision): one for one in recipe.hub}
    found: dict[tuple[str, str | None], Pinned] = {}
    for model, config in hub_models(recipe):
        assert config.name is not None
        old = before.get((config.name, config.revision or ""))
        asked = old.asked if old else config.revision
        if (config.name, asked) in found:
            continue
        one = _fetch(config.name, asked, None if update or old is None else old.revision, f"models.{model}")
        if old is not None and one.revision == old.revision and (odd := _differing(old.files, one.files)):
            raise UserError(
                f"{odd} of {one.name} is not what the lock file says",
                where=str(lock_of(recipe_file)),
                hint=f"somebody changed the cache or the lock file: delete {constants.HF_HUB_CACHE} of this model, or fetch with --update",
            )
        found[config.name, asked] = one
        say(f"{one.name} at {one.revision}: {len(one.files)} files")
    lock = lock_of(recipe_file)
    if found:
        try:
            text = json.dumps({"models": [one.model_dump() for one in found.values()]}, indent=1)
            atomic.write(lock, text.encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"the lock file cannot be written: {error.strerror}",
                where=str(lock),
                hint=f"copy the recipe to a folder of yours: ser recipe {recipe.name} > my.yaml; ser fetch my.yaml",
            ) from None
    return list(found.values())


def _differing(old: dict[str, str], new: dict[str, str]) -> str:
    return next((name for name, sha in old.items() if new.get(name) != sha), "")


def _fetch(name: str, asked: str | None, commit: str | None, where: str) -> Pinned:
    """One model, all files that are read of it, at `commit` or at what `asked` stands for now."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # Of the HTTP library, whichever it is: no connection.
    transport: type[Exception] = HfHubHTTPError.__mro__[1]  # pyright: ignore[reportAssignmentType]
    try:
        about = HfApi().model_info(name, revision=commit or asked)
        revision = str(about.sha)
        files = chosen([sibling.rfilename for sibling in about.siblings or []])
        local = {file: Path(hf_hub_download(name, file, revision=revision)) for file in files}
        if ASKED_FOR not in local:
            with contextlib.suppress(EntryNotFoundError):  # the cache knows then that there is none
                hf_hub_download(name, ASKED_FOR, revision=revision)
    except (transport, OSError, ValueError) as error:
        first = str(error).strip().splitlines()
        raise UserError(
            f"the hub model {name} cannot be fetched: {first[0] if first else type(error).__name__}",
            where=where,
            hint="check the name and revision, the network (HF_ENDPOINT, HF_HUB_OFFLINE), and your login (HF_TOKEN) for gated models",
        ) from error
    return Pinned(
        name=name, asked=asked, revision=revision, files={file: sha256_of(at) for file, at in local.items()}
    )


def chosen(names: list[str]) -> list[str]:
    """Of a repository's files those that are read: configurations, tokenizers, and one form of weights.

    Raises:
        ValueError: There are no weights.
    """
    top = [name for name in names if "/" not in name]
    weights = [[name for name in top if name.endswith(suffix)] for suffix in WEIGHTS]
    read = next((found for found in weights if found), [])
    if not read:
        raise ValueError(f"no weights among its files ({', '.join(WEIGHTS)})")
    beside = [name for name in top if name.endswith(BESIDE)]
    return sorted(name for name in {*read, *beside} if not name.startswith(("training_args", "optimizer")))
