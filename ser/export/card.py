"""The card of an exported model: what it answers, how it is asked, whom it heard, and under which licences."""

from typing import Any

from ser.licences import restricted
from ser.models import SERModel, count_parameters
from ser.protocol import DIMENSIONS

HOW = {
    "hf": "`transformers.AutoModelForAudioClassification.from_pretrained(FOLDER)` and its feature extractor; 16 kHz mono.",
    "onnx": "onnxruntime on `model.onnx`: `waveform` (batch, samples) float32 at 16 kHz, full scale 1, zeros behind the "
    "end; `lengths` (batch,) int64 true samples.",
    "safetensors": "`ser predict FOLDER AUDIO...`, or `ser.models.load(FOLDER)`.",
}


def card(model: SERModel, meta: dict[str, Any], to: str, told: dict[str, Any]) -> str:
    """README.md of an export, front matter first."""
    own, inherited = meta.get("licences", []), meta.get("inherited", [])
    bound = restricted([*own, *inherited])
    exposure = meta.get("exposure", {})
    unknown = exposure.get("unknown", [])
    lines = [
        "---",
        "pipeline_tag: audio-classification",
        "license: other",
        f"license_name: {'non-commercial-inherited' if bound else 'see-licences-below'}",
        "---",
        f"# {meta.get('name', 'model')} of {meta.get('run', 'a run')}",
        "",
        f"{count_parameters(model)['total']:,} parameters, kind {model.config.kind}.",
        "",
        "## Asking it",
        HOW[to],
        *(f"- {line}" for line in told.get("notes", [])),
        "",
        "## What it answers",
        f"Classes in order: {', '.join(meta.get('classes', [])[: model.classes]) or 'none'}.",
        f"Dimensions: {', '.join(DIMENSIONS) + ' on [0, 1]' if model.dimensions else 'none'}.",
        "",
        "## How it was made",
        f"Protocol {meta.get('protocol', 'unknown')}, {meta.get('strictness', 'unknown')}; fold {meta.get('fold', '?')}, "
        f"seed {meta.get('seed', '?')}.",
        f"It and the teachers below it were fitted on {len(exposure.get('fit', []))} speakers or recordings and chosen on "
        f"{len(exposure.get('select', []))}; they stand by name in the file of facts.",
        *([f"What {', '.join(unknown)} has heard is unknown."] if unknown else []),
        "",
        "## Licences",
        *(f"- data: {name}" for name in own),
        *(f"- inherited from teachers or pretrained weights: {name}" for name in inherited),
        *(["- not stated"] if not own and not inherited else []),
    ]
    if bound:
        lines += [
            "",
            f"**Non-commercial or research-only terms apply, and are inherited: {'; '.join(bound)}.**",
        ]
    return "\n".join(lines) + "\n"
