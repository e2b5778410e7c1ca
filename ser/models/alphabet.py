"""The characters that an encoder learns to transcribe: taken from the training texts, and from nothing else.

Guarantees: number 0 is the blank of CTC; the alphabet depends on the set of texts, not on their order. Characters that
training never showed are left out of a text.
"""

import unicodedata
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Alphabet:
    """Texts to character numbers and back.

    Args:
        characters: Its characters in order; character i has the number i + 1.
    """

    def __init__(self, characters: str):
        self.characters = characters
        self.numbers = {c: i + 1 for i, c in enumerate(characters)}

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> "Alphabet":
        """All letters, digits, apostrophes and the space of the texts, in lower case."""
        return cls("".join(sorted({c for text in texts for c in plain(text)})))

    def __len__(self) -> int:
        """Numbers in use, the blank included."""
        return len(self.characters) + 1

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """(B, S) character numbers, zeros behind a text's end, and (B,) counts."""
        lines = [[self.numbers[c] for c in plain(text) if c in self.numbers] for text in texts]
        counts = torch.tensor([len(line) for line in lines], dtype=torch.int64)
        numbers = torch.zeros(len(lines), max(1, *(len(line) for line in lines), 1), dtype=torch.int64)
        for row, line in enumerate(lines):
            numbers[row, : len(line)] = torch.tensor(line, dtype=torch.int64)
        return numbers, counts

    def read(self, scores: Tensor, length: int) -> str:
        """The text of one row's scores (T, V): best character a frame, repeats merged, blanks dropped."""
        best = torch.unique_consecutive(scores[:length].argmax(-1)).tolist()
        return "".join(self.characters[i - 1] for i in best if i)


def plain(text: str | None) -> str:
    """A text as it is spoken: lower case, letters, digits and apostrophes, single spaces."""
    lower = unicodedata.normalize("NFKC", text or "").lower()
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in lower).split())
