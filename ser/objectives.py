"""Training objectives: pure functions of tensors, nothing else.

Guarantees: every per-row objective returns a loss of shape (B,), never reduced; which rows count, and by how much,
is the caller's row weight (a global step may be spread over slots and ranks, so only the caller knows its sum).
A missing label (class -1, or a distribution of zeros) gives a loss of exactly 0. The concordance correlation is a
function of a whole set, so it comes as additive moments, a value of the moments and a gradient of the moments.

Gives up: no function keeps state, so loss weights, schedules and teacher choice live in the recipe.

Symbols: B rows, K classes, D dimensions (valence, arousal, dominance), E embedding size, N teachers.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["forward", "reverse"]
Reduction = Literal["sum", "mean"]
Distance = Literal["cosine", "mse", "l1"]

# A set whose pooled variance lies below this share of its mean square is constant as far as float64 can tell.
_CONSTANT = 1e-12


# ---- classes ------------------------------------------------------------------------------------------------------


def class_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """Weights proportional to 1 / count^power with mean 1 over the rows that were counted.

    Args:
        counts: (K,) rows of each class in the fold's training part.
        power: 1 balances the classes fully, 0 gives weights of 1.

    Returns:
        (K,) float64; a class without rows weighs 0.
    """
    counts = counts.to(torch.float64)
    raw = torch.where(counts > 0, counts.clamp_min(1).pow(-power), 0.0)
    total = (raw * counts).sum()
    return raw * counts.sum() / total if total > 0 else raw


def cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of each row, -sum_k w_k p_k log softmax(logits)_k, in nats.

    With smoothing s the target distribution is (1 - s) p + s / K (Szegedy et al. 2016, section 7); class weights
    multiply after smoothing, as in torch's own function.

    Args:
        logits: (B, K).
        target: (B,) integer classes, -1 where missing; or (B, K) soft labels, a row of zeros where missing.
        weights: (K,) class weights, or None.
        smoothing: s in [0, 1).

    Returns:
        (B,) losses, 0 where the label is missing.
    """
    log_q = F.log_softmax(logits, dim=-1)
    classes = logits.shape[-1]
    if target.dim() == logits.dim():
        p = target.to(log_q.dtype)
        known = p.sum(-1) > 0
    else:
        known = target >= 0
        p = F.one_hot(target.clamp_min(0), classes).to(log_q.dtype)
    if smoothing:
        p = (1 - smoothing) * p + smoothing / classes
    if weights is not None:
        p = p * weights.to(p)
    return torch.where(known, -(p * log_q).sum(-1), 0.0)


# ---- dimensions: the concordance correlation ----------------------------------------------------------------------


def moments(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums that the concordance correlation is a function of; add them over slots and ranks.

    Args:
        pred: (B, D) predictions.
        target: (B, D) labels; any value (nan too) where the weight is 0.
        weight: (B,) or (B, D) weights, 0 where a label is missing.

    Returns:
        (6, D) float64: sums of w, w y, w t, w y^2, w t^2, w y t.
    """
    y, t, w = _rows(pred, target, weight)
    return torch.stack([w, w * y, w * t, w * y * y, w * t * t, w * y * t]).sum(1)


def ccc_from_moments(sums: Tensor) -> Tensor:
    """Concordance correlation of each dimension (Lin 1989; population variances, as in papers 1 and 3).

    CCC = 2 cov(y, t) / (var(y) + var(t) + (mean(y) - mean(t))^2).

    Args:
        sums: (6, D) from `moments`, summed over the whole set.

    Returns:
        (D,) float64 in [-1, 1]; 0 where no row counts, or where predictions and labels are one constant.
    """
    numerator, denominator, defined, *_ = _parts(sums)
    return torch.where(defined, numerator / torch.where(defined, denominator, 1.0), 0.0)


def ccc_loss_from_moments(sums: Tensor, mix: Tensor | None = None) -> Tensor:
    """1 - sum_d mix_d CCC_d, the loss of Mitra et al. 2022; `mix` (D,) sums to 1, None is the plain mean.

    A dimension without labels gives no loss: its term is mix_d (1 - CCC_d) with CCC_d taken as 1.
    """
    mix = _mix(sums, mix)
    return (mix * torch.where(sums[0] > 0, 1 - ccc_from_moments(sums), 0.0)).sum()


def ccc_gradient(
    sums: Tensor, pred: Tensor, target: Tensor, weight: Tensor, mix: Tensor | None = None
) -> Tensor:
    """dL/dy_i of L = `ccc_loss_from_moments`, for the rows of one slot, from the moments of all slots.

    dCCC/dy_i = 2 w_i / (n D) ((t_i - mean t) - CCC (y_i - mean t)), n the sum of weights and D CCC's denominator
    (derivative of Lin's formula; it equals autograd through the whole set). A second pass back-propagates
    `ccc_surrogate`, so no graph has to span slots or ranks.

    Args:
        sums: (6, D) moments of the whole global step.
        pred, target, weight: As in `moments`, this slot's rows. `pred` is used as a constant.
        mix: (D,) as in `ccc_loss_from_moments`.

    Returns:
        (B, D) float64, no graph attached; 0 where the weight is 0.
    """
    with torch.no_grad():
        y, t, w = _rows(pred, target, weight)
        numerator, denominator, defined, n, mean_t = _parts(sums)
        safe = torch.where(defined, denominator, 1.0)
        ccc = numerator / safe
        slope = 2 * w / (n.clamp_min(torch.finfo(n.dtype).tiny) * safe) * ((t - mean_t) - ccc * (y - mean_t))
        return torch.where(defined, -_mix(sums, mix) * slope, 0.0)


def ccc_surrogate(pred: Tensor, gradient: Tensor) -> Tensor:
    """(B,) values sum_d g_id y_id whose gradient is that of the set's loss; the value itself means nothing."""
    return (gradient.to(pred.dtype).detach() * pred).sum(-1)


def ccc_memory(memory: Tensor | None, sums: Tensor, keep: float) -> Tensor:
    """Moments of recent global steps, the older the fainter: what the next step adds to its own (approximate).

    memory' = keep (memory + sums), so a step that lies n steps back counts keep^n. Adding it to a step's own moments in
    `ccc_loss_from_moments` and `ccc_gradient` takes CCC over more rows than a step holds. Approximate, because remembered
    outputs are those of older weights, and are constants in the gradient. After momentum queues (He et al. 2020, MoCo,
    section 3.2), kept as moments instead of rows.

    Args:
        memory: (6, D) on any device, or None at the start.
        sums: (6, D) moments of the step that ends.
        keep: In [0, 1); 1 / (1 - keep) steps are remembered on average.
    """
    sums = sums.detach()
    return keep * (sums if memory is None else memory.to(sums) + sums)


def ccc_slot(pred: Tensor, target: Tensor, weight: Tensor, mix: Tensor | None = None) -> Tensor:
    """The same loss over one slot alone, differentiable; for LEGACY, where papers took CCC over a mini-batch.

    Returns:
        Scalar in float64. It depends on how rows fall into slots, so it is no per-row loss.
    """
    return ccc_loss_from_moments(moments(pred, target, weight), mix)


def _rows(pred: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = pred.to(torch.float64)
    w = weight.to(torch.float64)
    w = (w if w.dim() == y.dim() else w.unsqueeze(-1)).expand_as(y)
    # nan * 0 is nan: both sides are replaced, not multiplied away.
    t = torch.where(w > 0, target.to(torch.float64), 0.0)
    return torch.where(w > 0, y, 0.0), t, w


def _parts(sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, y, t, yy, tt, yt = sums
    count = torch.where(n > 0, n, 1.0)
    mean_y, mean_t = y / count, t / count
    numerator = 2 * (yt / count - mean_y * mean_t)
    # var(y) + var(t) + (mean y - mean t)^2 multiplied out.
    square = (yy + tt) / count
    denominator = square - 2 * mean_y * mean_t
    defined = (n > 0) & (denominator > _CONSTANT * square)
    return numerator, denominator, defined, n, mean_t


def _mix(sums: Tensor, mix: Tensor | None) -> Tensor:
    return sums.new_full((sums.shape[1],), 1 / sums.shape[1]) if mix is None else mix.to(sums)


# ---- distillation -------------------------------------------------------------------------------------------------


def kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    direction: Direction = "forward",
    reduction: Reduction = "sum",
) -> Tensor:
    """T^2 KL between softened distributions, for each row (Hinton et al. 2015, section 2.1 for T^2).

    forward: KL(P_T || P_S) = sum_k p_T (log p_T - log p_S), what the released code of Bijoy et al. 2025 computes;
    reverse: KL(P_S || P_T), their equation 3. "sum" over classes is torch's `batchmean` once rows are averaged;
    "mean" divides by K as well, as `KLDivLoss(reduction="mean")` silently does (LEGACY).

    Args:
        student, teacher: (B, K) logits (log-probabilities are logits too). The teacher's are taken as constants.
        temperature: T > 0.

    Returns:
        (B,) losses in nats times T^2.
    """
    log_s = F.log_softmax(student / temperature, dim=-1)
    log_t = F.log_softmax(teacher.detach().to(student.dtype) / temperature, dim=-1)
    p, q = (log_t, log_s) if direction == "forward" else (log_s, log_t)
    terms = p.exp() * (p - q) * temperature**2
    return terms.sum(-1) if reduction == "sum" else terms.mean(-1)


def embedding_distance(student: Tensor, teacher: Tensor, kind: Distance = "cosine") -> Tensor:
    """Distance of two embeddings of one size, for each row; the teacher's is taken as a constant.

    cosine: 1 - cos. mse: squared distance of the L2-normalised embeddings summed over E, which is 2 (1 - cos): summed,
    so that its weight means the same at every embedding size. l1: mean absolute difference of the raw embeddings.

    Args:
        student, teacher: (B, E). A zero vector has cosine 0 to everything.

    Returns:
        (B,) distances.
    """
    teacher = teacher.detach().to(student.dtype)
    if kind == "l1":
        return (student - teacher).abs().mean(-1)
    s, t = F.normalize(student, dim=-1, eps=1e-8), F.normalize(teacher, dim=-1, eps=1e-8)
    return 1 - (s * t).sum(-1) if kind == "cosine" else (s - t).square().sum(-1)


def uniform_weights(present: Tensor) -> Tensor:
    """(N, B) weights 1 / (number of present teachers) of each row; a row that no teacher answered gets zeros."""
    share = present.to(torch.get_default_dtype())
    return share / share.sum(0).clamp_min(1)


def uncertainty_weights(teachers: Tensor, present: Tensor, tau: float = 0.25) -> Tensor:
    """Teacher weights softmax_i(-H(p_i) / (tau log K)): who is sure of an utterance counts for more there.

    H is the entropy of the teacher's posterior in nats, divided by its largest value so that tau means the same for any
    number of classes (confidence as in Kwon et al. 2020, "Adaptive knowledge distillation based on entropy", section 3,
    with a softmax for their reciprocal).

    Args:
        teachers: (N, B, K) logits, constants; present: (N, B) bool; tau: below 1 sharpens.

    Returns:
        (N, B); each row sums to 1 over its present teachers, or is zero where none is present.
    """
    teachers = torch.where(present.unsqueeze(-1), teachers.detach(), 0.0)
    log_p = F.log_softmax(teachers, dim=-1)
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(teachers.shape[-1])
    return _shares(-entropy / tau, present)


def agreement_weights(teachers: Tensor, present: Tensor, tau: float = 0.25) -> Tensor:
    """Teacher weights softmax_i(-JS(p_i, m_i) / (tau log 2)), m_i the mean posterior of the other present teachers.

    Who stands alone counts for less. JS is the Jensen-Shannon divergence in nats, at most log 2 (Lin 1991, equation 4.1).
    A teacher that is alone in a row gets all of it.

    Args, Returns: As `uncertainty_weights`.
    """
    p = F.softmax(torch.where(present.unsqueeze(-1), teachers.detach(), 0.0), dim=-1) * present.unsqueeze(-1)
    count = present.sum(0)
    others = (p.sum(0) - p) / (count - present.to(count.dtype)).clamp_min(1).unsqueeze(-1)
    middle = (p + others) / 2
    divergence = (_plogq(p, p) + _plogq(others, others)) / 2 - _plogq(middle, middle)
    return _shares(-divergence / (tau * math.log(2)), present)


def _plogq(p: Tensor, q: Tensor) -> Tensor:
    """sum_k p_k log q_k with 0 log 0 = 0."""
    return torch.where(p > 0, p * q.clamp_min(torch.finfo(q.dtype).tiny).log(), 0.0).sum(-1)


def _shares(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present teachers of each row; zeros where there is none."""
    scores = scores.masked_fill(~present, -torch.inf)
    # A row without teachers would be softmax of -inf alone, which is nan.
    return torch.where(present.any(0), scores, 0.0).softmax(0) * present


def cosine_weights(
    student: Tensor,
    teachers: Tensor,
    tau: float = 0.25,
    present: Tensor | None = None,
    scope: Literal["utterance", "batch"] = "utterance",
) -> Tensor:
    """Teacher weights softmax_i(cos(l_S, l_Ti) / tau), detached (Bijoy et al. 2025, equation 1).

    "utterance" reads the equation row by row. "batch" takes the mean cosine over the rows given, one weight vector
    for all of them, which is what the released code does (LEGACY; it depends on how rows fall into slots).

    Args:
        student: (B, K) logits; teachers: (N, B, K) logits; tau: below 1 sharpens.
        present: (N, B) bool, False where a teacher has no answer; None is all True.

    Returns:
        (N, B); each row sums to 1 over its present teachers, or is zero where none is present.
    """
    student = student.detach()
    teachers = teachers.detach().to(student.dtype)
    known = (
        torch.ones(teachers.shape[:2], dtype=torch.bool, device=student.device)
        if present is None
        else present
    )
    cosine = F.cosine_similarity(teachers, student.unsqueeze(0), dim=-1)
    if scope == "batch":
        rows = known.to(cosine.dtype)
        cosine = ((cosine * rows).sum(1, keepdim=True) / rows.sum(1, keepdim=True).clamp_min(1)).expand_as(
            cosine
        )
    return _shares(cosine / tau, known)


def multi_teacher_kl(student: Tensor, teachers: Tensor, weights: Tensor, **options) -> Tensor:
    """sum_i w_i KL_i for each row (Bijoy et al. 2025, section 2); `options` are those of `kl`.

    Args:
        student: (B, K); teachers: (N, B, K); weights: (N, B), 0 where a teacher has no answer.
    """
    terms = torch.stack([kl(student, teacher, **options) for teacher in teachers])
    return torch.where(weights > 0, weights.to(terms) * terms, 0.0).sum(0)


def product_of_experts(logits: Tensor, present: Tensor, log_prior: Tensor) -> Tensor:
    """Log-posterior of experts that are independent given the class: sum_i log p_i - (n - 1) log prior.

    Bayes' rule for conditionally independent observations (Kittler et al. 1998, equation 7), n being the row's
    present experts; a row without any gets the prior.

    Args:
        logits: (N, B, K); present: (N, B) bool; log_prior: (K,).

    Returns:
        (B, K) log-probabilities.
    """
    here = present.unsqueeze(-1)
    total = torch.where(here, F.log_softmax(logits, dim=-1), 0.0).sum(0)
    extra = here.sum(0).to(total) - 1
    return F.log_softmax(total - extra * log_prior.to(total), dim=-1)


def ctc(scores: Tensor, lengths: Tensor, characters: Tensor, counts: Tensor) -> Tensor:
    """Connectionist temporal classification, a character (Graves et al. 2006, equation 8): -log p(text | frames) / S.

    Args:
        scores: (B, T, V) unnormalised scores, the blank is number 0. lengths: (B,) true frames.
        characters: (B, S) numbers from 1 on. counts: (B,) characters.

    Returns:
        (B,) losses in nats a character; 0 for a row without characters or with too few frames to say them all.
    """
    log_p = F.log_softmax(scores, dim=-1).transpose(0, 1)
    possible = (counts > 0) & (lengths > 0)
    # A row without frames or text still needs a valid shape; its loss is dropped.
    total = F.ctc_loss(
        log_p, characters, lengths.clamp_min(1), counts, blank=0, reduction="none", zero_infinity=True
    )
    return torch.where(possible, total / counts.clamp_min(1), 0.0)
