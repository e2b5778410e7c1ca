"""What answers are scored against: sets of labels, what chance gives on them, and the generated corpus's ceilings."""

from typing import Any

import numpy as np

from ser import scoring
from ser.results import Model
from ser.setting import Setting

OWN = "labels"


class Reference:
    """One set of labels to score against; `source` is their `label_from`."""

    def __init__(self, source: str, labels: Any):
        self.source, self.labels = source, labels

    def of(self, rows: np.ndarray) -> scoring.Truth:
        """Labels of these dataset rows."""
        return scoring.Truth.of(self.labels, rows)


def references(setting: Setting) -> dict[str, Reference]:
    """The protocol's own labels and those that the recipe's `report.references` names."""
    wanted = {OWN: None, **setting.recipe.report.references}
    return {
        name: Reference(source or setting.protocol.label_from, setting.labels_from(source))
        for name, source in wanted.items()
    }


def test_set(
    setting: Setting, model: Model, truths: dict[str, Reference], speakers: np.ndarray
) -> dict[str, Any]:
    """What is tested on, and what chance gives there."""
    rows = model.test.rows
    distinct = len(np.unique(rows))
    out: dict[str, Any] = {
        "utterances": len(rows),
        "repeated": len(rows) - distinct,
        "speakers": len(set(speakers)),
        "references": {},
    }
    for name, truth in truths.items():
        classes = truth.of(rows).classes
        counts = np.bincount(classes[classes >= 0], minlength=len(setting.classes))
        present = int((counts > 0).sum())
        out["references"][name] = {
            "source": truth.source,
            "known": int(counts.sum()),
            "classes": counts.tolist(),
            "rated": int(np.isfinite(truth.of(rows).dimensions).any(1).sum()),
            "chance_ua": 1 / present if present else None,
            "majority_wa": float(counts.max() / counts.sum()) if counts.sum() else None,
        }
    return out


def ceilings_of(setting: Setting) -> dict[str, Any] | None:
    """Best possible scores under the generated corpus's law: reference labels -> source -> scores."""
    if not setting.recipe.report.ceilings:
        return None
    from shards.corpora.spokenaffect.ceilings import ceilings

    table = ceilings()
    against = {"label": "noisy", "extra.clean_label": "clean"}
    wanted = {OWN: setting.protocol.label_from, **setting.recipe.report.references}
    out: dict[str, Any] = {}
    for name, source in wanted.items():
        if source in against:
            out[name] = {
                kind: {"valence_sign": c.valence, "arousal_sign": c.arousal, "ua": c.ua}
                for (kind, labels), c in table.items()
                if labels == against[source]
            }
    return out


def source_of(inputs: list[str]) -> str:
    """What a model can know of the generated corpus's law: text shows valence, prosody arousal, audio both."""
    return inputs[0] if inputs in (["text"], ["prosody"]) else "fusion"
