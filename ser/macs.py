"""Multiply-accumulates of a model's answer, counted by torch's FlopCounterMode while it runs.

Guarantees: matrix products, convolutions, recurrent cells and attention are counted wherever they stand, whatever the
weights; one multiply-accumulate is two of torch's flops. The count depends on the input's length alone, so it is the
same on every machine.
Gives up: Fourier transforms, norms, activations and hand-made features (prosody) are not counted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

HOW = "torch FlopCounterMode / 2 (matrix products, convolutions, recurrence, attention; no FFT, norms or prosody)"


def count_macs(answer: Callable[[Any], Any], batches: Sequence[Any]) -> int:
    """Multiply-accumulates of a model over some batches.

    Args:
        answer: What is counted: a model on the CPU in evaluation mode, or one with what computes its inputs.
        batches: What it is called with, one after the other.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    # Fused kernels would hide their matrix products from the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for batch in batches:
                answer(batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2
