"""EmoBox's partitions: which file stems are the test part of each fold.

Ma et al., "EmoBox: Multilingual Multi-corpus Speech Emotion Recognition Toolkit and Benchmark", Interspeech 2024,
arXiv:2406.07162; MIT licence. Format: one `test_fold_<k>.txt` a fold, a file stem a line; train is all the rest.

Trap: most of these folds are not speaker-independent. Of EmoDB (5 folds), RAVDESS (6), TESS, URDU and CREMA-D
(1 each) only RAVDESS's share no speaker between train and test, so a protocol has to check them, never trust them.
A stem belongs to the utterance whose key is `make_key(corpus, stem)`.
"""

import os
import re

from shards.corpora._common import corpus_root, some
from shards.errors import UserError

NAME = re.compile(r"test_fold_(\d+)\.txt")


def folds(folder: str | os.PathLike) -> dict[int, set[str]]:
    """Test stems of each fold, folds in ascending order.

    Args:
        folder: One corpus's folder with its test_fold_<k>.txt files.

    Raises:
        UserError: No such file, a gap in the numbers, an empty fold, or a stem in two test parts.
    """
    root = corpus_root(folder, "emobox", "give the folder of one corpus, such as emobox/emodb")
    found = {int(match[1]): name for name in os.listdir(root) if (match := NAME.fullmatch(name))}
    if sorted(found) != list(range(1, len(found) + 1)) or not found:
        have = some(sorted(found.values())) or "none"
        raise UserError(
            f"the files test_fold_1.txt, test_fold_2.txt, ... are not complete: {have}",
            where=str(root),
            hint="give the folder of one corpus, such as emobox/emodb",
        )
    result: dict[int, set[str]] = {}
    owner: dict[str, int] = {}
    for fold in sorted(found):
        path = root / found[fold]
        stems = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        if not stems:
            raise UserError("the fold is empty", where=str(path), hint="fetch the file again")
        for stem in stems:
            if stem in owner:
                raise UserError(
                    f"{stem} is in the test part of fold {owner[stem]} and again in fold {fold}",
                    where=str(path),
                    hint="remove one of the two lines",
                )
            owner[stem] = fold
        result[fold] = set(stems)
    return result
