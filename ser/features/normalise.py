"""Mean and deviation of frame features over true frames only.

Who fits them has heard the utterances they were fitted on: the caller records that as `fit` exposure.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def fit(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature over the true frames of all batches, summed in float64.

    Args:
        batches: (frames (B, F, D), lengths (B,)) pairs.

    Returns:
        (D,) mean and (D,) deviation, float32; a feature that never moves gets deviation 1.
    """
    count, total, square = 0, None, None
    for frames, lengths in batches:
        inside = torch.arange(frames.shape[1])[None, :] < lengths[:, None]
        values = frames[inside].double()
        count += len(values)
        total = values.sum(0) if total is None else total + values.sum(0)
        square = values.square().sum(0) if square is None else square + values.square().sum(0)
    assert count and total is not None and square is not None, "no frames to fit on"
    mean = total / count
    deviation = (square / count - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(deviation > 1e-6, deviation, 1.0).float()
