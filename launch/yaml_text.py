"""YAML for people: keys in the order given, scripts as blocks."""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def dump(values: Any) -> str:
    """One document."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=1000)
