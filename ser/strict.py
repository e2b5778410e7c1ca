"""Configuration models that refuse unknown keys and name the nearest known one."""

import difflib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from shards.errors import UserError

T = TypeVar("T", bound=BaseModel)


class Strict(BaseModel):
    """Base of every configuration model: frozen, and an unknown key is an error that names its nearest neighbour.

    Keys in `LATER` are not written while they have their default, so that what was made before they existed keeps its
    identity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        quiet = {
            k
            for k in self.LATER
            if getattr(self, k) == type(self).model_fields[k].get_default(call_default_factory=True)
        }
        return {key: value for key, value in values.items() if key not in quiet}

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            known = {name for name in cls.model_fields} | {
                f.alias for f in cls.model_fields.values() if f.alias
            }
            for key in values:
                if key not in known:
                    near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.5)
                    nearest = (
                        f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
                    )
                    raise ValueError(f"unknown key {key!r}{nearest}")
        return values


def validate(model: type[T], values: Any, *, where: str) -> T:
    """Build `model` from plain values; every mistake becomes one UserError that lists where each lies."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"]) or "top level"
            message = item["msg"].removeprefix("Value error, ")
            given = "" if "unknown key" in message else f" (given: {item.get('input')!r})"
            lines.append(f"{place}: {message}{given[:120]}")
        raise UserError(
            "\n  ".join(lines), where=where, hint="mend these keys; `ser recipe NAME` prints one in full"
        ) from None


def read_yaml(path: str | Path) -> Any:
    """Plain values of a YAML file; a syntax error becomes a UserError with line and column."""
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"not UTF-8 text: byte {error.object[error.start]:#04x}",
            where=f"{path}:{line}",
            hint="save the file as UTF-8",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"not valid YAML: {getattr(error, 'problem', error)}", where=place) from None
