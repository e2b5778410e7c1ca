"""The objective of one model: which terms, over which rows, scaled so that a global step is one batch.

Each slot's loss is, summed over terms, weight x sum_i(w_i l_i) x (world x accumulation) / N, where N is the sum of
w over the whole global step, known from the plan and the labels alone (design: a global step is one batch). DeepSpeed
then divides by the accumulation and averages over ranks, which leaves sum / N. An utterance that could not be read
adds 0 and stays in N; N = 0 gives 0. CCC is a function of the whole step: see `ser.objectives.moments`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ser import objectives
from ser.models import ModelOutput
from ser.models.alphabet import Alphabet
from ser.models.base import DIMENSIONS
from ser.models.projectors import Projectors
from ser.recipe import Term
from shards.loader import Batch
from shards.slots import Slot
from shards.targets import PRESENT, TargetSource


@dataclass(frozen=True)
class Supervision:
    """What the labels say about every row of the dataset, as this training may see it.

    Attributes:
        classes: (n,) int64, -1 where missing or hidden.
        soft: (n, K) float32 label distributions, zeros where missing; None without votes.
        dimensions: (n, 3) float32 valence, arousal, dominance in [0, 1], nan where missing or hidden.
        class_weights: (K,) float32.
    """

    classes: np.ndarray
    soft: np.ndarray | None
    dimensions: np.ndarray
    class_weights: np.ndarray


@dataclass(frozen=True)
class Languages:
    """Who speaks what, for terms that weigh teachers by language.

    Attributes:
        of_row: (n,) int64 language code of every row of the dataset, -1 unknown.
        of_teacher: Teacher -> the code of its language.
    """

    of_row: np.ndarray
    of_teacher: Mapping[str, int]


@dataclass(frozen=True)
class Transcripts:
    """What a ctc term learns: (n,) bool rows with text, and the encoder's alphabet."""

    known: np.ndarray
    alphabet: Alphabet


class Objective:
    """All terms of one training.

    Args:
        terms: From the recipe.
        supervision: Labels of every row.
        sources: Targets of each teacher that a term names.
        projectors: For embedding terms.
        smoothing: Label smoothing of the cross entropy.
        scales: Teacher -> mean and deviation (E,) of its embedding, for terms that standardise.
        languages: For terms whose weights are `language`.
        transcripts: For a ctc term: which rows have text, and how text becomes character numbers.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        supervision: Supervision,
        sources: Mapping[str, TargetSource],
        projectors: Projectors | None = None,
        smoothing: float = 0.0,
        scales: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        languages: Languages | None = None,
        transcripts: Transcripts | None = None,
    ):
        self.transcripts = transcripts
        self.supervision, self.sources = supervision, sources
        self.projectors, self.smoothing, self.scales = projectors, smoothing, scales or {}
        self.languages = languages
        self.terms = {term.name: term for term in terms}
        self.row_terms = {name: t for name, t in self.terms.items() if t.loss != "ccc" or t.scope == "slot"}
        self.mixes = {
            name: _mix(term, supervision) for name, term in self.terms.items() if term.loss == "ccc"
        }
        self.step_ccc = {name: t for name, t in self.terms.items() if t.loss == "ccc" and t.scope == "step"}
        self.remembered: dict[
            str, Tensor
        ] = {}  # of terms with a memory: moments of recent steps, equal on every rank

    def totals(self, slots: Sequence[Slot]) -> dict[str, float]:
        """N of every row-wise term over all slots of a global step; no audio is touched."""
        rows = np.concatenate([slot.rows for slot in slots])
        views = np.concatenate([slot.views for slot in slots])
        return {
            name: float(self._plan_weights(term, rows, views).sum()) for name, term in self.row_terms.items()
        }

    def _plan_weights(self, term: Term, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """(B,) weight of each row in a term, from labels and target states alone."""
        if term.loss == "cross_entropy":
            return self._class_weight(rows)
        if term.loss == "ccc":
            return np.any(np.isfinite(self.supervision.dimensions[rows]), axis=1).astype(np.float64)
        if term.loss == "ctc":
            assert self.transcripts is not None
            return self.transcripts.known[rows].astype(np.float64)
        present = [self.sources[name].state(rows, views) == PRESENT for name in term.sources]
        return np.any(np.array(present) & self._asked(term, rows), axis=0) * self._taught(term, rows)

    def _asked(self, term: Term, rows: np.ndarray) -> np.ndarray:
        """(N, B) bool: whether a term asks this teacher about this row; by language, the teachers of the row's own."""
        if term.weights != "language":
            return np.ones((len(term.sources), len(rows)), bool)
        assert self.languages is not None
        speaks = np.array([self.languages.of_teacher[name] for name in term.sources])
        return speaks[:, None] == self.languages.of_row[rows]

    def _taught(self, term: Term, rows: np.ndarray) -> np.ndarray:
        """(B,) float64: 1 where a teacher's term applies, 0 on labelled rows of a term for unlabelled ones."""
        if term.rows == "all":
            return np.ones(len(rows))
        labels = self.supervision
        shown = (labels.classes[rows] >= 0) | np.isfinite(labels.dimensions[rows]).any(1)
        return (~shown).astype(np.float64)

    def _class_weight(self, rows: np.ndarray) -> np.ndarray:
        supervision = self.supervision
        if supervision.soft is not None:
            soft = supervision.soft[rows].astype(np.float64)
            return (soft * supervision.class_weights).sum(1)
        classes = supervision.classes[rows]
        return np.where(classes >= 0, supervision.class_weights[classes], 0.0)

    def slot_loss(
        self,
        output: ModelOutput,
        batch: Batch,
        totals: Mapping[str, float],
        scale: float,
        ccc_moments: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scaled loss of one slot, to be back-propagated, and each term's share of the step's value for the log.

        Args:
            output: The model's answers for the slot's B rows.
            batch: The slot.
            totals: N of each term over the global step.
            scale: World x accumulation.
            ccc_moments: Moments of each step-wide CCC term over the whole step.

        Returns:
            Scalar loss in float32 (connected to the parameters even for an empty slot), and the shares.
        """
        loss = (
            sum(
                part.float().sum()
                for part in (output.logits, output.dimensions, output.embedding, output.tokens)
                if part is not None
            )
            * 0.0
        )
        if self.projectors is not None and not len(batch):
            loss = loss + sum(_wide(out).sum() for out in self.projectors(output.embedding).values()) * 0.0
        shares: dict[str, Tensor] = {}
        for name, term in self.row_terms.items():
            if not totals[name] or not len(batch):
                continue
            values, weights = self._term(term, output, batch)
            if term.loss == "ccc":
                # LEGACY: CCC of the slot alone, averaged over slots
                part = values / scale
            else:
                keep = weights > 0
                part = (torch.where(keep, values, 0.0) * weights).sum() / totals[name]
            loss = loss + term.weight * part * scale
            shares[name] = part.detach()
        for name, term in self.step_ccc.items():
            if ccc_moments is None or not len(batch) or output.dimensions is None:
                continue
            target, weight = self._dimension_labels(batch, output.dimensions.device)
            gradient = objectives.ccc_gradient(
                ccc_moments[name], output.dimensions, target, weight, self.mixes[name]
            )
            loss = (
                loss
                + term.weight * scale * objectives.ccc_surrogate(_wide(output.dimensions), gradient).sum()
            )
        assert isinstance(loss, Tensor)
        return loss, shares

    def moments(self, output: ModelOutput, batch: Batch) -> Tensor:
        """(6, 3) CCC moments of one slot; add over slots and ranks."""
        assert output.dimensions is not None, "a ccc term needs a model with dimensions"
        target, weight = self._dimension_labels(batch, output.dimensions.device)
        return objectives.moments(output.dimensions.detach(), target, weight)

    def with_memory(self, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Moments of a step, with those of recent ones where a term remembers them (approximate)."""
        kept = self.remembered
        return {name: sums + kept[name].to(sums) if name in kept else sums for name, sums in step.items()}

    def remember(self, step: Mapping[str, Tensor]) -> None:
        """Let the moments of a step that moved the weights join the memory."""
        for name, sums in step.items():
            if keep := self.step_ccc[name].memory:
                self.remembered[name] = objectives.ccc_memory(self.remembered.get(name), sums, keep)

    @property
    def memory(self) -> dict[str, list[list[float]]]:
        """What is remembered, as plain numbers that lose nothing; it may be set."""
        return {name: sums.tolist() for name, sums in self.remembered.items()}

    @memory.setter
    def memory(self, kept: Mapping[str, list[list[float]]]) -> None:
        self.remembered = {name: torch.tensor(sums, dtype=torch.float64) for name, sums in kept.items()}

    def _dimension_labels(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        target = torch.from_numpy(self.supervision.dimensions[batch.rows]).to(device)
        weight = torch.isfinite(target).double() * batch.present.to(device).double().unsqueeze(1)
        return target, weight

    def _term(self, term: Term, output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Per-row losses (B,) and row weights (B,) of one term; CCC of a slot is a scalar loss."""
        device = output.embedding.device
        present = batch.present.to(device)
        if term.loss == "cross_entropy":
            supervision = self.supervision
            classes = (
                supervision.classes[batch.rows] if supervision.soft is None else supervision.soft[batch.rows]
            )
            target = torch.from_numpy(classes).to(device)
            assert output.logits is not None, "a cross_entropy term needs a model with classes"
            plain = objectives.cross_entropy(_wide(output.logits), target, None, self.smoothing)
            weights = torch.from_numpy(self._class_weight(batch.rows)).to(plain)
            return plain, weights * present
        if term.loss == "ccc":
            assert output.dimensions is not None
            target, weight = self._dimension_labels(batch, device)
            mix = self.mixes[term.name]
            return objectives.ccc_slot(_wide(output.dimensions), target, weight, mix), present.float()
        if term.loss == "ctc":
            return self._ctc(output, batch, present)
        taught = torch.from_numpy(self._taught(term, batch.rows) > 0).to(device)
        answered = {name: batch.target_present[name].to(device) & present & taught for name in term.sources}
        if term.loss == "multi_kl":
            return self._multi_kl(term, output, batch, answered)
        name = term.sources[0]
        target = batch.targets[name]
        weights = answered[name].float()
        if term.loss == "kl":
            assert output.logits is not None
            values = objectives.kl(
                _wide(output.logits),
                target["logits"].to(device),
                term.temperature,
                term.direction,
                "sum" if term.reduction == "batchmean" else "mean",
            )
        elif term.loss == "embedding":
            projected = _wide(output.embedding)
            if term.projector == "linear":
                assert self.projectors is not None
                projected = _wide(self.projectors(output.embedding)[name])
            said = target["embedding"].to(device)
            if term.standardise:
                mean, deviation = (part.to(device) for part in self.scales[name])
                said = (said - mean) / deviation
            values = objectives.embedding_distance(projected, said, term.distance)
        else:
            assert output.dimensions is not None
            values = (_wide(output.dimensions) - target["dimensions"].to(device)).square().mean(1)
        return values, weights

    def _ctc(self, output: ModelOutput, batch: Batch, present: Tensor) -> tuple[Tensor, Tensor]:
        assert self.transcripts is not None and output.tokens is not None and output.token_lengths is not None
        texts = batch.text or [None] * len(batch)
        numbers, counts = self.transcripts.alphabet(texts)
        known = torch.from_numpy(self.transcripts.known[batch.rows]).to(present)
        values = objectives.ctc(
            _wide(output.tokens),
            output.token_lengths,
            numbers.to(present.device),
            counts.to(present.device),
        )
        return values, (known & present).float()

    def _multi_kl(
        self, term: Term, output: ModelOutput, batch: Batch, answered: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        assert output.logits is not None
        logits = _wide(output.logits)
        teachers = torch.stack([batch.targets[name]["logits"].to(logits.device) for name in term.sources])
        here = torch.stack([answered[name] for name in term.sources])
        here = here & torch.from_numpy(self._asked(term, batch.rows)).to(here.device)
        if term.weights in ("uniform", "language"):
            shares = objectives.uniform_weights(here)
        elif term.weights == "uncertainty":
            shares = objectives.uncertainty_weights(teachers, here, term.tau)
        elif term.weights == "agreement":
            shares = objectives.agreement_weights(teachers, here, term.tau)
        else:
            scope = "batch" if term.weights == "batch_cosine" else "utterance"
            shares = objectives.cosine_weights(logits, teachers, term.tau, here, scope)
        reduction = "sum" if term.reduction == "batchmean" else "mean"
        values = objectives.multi_teacher_kl(
            logits,
            teachers,
            shares,
            temperature=term.temperature,
            direction=term.direction,
            reduction=reduction,
        )
        return values, here.any(0).float()

    def ccc_value(self, ccc_moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Value of each step-wide CCC term, for the log."""
        return {
            name: objectives.ccc_loss_from_moments(value, self.mixes[name])
            for name, value in ccc_moments.items()
        }


def _mix(term: Term, supervision: Supervision) -> Tensor:
    """(3,) float64 weights of the dimensions in a CCC term, which sum to 1.

    Those of the recipe (`mix`), else even ones; over the rated dimensions alone, because one that nobody rated must not
    shrink the others.
    """
    rated = torch.from_numpy(np.isfinite(supervision.dimensions).any(0)).double()
    if term.mix is not None:
        rated = rated * torch.tensor([term.mix.get(name, 0.0) for name in DIMENSIONS], dtype=torch.float64)
    total = rated.sum()
    return rated / total if total > 0 else rated


def _wide(values: Tensor) -> Tensor:
    """At least float32: losses of a bf16 model are taken in float32, those of a float64 one stay exact."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
