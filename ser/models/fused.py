"""Several models as one: a product of trained experts, embeddings side by side, a learned gate, or cross attention.

Guarantees: a component without input for a row (no transcript) is left out of that row and its share is spread over
the others, and so is one whose input the whole batch lacks; a row without any input answers zeros with `has_input` False. Frozen components stay in evaluation mode
and get no gradient. Unfrozen components' own heads, which fusion does not use, are taken out of training.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ser.models import hub
from ser.models.base import DIMENSIONS, Heads, Inputs, ModelOutput, SERModel
from ser.models.config import FusedConfig
from ser.models.cross import CrossAttended
from ser.objectives import product_of_experts
from shards.errors import UserError


def _freeze(name: str, component: SERModel, part: str) -> None:
    """Take a part of one component out of training.

    Raises:
        UserError: A component that has no such part.
    """
    if not hasattr(component, "freeze"):
        raise UserError(f"component {name} has no encoder to freeze", where="fused model", hint="freeze")
    cast(Any, component).freeze(part)


class DimensionMix(nn.Module):
    """Weighted mean of the components' dimensions over those present, one weight a component and dimension."""

    weights: Tensor

    def __init__(self, names: list[str], setting: Any):
        super().__init__()
        self.learned = setting == "learned"
        if self.learned:
            self.scores = nn.Parameter(torch.zeros(len(names), len(DIMENSIONS)))
            return
        given = [setting[name] if setting else 1.0 for name in names]
        rows = [
            [float(one)] * len(DIMENSIONS) if isinstance(one, float | int) else list(one) for one in given
        ]
        if min(map(min, rows)) < 0 or min(map(sum, zip(*rows))) <= 0:
            raise UserError("dimension_weights must be >= 0 and not all 0", where="fused model")
        self.register_buffer("weights", torch.tensor(rows))

    def forward(self, dimensions: Tensor, present: Tensor) -> Tensor:
        """(N, B, 3) and (N, B) -> (B, 3); zeros where none is present."""
        weights = self.scores.exp() if self.learned else self.weights
        share = weights.unsqueeze(1) * present.unsqueeze(-1)
        total = share.sum(0)
        return (share * dimensions).sum(0) / torch.where(total > 0, total, 1.0)


class Gate(nn.Module):
    """Softmax gate over the components' embeddings, each mapped to one size first (Arevalo et al. 2017, gated unit).

    (B, E_i) for each component and present (N, B) -> (B, size).
    """

    def __init__(self, sizes: list[int], size: int):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(n, size) for n in sizes)
        self.scores = nn.ModuleList(nn.Linear(n, 1) for n in sizes)

    def forward(self, embeddings: list[Tensor], present: Tensor) -> Tensor:
        values = torch.stack([torch.tanh(layer(e)) for layer, e in zip(self.maps, embeddings)])
        scores = torch.stack([layer(e).squeeze(-1) for layer, e in zip(self.scores, embeddings)])
        weights = scores.masked_fill(~present, -1e9).softmax(0) * present
        return (weights.unsqueeze(-1) * values).sum(0)


def given(part: SERModel, batch: Inputs) -> bool:
    """Whether a batch carries all that a component reads; a column that is not there counts as missing in every row."""
    carried = {*batch.features}
    if batch.waveform is not None:
        # Frames that were not handed over are computed from the waveform by the models that can.
        carried |= {"waveform", "mel"}
    if batch.text is not None:
        carried.add("text")
    return part.inputs <= carried or isinstance(part, Fused)


class Fused(SERModel):
    """Reads what its components read."""

    config: FusedConfig
    gate: Gate | None
    cross: CrossAttended | None
    heads: Heads | None
    dimension_mix: DimensionMix | None
    log_prior: Tensor

    def __init__(
        self, config: FusedConfig, classes: int, dimensions: bool, components: Mapping[str, SERModel]
    ):
        # The components' own configurations become part of this one, so that a saved model stands alone.
        super().__init__(
            config.model_copy(
                update={"components": {name: components[name].config for name in config.components}}
            ),
            classes,
            dimensions,
        )
        self.components = nn.ModuleDict({name: components[name] for name in config.components})
        self.inputs = frozenset(name for part in self.parts.values() for name in part.inputs)
        self.needs_equal_lengths = any(part.needs_equal_lengths for part in self.parts.values())
        sizes = [part.embedding_size for part in self.parts.values()]
        self.dimension_mix = self.gate = self.cross = self.heads = None
        if config.mode == "product":
            self._check_experts()
            if classes:
                self.register_buffer("log_prior", torch.full((classes,), 1 / classes).log())
            if dimensions:
                names = [name for name, part in self.parts.items() if part.dimensions]
                self.dimension_mix = DimensionMix(names, config.dimension_weights)
            self.embedding_size = sum(sizes)
        elif config.mode == "concat":
            self.heads = Heads(sum(sizes), config, classes, dimensions)
            self.embedding_size = self.heads.size
        else:
            assert config.embedding is not None
            if config.mode == "cross":
                self._check_sequences()
                widths = [part.sequence_size for part in self.parts.values()]
                self.cross = CrossAttended(widths, config.embedding, config.attends, config.dropout)
                sizes = [config.embedding] * len(sizes)
            self.gate = Gate(sizes, config.embedding)
            self.heads = Heads(
                config.embedding, config.model_copy(update={"embedding": None}), classes, dimensions
            )
            self.embedding_size = self.heads.size
        if config.frozen:
            hub.freeze(self.components)
        for name, part in config.freeze.items():
            _freeze(name, self.parts[name], part)
        read = {part.text_from for part in self.parts.values() if "text" in part.inputs}
        if len(read) > 1:
            raise UserError(
                f"the components read different texts: {', '.join(sorted(read))}", where="fused model",
                hint="give them the same text_from",
            )  # fmt: skip
        self.text_from = read.pop() if read else "text"
        if config.mode == "cross":
            for part in self.parts.values():
                for module in part.unused_in_sequence():
                    hub.freeze(module)
        for part in self.components.modules():
            if isinstance(part, Heads):
                for head in (part.categorical, part.dimensional):
                    if head is not None:
                        hub.freeze(head)
        self.train(self.training)

    @property
    def parts(self) -> dict[str, SERModel]:
        """The components by name."""
        return {name: cast(SERModel, part) for name, part in self.components.items()}

    def fit_prior(self, prior: Tensor) -> None:
        """Set the class prior (K,) of the data the experts were trained on; only for mode product.

        Raises:
            UserError: Wrong size, or a class without any row.
        """
        prior = torch.as_tensor(prior, dtype=torch.float64)
        if self.config.mode != "product" or prior.shape != (self.classes,) or not (prior > 0).all():
            raise UserError(
                f"a product needs a prior of {self.classes} positive numbers, got {prior.tolist()}",
                where=f"fused model, mode {self.config.mode}",
                hint="a class without training rows cannot be fused: merge or drop it in the protocol",
            )
        with torch.no_grad():
            self.log_prior.copy_((prior / prior.sum()).log())

    def answer(self, batch: Inputs) -> ModelOutput:
        if self.cross is not None:
            return self._cross(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            outputs = [
                part(batch) if given(part, batch) else self._nothing(part, batch)
                for part in self.parts.values()
            ]
        present = torch.stack([out.has_input for out in outputs])
        if self.config.mode == "product":
            return self._product(outputs, present)
        assert self.heads is not None
        has_input = present.any(0)
        present = self._dropped(present)
        embeddings = [
            torch.where(here.unsqueeze(-1), out.embedding, 0.0) for here, out in zip(present, outputs)
        ]
        pooled = self.gate(embeddings, present) if self.gate is not None else torch.cat(embeddings, -1)
        return self.heads(pooled, has_input)

    def _cross(self, batch: Inputs) -> ModelOutput:
        assert self.cross is not None and self.gate is not None and self.heads is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            found = [
                part.sequence(batch) if given(part, batch) else self._silent(part, batch)
                for part in self.parts.values()
            ]
        present = torch.stack([here for _, _, here in found])
        has_input = present.any(0)
        present = self._dropped(present)
        pooled = self.cross([x for x, _, _ in found], [mask for _, mask, _ in found], present)
        return self.heads(self.gate(pooled, present), has_input)

    def _nothing(self, part: SERModel, batch: Inputs) -> ModelOutput:
        """What a component says to a batch that does not carry its input at all."""
        rows, like = self.rows_of(batch), {"device": self.device, "dtype": self.dtype}
        return ModelOutput(
            torch.zeros(rows, part.classes, **like) if part.classes else None,
            torch.zeros(rows, len(DIMENSIONS), **like) if part.dimensions else None,
            torch.zeros(rows, part.embedding_size, **like),
            torch.zeros(rows, dtype=torch.bool, device=self.device),
        )

    def _silent(self, part: SERModel, batch: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        rows, no = self.rows_of(batch), {"dtype": torch.bool, "device": self.device}
        hidden = torch.zeros(rows, 1, part.sequence_size, device=self.device, dtype=self.dtype)
        return hidden, torch.zeros(rows, 1, **no), torch.zeros(rows, **no)

    def train(self, mode: bool = True) -> "Fused":
        super().train(mode)
        if self.config.frozen:
            self.components.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parts.values())).dtype

    @property
    def hub_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts.values() for name in part.hub_names))

    def frame_sizes(self) -> dict[str, int]:
        return {name: size for part in self.parts.values() for name, size in part.frame_sizes().items()}

    def skeleton(self) -> dict[str, Any]:
        parts = self.parts.items()
        return {
            name: {"classes": part.classes, "dimensions": part.dimensions, "skeleton": part.skeleton()}
            for name, part in parts
        }

    def extra_files(self) -> dict[str, bytes]:
        return {
            f"{name}.{file}": content
            for name, part in self.parts.items()
            for file, content in part.extra_files().items()
        }

    def _product(self, outputs: list[ModelOutput], present: Tensor) -> ModelOutput:
        logits = dimensions = None
        if self.classes:
            voices = [i for i, out in enumerate(outputs) if out.logits is not None]
            here = present[voices]
            logits = product_of_experts(
                torch.stack([cast(Tensor, outputs[i].logits) for i in voices]), here, self.log_prior
            )
            logits = torch.where(here.any(0).unsqueeze(-1), logits, 0.0)
        if self.dimension_mix is not None:
            voices = [i for i, out in enumerate(outputs) if out.dimensions is not None]
            dimensions = self.dimension_mix(
                torch.stack([cast(Tensor, outputs[i].dimensions) for i in voices]), present[voices]
            )
        embedding = torch.cat([out.embedding for out in outputs], -1)
        return ModelOutput(logits, dimensions, embedding, present.any(0))

    def _dropped(self, present: Tensor) -> Tensor:
        """Leave out components at random while training, never a row's last one."""
        if not self.training or not self.config.modality_dropout:
            return present
        kept = present & (torch.rand(present.shape, device=present.device) >= self.config.modality_dropout)
        return torch.where(kept.any(0), kept, present)

    def _check_sequences(self) -> None:
        mute = [name for name, part in self.parts.items() if not part.sequence_size]
        if mute:
            raise UserError(
                f"components {', '.join(mute)} have no frames or tokens to attend to",
                where="fused model, mode cross",
                hint="use mode gated or concat with models that are fused themselves",
            )

    def _check_experts(self) -> None:
        for head, wanted in (("classes", self.classes), ("dimensions", self.dimensions)):
            found = {name: getattr(part, head) for name, part in self.parts.items() if getattr(part, head)}
            if wanted and not found:
                raise UserError(f"no component of the product answers {head}", where="fused model")
            if head == "classes" and wanted and set(found.values()) != {self.classes}:
                raise UserError(
                    f"the components' numbers of classes {found} differ from {self.classes}",
                    where="fused model",
                    hint="train the components under the same protocol",
                )
