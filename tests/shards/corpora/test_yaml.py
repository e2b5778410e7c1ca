"""The YAML subset against PyYAML, an independent implementation."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.corpora._yaml import parse
from shards.errors import UserError

LETTERS = st.characters(
    codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff\x85\u2028\u2029"
)
TEXTS = st.text(LETTERS, max_size=30) | st.sampled_from(
    [
        "yes",
        "null",
        "1",
        "1.5",
        "a: b",
        "a #b",
        "- x",
        "it's",
        'say "x"',
        "two\nlines",
        "x\n\ny\n",
        " pad ",
        "",
        "[",
        "{}",
        "0 days",
    ]
)
WORDY = st.lists(st.text("abcdefgh", min_size=1, max_size=12), max_size=40).map(" ".join)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | TEXTS | WORDY
)
KEYS = (
    st.integers(0, 99)
    | st.text("abcxyz.-_ ", min_size=1, max_size=10).map(str.strip).filter(bool)
    | st.just("it's: x")
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=14,
)


@settings(max_examples=150, deadline=None)
@given(
    tree=st.dictionaries(KEYS, TREES, max_size=4),
    flow=st.sampled_from([None, False, True]),
    indent=st.sampled_from([2, 4]),
)
def test_reads_what_pyyaml_writes(tree, flow, indent):
    text = yaml.safe_dump(tree, default_flow_style=flow, sort_keys=False, indent=indent, allow_unicode=True)
    assert parse(text) == yaml.safe_load(text)


HAND = """\
---
# a header
name: mydb   # of today
description: A text that goes on
  over two lines.
languages: [deu, eng]
media:
  mic: {type: audio, format: wav,
        channels: 1}
notes: |
  first
    second

  third
folded: >-
  one
  two
schemes:
  speaker:
    dtype: int
    labels:
      3: {gender: male, age: 31}
      '08': {gender: female}
tables:
- a
-
  - b
  - c: 1
    d: "x\\ty \\u00e9"
empty:
url: http://x.y/z
"""


def test_reads_a_header_written_by_hand():
    assert parse(HAND) == yaml.safe_load(HAND)


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1",
        "a: !!python/object:os.system x",
        "a: *x",
        "? a\n: b",
        "a: [1, 2",
        'a: "x',
        "a: 1\n  b: 2\n c",
    ],
)
def test_refuses_what_it_does_not_read(text):
    with pytest.raises(UserError) as caught:
        parse(text, "db.yaml")
    assert "line" in str(caught.value) and "db.yaml" in str(caught.value)
