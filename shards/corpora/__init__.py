"""Readers of corpora: `read(name, root, **options) -> Iterator[Utterance]`, one module a corpus, imported when used.

Guarantees: a reader looks at names and label files only, never at samples; it checks the published counts per label
before it hands out the first utterance, and names what differs; utterances come in a fixed order (by key), keys are
`<corpus>-<file's own name>`, so EmoBox's file lists match them.
Labels are the corpus's own. Where label files hold words or codes (IEMOCAP "exc", MSP-Podcast "A", CREMA-D "ANG",
TESS "ps") these are kept; where a file name holds a letter or a digit (EmoDB, RAVDESS, SAVEE, CaFE, URDU, FESC) the
label is the word of the corpus's documentation and the code lies in `extra["code"]`.

Every reader of a named corpus takes `counts`: "strict" (default) raises on anything that differs from the published
corpus, "warn" warns and goes on with what is there, "ignore" says nothing.
"""

import difflib
import importlib
import inspect
from collections.abc import Iterator

from shards.errors import UserError
from shards.utterance import Utterance

READERS: dict[str, str] = {
    name: f"shards.corpora.{name}:read"
    for name in (
        "audformat",
        "audiofolder",
        "cafe",
        "cremad",
        "emodb",
        "fesc",
        "iemocap",
        "manifest",
        "meld",
        "msppodcast",
        "nemo",
        "ravdess",
        "savee",
        "spokenaffect",
        "tess",
        "urdu",
    )
}


def read(name: str, root: str, **options) -> Iterator[Utterance]:
    """Utterances of one corpus.

    Args:
        name: Registered reader, see `READERS`.
        root: The corpus's folder in its own layout (or a file, for `manifest`).
        **options: The reader's own options, `counts="warn"` for instance.

    Raises:
        UserError: Unknown reader or option, missing folder, or a corpus that is not what was published.
    """
    if name not in READERS:
        near = difflib.get_close_matches(name.lower(), READERS, n=3, cutoff=0.5) or sorted(READERS)
        raise UserError(
            f"no reader is called {name!r}",
            where=str(root),
            hint=f"use {', '.join(near)}; for any other corpus write a table and use manifest",
        )
    module, function = READERS[name].split(":")
    reader = getattr(importlib.import_module(module), function)
    known = [key for key in inspect.signature(reader).parameters if key != "root"]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.4) or known
            raise UserError(
                f"the reader {name} has no option {option!r}", where=str(root), hint=f"use {', '.join(near)}"
            )
    return reader(root, **options)
