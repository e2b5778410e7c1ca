"""Export to ONNX: waveform and lengths in, everything that the model answers out; any batch size, any length.

Guarantees: log-mels are computed inside the graph (the Fourier transform as a convolution with its own basis), so the file
needs nothing but audio; the graph's answers are compared with the model's over several batches and lengths before it is
handed over.
Gives up: models that read text, hand-made features or an encoder's frames, and those that hear nothing themselves (probes,
answers from files), which are refused by name; fusions of networks over log-mels of different kinds; rows shorter than the model's least length, which are refused by
the graph (pad them with silence).
"""

import copy
import logging
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.features.mel import FFT, HOP, MARGIN, WINDOW, LogMel
from ser.models import SERModel
from ser.models.fused import Fused
from ser.models.pooling import frame_mask
from ser.models.students import Conv
from ser.models.tcgru import TCGRU
from shards.errors import UserError

FILE = "model.onnx"
TOLERANCE = 1e-3


class MelGraph(nn.Module):
    """`ser.features.mel.LogMel` without a transform that ONNX has no equal of; (B, T), (B,) -> (B, F, bands), (B,)."""

    kernel: Tensor
    bank: Tensor

    def __init__(self, options: dict[str, Any]):
        super().__init__()
        mel = LogMel(**options)
        window = F.pad(torch.hann_window(WINDOW, dtype=torch.float64), (MARGIN, FFT - WINDOW - MARGIN))
        angle = torch.outer(torch.arange(FFT // 2 + 1), torch.arange(FFT)).double() * (2 * math.pi / FFT)
        self.register_buffer("kernel", (torch.cat([angle.cos(), angle.sin()]) * window).float().unsqueeze(1))
        self.register_buffer("bank", mel.bank)
        self.floor = mel.floor

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.where(lengths > 0, 1 + (lengths - WINDOW).clamp(min=0) // HOP, 0)
        waveform = torch.where(frame_mask(lengths, waveform.shape[1]), waveform, 0.0)
        parts = F.conv1d(F.pad(waveform, (MARGIN, MARGIN)).unsqueeze(1), self.kernel, stride=HOP)
        real, imaginary = parts.chunk(2, 1)
        power = (real.square() + imaginary.square()).transpose(1, 2)
        frames = torch.log((power @ self.bank).clamp(min=self.floor))
        true = frame_mask(counts, frames.shape[1]).unsqueeze(-1)
        return torch.where(true, frames, math.log(self.floor)), counts


class Graph(nn.Module):
    """What becomes the file: (B, T) float32 and (B,) int64 -> the model's answers, in order of `names`."""

    def __init__(self, model: SERModel):
        super().__init__()
        self.model = model
        options = mel_options(model)
        self.mel = MelGraph(options[0]) if options else None

    @property
    def names(self) -> list[str]:
        """What the file answers."""
        said = [("logits", self.model.classes), ("dimensions", self.model.dimensions), ("embedding", True)]
        return [name for name, there in said if there]

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        features, counts = {}, {}
        if self.mel is not None:
            features["mel"], counts["mel"] = self.mel(waveform, lengths)
        batch: Any = SimpleNamespace(
            waveform=waveform, lengths=lengths, features=features, feature_lengths=counts, text=None
        )
        out = self.model.answer(batch)
        return tuple(getattr(out, name) for name in self.names)


class GRU(nn.Module):
    """A torch GRU of one layer as ONNX's own operator; torch would unroll it into a loop, which does not always export.

    It stands in for the layer while the graph is made; run by torch it answers nothing.
    """

    inner: Tensor
    outer: Tensor
    bias: Tensor

    def __init__(self, own: nn.GRU):
        super().__init__()
        self.size = own.hidden_size
        weights = own.state_dict()
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        inner, outer, *biases = (self._ordered(weights[name]) for name in names)
        self.register_buffer("inner", inner[None])
        self.register_buffer("outer", outer[None])
        self.register_buffer("bias", torch.cat(biases)[None])

    @staticmethod
    def _ordered(weight: Tensor) -> Tensor:
        reset, update, new = weight.chunk(3)
        return torch.cat([update, reset, new])

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(B, T, I) -> (B, T, H), as the first of torch's two answers."""
        y = torch.onnx.ops.symbolic(
            "GRU", (x.transpose(0, 1), self.inner, self.outer, self.bias), {"hidden_size": self.size, "linear_before_reset": 1},
            dtype=x.dtype, shape=(x.shape[1], 1, x.shape[0], self.size), version=14,
        )  # fmt: skip
        return y.squeeze(1).transpose(0, 1), None


def mel_options(model: SERModel) -> list[dict[str, Any]]:
    """Log-mels that a model and its components read, each kind once."""
    if isinstance(model, Fused):
        every = [options for part in model.parts.values() for options in mel_options(part)]
        return [options for i, options in enumerate(every) if options not in every[:i]]
    reads = isinstance(model, Conv) or (isinstance(model, TCGRU) and "mel" in model.config.streams)
    return [model.config.mel] if reads else []


def least_samples(model: SERModel) -> int:
    """The shortest waveform that the graph takes."""
    if isinstance(model, Fused):
        return max(least_samples(part) for part in model.parts.values())
    shape = getattr(getattr(model, "encoder", None), "config", None)
    if shape is None or not hasattr(shape, "conv_kernel"):
        return WINDOW
    least = 1
    for kernel, stride in zip(reversed(shape.conv_kernel), reversed(shape.conv_stride)):
        least = (least - 1) * stride + kernel
    return least


def write(model: SERModel, meta: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write model.onnx.

    Returns:
        notes for the card, and the largest difference that was seen.

    Raises:
        UserError: The libraries are missing, the model reads more than audio, it does not export, or it answers otherwise.
    """
    _libraries()
    if why := refusal(model, meta):
        raise UserError(why, where="ser export --to onnx", hint="export a student that hears audio alone")
    graph, least = Graph(model.float().eval()), least_samples(model)
    path = folder / FILE
    program = _program(graph)
    _rename_inner(program, graph.names)
    program.save(str(path))
    difference = compare(graph, path, least)
    if difference > TOLERANCE:
        raise UserError(
            f"the exported graph answers otherwise: they differ by {difference:.2g}", where=str(path)
        )
    notes = [
        f"It answers {', '.join(graph.names)}; logits are before the softmax.",
        f"At least {least} samples a row; pad shorter ones with zeros and give their true length.",
    ]
    return {"notes": notes, "difference": difference, "least_samples": least, "outputs": graph.names}


def _rename_inner(program: Any, names: list[str]) -> None:
    """Give another name to what the graph computes on its way under the name of an answer (a lookup is an `embedding`)."""
    ends = {id(value) for value in program.model.graph.outputs}
    for node in program.model.graph.all_nodes():
        for value in node.outputs:
            if value.name in names and id(value) not in ends:
                value.name = f"{value.name}_within"


def refusal(model: SERModel, meta: dict[str, Any]) -> str | None:
    """Why a model is no graph from audio to answers; None where it is."""
    if isinstance(model, Fused):
        found = [why for part in model.parts.values() if (why := refusal(part, meta))]
        if not found and len(mel_options(model)) > 1:
            found = ["its components hear log-mels of different kinds"]
        return found[0] if found else None
    kind = model.config.kind
    told = {
        "probe": "a probe reads stored hidden states of its encoder",
        "external": "its answers were read from files, by key: it hears nothing",
        "classical": "a classical model works on functionals of scikit-learn's",
        "speech": "an encoder of frames has no answer of its own",
    }
    if kind in told:
        return told[kind]
    if encoders := sorted(set(model.inputs) & set(meta.get("encoders", {}))):
        return f"the model reads frames of the encoder {', '.join(encoders)}, which is no part of it"
    more = sorted(set(model.inputs) - {"waveform", "mel"})
    return f"the model reads {', '.join(more)} beside audio" if more else None


def _libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"exporting to ONNX needs {error.name}",
            where="ser export --to onnx",
            hint="pip install 'ser-distill[export]'",
        ) from None


def _program(graph: Graph) -> Any:
    dynamic = torch.export.Dim.DYNAMIC
    samples = WINDOW + 400 * HOP
    example = (0.1 * torch.randn(2, samples), torch.tensor([samples, samples - HOP]))
    graph = copy.deepcopy(graph)
    for module in list(graph.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.GRU):
                setattr(module, name, GRU(part))
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                graph, example, dynamo=True, verbose=False, input_names=["waveform", "lengths"], output_names=graph.names,
                dynamic_shapes={"waveform": {0: dynamic, 1: dynamic}, "lengths": {0: dynamic}},
            )  # fmt: skip
    except Exception as error:  # whatever torch's exporter raises says why in its first line
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the model does not export: {first}", where="ser export --to onnx", hint="--to safetensors"
        ) from error
    finally:
        log.setLevel(level)


@torch.no_grad()
def compare(graph: Graph, path: Path, least: int) -> float:
    """Largest difference of any answer over batches of one to three rows of mixed lengths, seeded noise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for rows, samples in ((1, least + 1), (3, 16000), (2, 30011)):
        wave = 0.1 * torch.randn(rows, samples, generator=generator)
        lengths = torch.randint(min(least, samples), samples + 1, (rows,), generator=generator)
        lengths[0] = samples
        said = session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})
        for mine, theirs in zip(graph(wave, lengths), said, strict=True):
            worst = max(worst, float((mine - torch.from_numpy(theirs)).abs().max()))
    return worst
