"""Multiply-accumulates of a model's answer, counted by torch's FlopCounterMode while it runs.

Guarantees: matrix products, convolutions, recurrent cells and attention are counted wherever they stand, whatever the
weights; one multiply-accumulate is two of torch's flops. The count depends on the input's length alone, so it is the
same on every machine.
Gives up: Fourier transforms, norms, activations and hand-made features (prosody) are not counted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

HOW = "torch FlopCounterMode / 2 (matrix products, convolutions, recurrence, attention; no FFT, norms or prosody)"


def count_macs(model: torch.nn.Module, batches: Sequence[Any]) -> int:
    """Multiply-accumulates of a model over some batches, in evaluation mode.

    Args:
        model: On the CPU; its mode is restored.
        batches: What the model reads, completed.
    """
    training, fast = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    # Fused kernels would hide their matrix products from the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for batch in batches:
                model(batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(training)
    return counter.get_total_flops() // 2
