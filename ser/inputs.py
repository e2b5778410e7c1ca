"""What a model needs of a batch: stored features where the run has them, else computed from the audio on the spot."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from shards.loader import Batch, Needs
from shards.targets import TargetSource, TargetStore

FUNCTIONALS = ("egemaps", "mfcc")


class Reads(Protocol):
    """What a model says of its inputs; every `SERModel` does."""

    inputs: frozenset[str]
    text_from: str
    attached: dict[str, Any]


def needs_of(
    model: Reads, features: Mapping[str, TargetStore], targets: Mapping[str, TargetSource] | None = None
) -> Needs:
    """What the loader must bring for `model`.

    Args:
        model: Reads `model.inputs`.
        features: Stored features of this run, by input name ("mel", "prosody", an encoder's).
        targets: Stored targets of teachers, by name.
    """
    stored = {name: features[name] for name in model.inputs if name in features}
    missing = {name for name in model.inputs if name not in stored and name not in ("waveform", "text")}
    return Needs(
        waveform="waveform" in model.inputs or bool(missing),
        text="text" in model.inputs,
        text_from=model.text_from,
        features=stored,
        targets=dict(targets or {}),
    )


def complete(batch: Batch, model: Reads) -> Batch:
    """The batch with every frame feature that `model` reads; what was not stored is computed from the waveform."""
    for name in ("prosody", *FUNCTIONALS):
        if name not in model.inputs or name in batch.features or not len(batch):
            continue
        from ser.features import functionals, prosody

        assert batch.waveform is not None, "needs_of asks for the waveform of what is not stored"
        if name == "prosody":
            frames, lengths = prosody.extract(batch.waveform, batch.lengths)
        else:
            frames, lengths = functionals.extract(name, batch.waveform, batch.lengths)
        batch = replace(
            batch,
            features={**batch.features, name: frames},
            feature_lengths={**batch.feature_lengths, name: lengths},
        )
    for name, encoder in model.attached.items():
        if name in model.inputs and name not in batch.features and len(batch):
            frames, lengths = encoder(batch)
            batch = replace(
                batch,
                features={**batch.features, name: frames},
                feature_lengths={**batch.feature_lengths, name: lengths},
            )
    return batch
