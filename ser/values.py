"""Plain values of a recipe, before they are validated: laid upon each other, overridden, filled from the environment.

Guarantees: nothing here changes what it was given, but `set_dotted`, whose purpose it is.
"""

import copy
import os
import re
from pathlib import Path
from typing import Any

from shards.errors import UserError


def unshared(value: Any) -> Any:
    """A copy in which no two places share an object."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid upon it; mappings merge, anything else is replaced."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def set_dotted(values: dict[str, Any], key: str, value: Any, *, where: str = "") -> None:
    """Set `a.b.c` inside nested mappings (and lists by number); missing mappings are made.

    Raises:
        UserError: The way leads through a plain value, or to a place that a list does not have.
    """
    *parents, last = key.split(".")
    node: Any = values
    for i, part in enumerate(parents):
        node = node[_place(node, key, i, where)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise UserError(f"override {key!r} goes through {part!r}, which is a plain value", where=where)
    if isinstance(node, list):
        node[_place(node, key, len(parents), where)] = value
    else:
        node[last] = value


def dotted(values: Any, key: str) -> list[str]:
    """Dotted keys of the leaves below `key`; the key itself for a plain value or an empty mapping."""
    if not isinstance(values, dict) or not values:
        return [key]
    return [leaf for name, value in values.items() for leaf in dotted(value, f"{key}.{name}")]


def overlap(a: str, b: str) -> bool:
    """True when one dotted key is the other or lies below it."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _place(items: list[Any], key: str, part: int, where: str) -> int:
    """Number of a list's item that part `part` of a dotted key names."""
    parts = key.split(".")
    if not parts[part].isdecimal() or int(parts[part]) >= len(items):
        name = ".".join(parts[: part + 1])
        raise UserError(
            f"override {key!r}: a list of {len(items)} has no {name!r}", where=where, hint="0 is the first"
        )
    return int(parts[part])


def corpora_root() -> str | None:
    """Folder of the open corpora: $SER_CORPORA, else ../shared/corpora beside the checkout."""
    named = os.environ.get("SER_CORPORA")
    if named:
        return named
    beside = Path(__file__).resolve().parents[2] / "shared" / "corpora"
    return str(beside) if beside.is_dir() else None


def expand(values: Any) -> Any:
    """Replace `${NAME}` by environment variables in every string; SER_CORPORA has a default."""
    if isinstance(values, dict):
        return {key: expand(value) for key, value in values.items()}
    if isinstance(values, list):
        return [expand(value) for value in values]
    if not isinstance(values, str):
        return values

    def lookup(match: re.Match[str]) -> str:
        name = match.group(1)
        value = corpora_root() if name == "SER_CORPORA" else os.environ.get(name)
        if value is None:
            raise UserError(
                f"the recipe needs the environment variable {name}", where=values, hint=f"export {name}=..."
            )
        return value

    return re.sub(r"\$\{([A-Z_][A-Z0-9_]*)\}", lookup, values)
