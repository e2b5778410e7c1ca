"""The part of YAML that headers of audformat databases use, read without running anything.

Guarantees: block and flow mappings and lists, plain, quoted and block scalars over one or several lines, comments;
the same values as PyYAML's safe loader for what its dumper writes of dicts, lists, strings, numbers, booleans and None,
except that dates stay strings. Anything else (anchors, tags, complex keys, several documents) is refused with its line.
Why not PyYAML: this package has no other use for it.
"""

import re
from typing import NoReturn

from shards.errors import UserError

KEY = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(?:[^ \t\-?\[\]{},"'&*!|>%@`#]|[-?](?=[^ \t])).*?)[ \t]*:(?:[ \t]+(.*))?$"""
)
BLANK = " \t\r"  # what YAML calls blank; a hard space is text
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    form: value
    for word, value in {
        "true": True,
        "false": False,
        "yes": True,
        "no": False,
        "on": True,
        "off": False,
    }.items()
    for form in (word, word.title(), word.upper())
}
ESCAPES = dict(zip('0abtnvfre"/\\N_LP ', '\0\a\b\t\n\v\f\r\x1b"/\\\x85\xa0\u2028\u2029 ', strict=True))
HEX = {"x": 2, "u": 4, "U": 8}
CLOSED = {"'": re.compile(r"'(?:[^']|'')*'"), '"': re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)}


def parse(text: str, where: str = "") -> object:
    """The document as dicts, lists, strings, numbers, booleans and None.

    Raises:
        UserError: Not in the subset; names the line.
    """
    document = _Document(text, where)
    first = document.peek()
    if first is not None and document.lines[document.at].rstrip(BLANK) == "---":
        document.at += 1
        first = document.peek()
    value = None if first is None else document.node(first[0], -1)
    if document.peek() is not None:
        document.refuse("cannot be read here")
    return value


class _Document:
    """Lines and a position in them."""

    def __init__(self, text: str, where: str):
        self.lines, self.at, self.where = text.split("\n"), 0, where

    def refuse(self, why: str) -> NoReturn:
        line = self.lines[min(self.at, len(self.lines) - 1)].strip(BLANK)
        raise UserError(
            f"line {self.at + 1} {why}: {line[:60]!r}", where=self.where, hint="write it as plain block YAML"
        )

    def peek(self) -> tuple[int, str] | None:
        """(indent, content) of the next line that is neither blank nor a comment."""
        while self.at < len(self.lines):
            line = self.lines[self.at].rstrip(BLANK)
            content = line.lstrip(" ")
            if content and not content.startswith("#"):
                return len(line) - len(content), content
            self.at += 1
        return None

    def node(self, indent: int, parent: int) -> object:
        content = self.lines[self.at].rstrip(BLANK)[indent:]
        if content == "-" or content.startswith("- "):
            return self.sequence(indent)
        if content[0] not in "[{" and KEY.match(content):
            return self.mapping(indent)
        return self.inline(indent, parent)

    def sequence(self, indent: int) -> list:
        items = []
        while (next_line := self.peek()) and next_line[0] == indent and (next_line[1] + " ").startswith("- "):
            rest = next_line[1][1:]
            if rest.strip(BLANK) and not rest.strip(BLANK).startswith("#"):
                inner = indent + 1 + len(rest) - len(rest.lstrip(BLANK))
                self.lines[self.at] = " " * inner + rest.lstrip(BLANK)
                items.append(self.node(inner, indent))
            else:
                self.at += 1
                items.append(self.below(indent, indent))
        return items

    def mapping(self, indent: int) -> dict:
        result: dict = {}
        while (
            (next_line := self.peek())
            and next_line[0] == indent
            and not (next_line[1] + " ").startswith("- ")
        ):
            match = KEY.match(next_line[1])
            if match is None or next_line[1].startswith("? "):
                self.refuse("is no key")
            name, rest = match[1], match[2] or ""
            key = self.quoted(name) if name[0] in "'\"" else _resolve(name)
            if rest and not rest.startswith("#"):
                column = indent + match.start(2)
                result[key] = self.inline(column, indent)
            else:
                self.at += 1
                result[key] = self.below(indent, indent - 1)
        return result

    def below(self, indent: int, list_parent: int) -> object:
        """The node on the lines after an empty value: deeper, or (for a mapping) a list on the key's own column."""
        next_line = self.peek()
        if next_line is None:
            return None
        if next_line[0] > indent:
            return self.node(next_line[0], indent)
        if next_line[0] == indent > list_parent and (next_line[1] + " ").startswith("- "):
            return self.sequence(indent)
        return None

    def inline(self, column: int, parent: int) -> object:
        """A scalar or flow collection that starts in this line at column; continuation lines lie deeper than parent."""
        start = self.lines[self.at][column:].rstrip(BLANK)
        if start[0] in "&*!?%@`":
            self.refuse("uses YAML beyond the subset")
        if start[0] in "|>":
            return self.literal(start, parent)
        if start[0] in "'\"[{":
            text, first = start, self.at
            while True:
                try:
                    value, end = self.flow(text, 0)
                except IndexError:  # the collection or quote goes on in the next line
                    self.at += 1
                    if self.at >= len(self.lines):
                        self.at = first
                        self.refuse("is not closed")
                    text += "\n" + self.lines[self.at].rstrip(BLANK)
                    continue
                if text[end:].strip(BLANK) and not text[end:].lstrip(BLANK).startswith("#"):
                    self.refuse("goes on after its value")
                self.at += 1
                return value
        parts = [start.split(" #")[0].rstrip(BLANK)]
        self.at += 1
        while self.at < len(self.lines):
            line = self.lines[self.at].strip(BLANK)
            if line and (self.depth() <= parent or line.startswith("#")):
                break
            if KEY.match(line):
                self.refuse("is a key where a text goes on")
            parts.append(line.split(" #")[0].strip(BLANK))
            self.at += 1
        while not parts[-1] and len(parts) > 1:
            parts.pop()
        return _resolve(_fold(parts))

    def depth(self) -> int:
        line = self.lines[self.at]
        return len(line) - len(line.lstrip(" "))

    def literal(self, mark: str, parent: int) -> str:
        """A block scalar after | or >."""
        header = re.fullmatch(r"([|>])([-+]?)([1-9]?)([-+]?)\s*(#.*)?", mark)
        if header is None:
            self.refuse("is no block scalar")
        style, chomp = header[1], header[2] or header[4]
        self.at += 1
        block: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.strip(BLANK) and self.depth() <= parent:
                break
            block.append(line)
            self.at += 1
        filled = [line for line in block if line.strip(BLANK)]
        depth = (
            max(parent, 0) + int(header[3])
            if header[3]
            else min((len(x) - len(x.lstrip(" ")) for x in filled), default=0)
        )
        body = [line[depth:] for line in block]
        while body and not body[-1].strip(BLANK):
            body.pop()
        text = "\n".join(body) if style == "|" else _fold(body)
        tail = len(block) - len(body)
        return text + ("" if chomp == "-" else "\n" * (1 + tail) if chomp == "+" else "\n" if text else "")

    def flow(self, text: str, at: int) -> tuple[object, int]:
        """A flow value at a position, and where it ends. IndexError: the text ends before it does."""
        at = _skip(text, at)
        mark = text[at]
        if mark in "'\"":
            match = CLOSED[mark].match(text, at)
            if match is None:
                raise IndexError
            return self.quoted(match[0]), match.end()
        if mark == "[":
            items: list = []
            at = _skip(text, at + 1)
            while text[at] != "]":
                value, at = self.flow(text, at)
                items.append(value)
                at = self.comma(text, at, "]")
            return items, at + 1
        if mark == "{":
            result: dict = {}
            at = _skip(text, at + 1)
            while text[at] != "}":
                key, at = self.flow(text, at)
                at, value = _skip(text, at), None
                if text[at] == ":":
                    at = _skip(text, at + 1)
                    if text[at] not in ",}":
                        value, at = self.flow(text, at)
                result[key] = value
                at = self.comma(text, at, "}")
            return result, at + 1
        end = at
        while text[end] not in ",[]{}" and not (text[end] == ":" and text[end + 1] in " \n,[]{}"):
            end += 1
        if end == at:
            self.refuse("has an empty place")
        return _resolve(_fold([line.strip(BLANK) for line in text[at:end].strip(BLANK).split("\n")])), end

    def comma(self, text: str, at: int, close: str) -> int:
        at = _skip(text, at)
        if text[at] == ",":
            return _skip(text, at + 1)
        if text[at] != close:
            self.refuse(f"lacks a comma or {close}")
        return at

    def quoted(self, text: str) -> str:
        body = text[1:-1]
        if text[0] == "'":
            return _fold(_trim(body.split("\n"))).replace("''", "'")
        body = re.sub(
            r"(?<!\\)((?:\\\\)*)\\\n[ \t]*", r"\1", body
        )  # an escaped line end joins without a space
        folded = _fold(_trim(body.split("\n")))
        return re.sub(r"\\(x..|u.{4}|U.{8}|.)", self._escape, folded)

    def _escape(self, match: re.Match) -> str:
        code = match[1]
        if code[0] in HEX and len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in ESCAPES:
            self.refuse(f"has the escape \\{code}")
        return ESCAPES[code]


def _trim(lines: list[str]) -> list[str]:
    """Blanks around line ends of a quoted scalar do not count; those at its own ends do."""
    last = len(lines) - 1
    return [
        line
        if not last
        else line.rstrip(" \t")
        if i == 0
        else line.lstrip(" \t")
        if i == last
        else line.strip(" \t")
        for i, line in enumerate(lines)
    ]


def _fold(lines: list[str]) -> str:
    """One line end is a space, n + 1 of them are n line ends."""
    text, blank = lines[0] if lines else "", 0
    for line in lines[1:-1] if len(lines) > 1 else []:
        if line:
            text += ("\n" * blank if blank else " ") + line
            blank = 0
        else:
            blank += 1
    if len(lines) > 1:
        text += ("\n" * blank if blank else " ") + lines[-1] if lines[-1] or blank else " "
    return text


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\n":
        at += 1
    return at


def _resolve(word: str) -> object:
    """A plain scalar's value."""
    if word in WORDS:
        return WORDS[word]
    if INTEGER.fullmatch(word):
        return int(word)
    if FLOAT.fullmatch(word):
        return float(word.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return word
