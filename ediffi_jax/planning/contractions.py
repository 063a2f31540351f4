"""Multiply-adds of matrix products and convolutions, from their shapes; each is two FLOPs.

Of a convolution only the products of a weight with a number that exists count: those with padding and with
the zeros that dilation inserts are skipped, as XLA's own cost analysis does. The gradient of a strided
convolution, written with a dilated input, then costs what the convolution itself costs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np


def dot_flops(result: Sequence[int], contracted: Sequence[int]) -> int:
    """FLOPs of a matrix product.

    Args:
        result: sizes of the result, batch dimensions included.
        contracted: sizes summed over.
    """
    return 2 * math.prod(result) * math.prod(contracted)


def conv_flops(
    *,
    batch: int,
    features_in: int,
    features_out: int,
    windows: Sequence[tuple[int, ...]],
    groups: int = 1,
    batch_groups: int = 1,
) -> int:
    """FLOPs of a convolution.

    Args:
        batch, features_in: of the input.
        features_out: of the result.
        windows: of each spatial dimension, the arguments of `overlaps`.
        groups: of the features.
        batch_groups: of the batch.
    """
    pairs = math.prod(overlaps(*window) for window in windows)
    return 2 * (batch // batch_groups) * (features_in // groups) * features_out * pairs


@functools.lru_cache(maxsize=None)
def overlaps(
    size: int, kernel: int, result: int, stride: int, padding: int, input_dilation: int, kernel_dilation: int
) -> int:
    """Pairs of a result and a weight, along one dimension, whose input exists.

    Args:
        size, kernel, result: of input, weights and result along the dimension.
        stride: between results.
        padding: before the first input; negative cuts.
        input_dilation, kernel_dilation: spacing of inputs and of weights, 1 for none.
    """
    spread = (size - 1) * input_dilation + 1
    shift, spaced = (kernel_dilation, kernel), (stride, result)
    few, many = sorted((shift, spaced), key=lambda one: one[1])
    places = np.arange(many[1]) * many[0] - padding
    total = 0
    for index in range(few[1]):  # the shorter of the two in a loop: memory stays that of one row
        at = places + index * few[0]
        total += int(((at >= 0) & (at < spread) & (at % input_dilation == 0)).sum())
    return total
