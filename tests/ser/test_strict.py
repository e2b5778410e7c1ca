"""ser.strict: every mistake in a configuration is one readable UserError that says where and what was meant."""

import pytest
from pydantic import Field, ValidationError

from ser.strict import Strict, read_yaml, validate
from shards.errors import UserError


class Inner(Strict):
    rate: float = Field(default=0.1, gt=0)
    other_name: int = Field(default=1, alias="other")


class Outer(Strict):
    inner: Inner = Inner()
    name: str


def test_an_unknown_key_names_its_nearest_neighbour_and_its_place():
    with pytest.raises(UserError, match=r"inner: unknown key 'raet'; did you mean 'rate'\?") as error:
        validate(Outer, {"name": "x", "inner": {"raet": 1}}, where="some.yaml")
    assert error.value.where == "some.yaml" and error.value.hint
    with pytest.raises(UserError, match=r"top level: unknown key 'zzz'; known: inner, name"):
        validate(Outer, {"name": "x", "zzz": 1}, where="")


def test_all_mistakes_come_at_once_with_what_was_given():
    with pytest.raises(UserError) as error:
        validate(Outer, {"name": 3, "inner": {"rate": -1}}, where="some.yaml")
    text = str(error.value)
    assert "inner.rate: Input should be greater than 0 (given: -1)" in text
    assert "name: Input should be a valid string (given: 3)" in text
    with pytest.raises(UserError, match=r"top level: .*\(given: 'text'\)"):
        validate(Outer, "text", where="some.yaml")


def test_aliases_are_known_and_what_was_built_cannot_be_changed():
    made = validate(Outer, {"name": "x", "inner": {"other": 5}}, where="")
    assert made.inner.other_name == 5
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "y"  # pyright: ignore[reportAttributeAccessIssue]  # that is the test


def test_yaml_mistakes_name_line_and_column(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(UserError, match="not valid YAML") as error:
        read_yaml(path)
    assert error.value.where == f"{path}:3:2"
    with pytest.raises(UserError, match="no such file") as error:
        read_yaml(tmp_path / "none.yaml")
    assert error.value.where == str(tmp_path / "none.yaml")
    path.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(path)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    path.write_bytes(b"a: 1\nb: l\xe4ngst\n")
    with pytest.raises(UserError, match="not UTF-8 text: byte 0xe4") as error:
        read_yaml(path)
    assert error.value.where == f"{path}:2"
    path.write_text("a: {b: [1, x]}\n")
    assert read_yaml(path) == {"a": {"b": [1, "x"]}}
