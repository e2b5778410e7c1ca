"""Export to a folder that transformers' AutoModelForAudioClassification loads, for the architectures it knows.

HuBERT, wav2vec2 and WavLM for sequence classification are: encoder, optional softmax-weighted sum of the layers, a linear
projector, masked mean, a linear classifier. An acoustic model with mean pooling and no embedding layer is the same with
an identity as projector.

Gives up: one head only (the classes, or the dimensions of a model without classes). Group-norm encoders are stock there,
without the masked norm: they take rows one by one or of equal length.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from ser.models import SERModel
from ser.models.acoustic import Acoustic
from ser.models.pooling import Mean
from ser.protocol import DIMENSIONS
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

TOLERANCE = 1e-4


def write(model: SERModel, meta: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write config.json, model.safetensors, preprocessor_config.json.

    Returns:
        notes for the card, and the largest difference of logits that was seen.

    Raises:
        UserError: Not a stock architecture, or other answers than the model's own.
    """
    from transformers import Wav2Vec2FeatureExtractor

    _check(model)
    assert isinstance(model, Acoustic)
    shape = model.encoder.config
    masks = getattr(shape, "feat_extract_norm", "layer") == "layer"
    stock = stock_model(model, meta)
    difference = compare(model, stock)
    if difference > TOLERANCE:
        raise UserError(
            f"the exported model answers otherwise: logits differ by {difference:.2g}", where=str(folder)
        )
    stock.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=model.normalise,
        return_attention_mask=masks,
    ).save_pretrained(folder)
    notes = (
        []
        if masks
        else ["Group norm over time: ask rows one by one or of equal length, or padding changes the answer."]
    )
    if model.classes and model.dimensions:
        notes.append(
            "Classes alone: this form has one head. The onnx and safetensors forms also answer the dimensions."
        )
    return {"notes": notes, "difference": difference}


def _check(model: SERModel) -> None:
    why = None
    if not isinstance(model, Acoustic):
        why = f"a {model.config.kind} model is no architecture of transformers"
    elif not isinstance(model.pool, Mean):
        why = f"pooling {model.config.pooling} is not stock (mean is)"
    elif model.heads.embed is not None:
        why = "its embedding layer is not stock"
    elif model.mix is not None and getattr(model.encoder.config, "do_stable_layer_norm", False):
        why = (
            "transformers sums the layers before the last norm, this model behind it (layers: last is stock)"
        )
    elif not model.classes and model.heads.sigmoid:
        why = "a sigmoid behind the dimensions is not stock"
    if why:
        raise UserError(why, where="ser export --to hf", hint="--to onnx or --to safetensors")


def stock_model(model: Acoustic, meta: dict[str, Any]) -> Any:
    """The transformers model with the same weights."""
    from transformers import AutoModelForAudioClassification

    config = copy.deepcopy(model.encoder.config)
    names = list(meta.get("classes") or map(str, range(model.classes))) if model.classes else list(DIMENSIONS)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.problem_type = "single_label_classification" if model.classes else "regression"
    config.use_weighted_layer_sum = model.mix is not None
    config.classifier_proj_size = config.hidden_size
    config.apply_spec_augment, config.layerdrop = False, 0.0
    with torch.random.fork_rng(devices=[]):
        stock = AutoModelForAudioClassification.from_config(config)
    head = model.heads.categorical if model.classes else model.heads.dimensional
    assert head is not None
    state = {f"{stock.base_model_prefix}.{name}": value for name, value in model.encoder.state_dict().items()}
    state |= {
        "projector.weight": torch.eye(config.hidden_size),
        "projector.bias": torch.zeros(config.hidden_size),
        "classifier.weight": head.weight.detach(),
        "classifier.bias": head.bias.detach(),
    }
    if model.mix is not None:
        state["layer_weights"] = model.mix.weights.detach()
    stock.load_state_dict(state, strict=True)
    return stock.to(model.dtype).eval()


@torch.no_grad()
def compare(model: Acoustic, stock: Any) -> float:
    """Largest difference of the head's answers over a few lengths of seeded noise, each row alone."""
    from types import SimpleNamespace

    generator, worst = torch.Generator().manual_seed(0), 0.0
    for samples in (8000, 16000, 40111):
        wave = 0.1 * torch.randn(1, samples, generator=generator)
        batch: Any = SimpleNamespace(
            waveform=wave, lengths=torch.tensor([samples]), features={}, feature_lengths={}, text=None
        )
        own = model.answer(batch)
        said = own.logits if model.classes else own.dimensions
        assert said is not None
        if model.normalise:
            wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        worst = max(worst, float((stock(wave.to(model.dtype)).logits - said).abs().max()))
    return worst
