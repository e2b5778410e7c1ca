"""Licences along chains of teachers: of the data, of pretrained weights, of every model below.

Guarantees: whatever a model was taught by brings its licences along, through any number of teachers; a pretrained
checkpoint whose licence nobody states is named as such, not taken for free.
Gives up: legal advice. Whether distillation carries a licence over is for lawyers; here it is said, never dropped.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_RESTRICTED = re.compile(r"\bNC\b|non-?commercial|research|academic", re.IGNORECASE)
_NAME = re.compile(r"^\S+/\S+: ")
# As their pages on the hub state it. WavLM's cards have no tag, but name UniSpeech's licence as theirs.
KNOWN = {
    "facebook/hubert-base-ls960": "Apache-2.0",
    "facebook/hubert-large-ll60k": "Apache-2.0",
    "facebook/hubert-xlarge-ll60k": "Apache-2.0",
    "facebook/wav2vec2-base": "Apache-2.0",
    "microsoft/wavlm-base": "CC BY-SA 3.0",
    "microsoft/wavlm-base-plus": "CC BY-SA 3.0",
    "microsoft/wavlm-large": "CC BY-SA 3.0",
    "ntu-spml/distilhubert": "Apache-2.0",
    "openai/whisper-small": "Apache-2.0",
    "google-bert/bert-base-uncased": "Apache-2.0",
    "google-bert/bert-large-uncased": "Apache-2.0",
    "bert-base-uncased": "Apache-2.0",
    "bert-large-uncased": "Apache-2.0",
    "distilbert-base-uncased": "Apache-2.0",
    "distilbert/distilbert-base-uncased": "Apache-2.0",
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": "CC BY-NC-SA 4.0",
}


def restricted(licences: Iterable[str]) -> list[str]:
    """Those licences whose words do not allow commercial use."""
    # A checkpoint's own name ("facebookresearch/...: MIT") is no term.
    return sorted(name for name in set(licences) if _RESTRICTED.search(_NAME.sub("", name)))


def of_checkpoint(name: str) -> str:
    """Licence of pretrained weights as "NAME: LICENCE": from the table, or the `license` of a local folder's card."""
    stated = KNOWN.get(name)
    path = Path(name) / "README.md"
    if stated is None and path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        front = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
        found = re.search(r"^license(?:_name)?:\s*(\S+)\s*$", front, re.MULTILINE)
        stated = spoken(found[1]) if found else None
    return f"{name}: {stated or 'licence not stated'}"


def spoken(tag: str) -> str:
    """A hub's licence tag as words: cc-by-nc-sa-4.0 is CC BY-NC-SA 4.0, so that what it forbids can be read."""
    found = re.fullmatch(r"cc-(by[a-z-]*)-(\d\.\d)", tag.strip("\"'").lower())
    return f"CC {found[1].upper()} {found[2]}" if found else tag.strip("\"'")


def inherited(
    hub_names: Iterable[str],
    below: Iterable[dict[str, Any]],
    own: Iterable[str],
    stated: Mapping[str, str] | None = None,
) -> list[str]:
    """Licences that a model takes over from others, without those of its own data.

    Args:
        hub_names: Pretrained checkpoints inside it.
        below: `meta` of every model it builds on: teachers, components, weights to start from.
        own: Licences of its training data.
        stated: Licences of some of the checkpoints, as the recipe declares them.
    """
    stated = stated or {}
    found = {f"{name}: {stated[name]}" if name in stated else of_checkpoint(name) for name in hub_names}
    for meta in below:
        found |= {*meta.get("licences", []), *meta.get("inherited", [])}
    return sorted(found - set(own))
