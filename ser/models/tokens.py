"""The tokenizer that belongs to a text model: taken from its checkpoint, or built from the training texts only.

Guarantees: one JSON file holds it whole (padding and truncation included) and is saved with the model; a built one
depends on the set of texts and their counts, not on their order; texts of other folds never enter it, because only
the texts handed over are read.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shards.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN, START, END = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class Tokens:
    """Texts to padded token numbers."""

    def __init__(self, tokenizer: "Tokenizer"):
        self.tokenizer = tokenizer
        assert tokenizer.padding is not None
        self.pad: int = tokenizer.padding["pad_id"]

    @classmethod
    def from_bytes(cls, content: bytes) -> "Tokens":
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(content.decode()))

    def to_bytes(self) -> bytes:
        return self.tokenizer.to_str(pretty=True).encode()

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, T) token numbers and (B, T) mask of true tokens; T is the longest, at least 1."""
        # One by one: encode_batch starts threads, which then warn in every forked loader worker.
        ids = [self.tokenizer.encode(text).ids for text in texts]
        longest = max(1, max(map(len, ids)))
        numbers = torch.full((len(ids), longest), self.pad, dtype=torch.int64)
        mask = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, line in enumerate(ids):
            numbers[row, : len(line)] = torch.tensor(line, dtype=torch.int64)
            mask[row, : len(line)] = True
        return numbers, mask

    def limit(self, tokens: int) -> None:
        """Cut longer texts to `tokens`, special tokens kept."""
        self.tokenizer.enable_truncation(tokens)


def pretrained(name: str, revision: str | None, local_files_only: bool) -> Tokens:
    """The tokenizer of a checkpoint.

    Raises:
        UserError: Not found, or without a tokenizers-library form.
    """
    from transformers import AutoTokenizer

    try:
        whole = AutoTokenizer.from_pretrained(
            name, revision=revision, local_files_only=local_files_only, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"the tokenizer cannot be loaded: {first}", where=name) from error
    if getattr(whole, "backend_tokenizer", None) is None or whole.pad_token_id is None:
        raise UserError(
            "the checkpoint's tokenizer has no tokenizer.json form or no padding token",
            where=name,
            hint="choose a checkpoint with a fast tokenizer",
        )
    tokenizer = whole.backend_tokenizer
    tokenizer.enable_padding(pad_id=whole.pad_token_id, pad_token=str(whole.pad_token))
    return Tokens(tokenizer)


def built(texts: Iterable[str | None], kind: str, vocabulary: int) -> Tokens:
    """A tokenizer of at most `vocabulary` entries from the training texts.

    Args:
        texts: Training texts; None and blank ones are skipped.
        kind: "words" (whole words and punctuation marks) or "bpe" (byte pairs inside them).

    Raises:
        UserError: No texts.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    lines = sorted(text for text in texts if text and text.strip())
    if not lines:
        raise UserError(
            "a text model with random weights needs training texts for its tokenizer, and there are none",
            hint="use a corpus with transcripts, or name a pretrained text encoder",
        )
    normaliser = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    split = pre_tokenizers.Whitespace()
    if kind == "words":
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(word for word, _ in split.pre_tokenize_str(normaliser.normalize_str(line)))
        for special in SPECIAL:
            counts.pop(special, None)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - len(SPECIAL)]
        numbers = {word: i for i, word in enumerate([*SPECIAL, *ranked])}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normaliser, split
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False
        )
        tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, SPECIAL.index(START)), (END, SPECIAL.index(END))]
    )
    tokenizer.enable_padding(pad_id=SPECIAL.index(PAD), pad_token=PAD)
    return Tokens(tokenizer)
