"""Other transcripts beside a corpus's own: a recogniser's, from a table of keys.

Guarantees: an utterance keeps its own text; the other one lies in `extra.<name>_text` with where it comes from in
`extra.<name>_source` (`asr:<model>`). A row of the table that fits no utterance, or an empty table, is an error.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from shards.errors import UserError
from shards.utterance import Utterance


def with_transcripts(
    utterances: Iterable[Utterance], path: str, source: str, name: str = "asr"
) -> Iterator[Utterance]:
    """The same utterances with another transcript each, where the table has one.

    Args:
        utterances: Of one corpus.
        path: Tab-separated lines: key (with or without the corpus in front) and text, no header.
        source: What wrote it, such as "asr:openai/whisper-small".
        name: `extra.<name>_text` and `extra.<name>_source`.

    Raises:
        UserError: No such file, a line without a tab, or lines for utterances that are not there.
    """
    said = _table(Path(path))
    used = set()
    for u in utterances:
        short = u.key.removeprefix(f"{u.corpus}-")
        key = u.key if u.key in said else short
        if key in said:
            used.add(key)
            more = {f"{name}_text": said[key], f"{name}_source": source}
            u = replace(u, extra={**(u.extra or {}), **more})
        yield u
    if lost := sorted(set(said) - used):
        raise UserError(
            f"{len(lost)} transcripts fit no utterance, for example {lost[0]!r}",
            where=path,
            hint="the first column is the utterance's key, as `ser data DATASET` prints it",
        )


def _table(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise UserError(f"the transcripts cannot be read: {error.strerror}", where=str(path)) from None
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError("not key, tab, text", where=f"{path}:{number}", hint="one utterance a line")
    if not rows:
        raise UserError("the table of transcripts is empty", where=str(path))
    return dict(rows)
