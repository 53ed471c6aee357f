"""The paper's anchor formulas, written as loops over single numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvcomm.kv import KV


def softmax_of_minus(distances: Sequence[float]) -> list[float]:
    nearest = min(distances)
    powers = [math.exp(nearest - distance) for distance in distances]
    return [power / sum(powers) for power in powers]


def entropy(base: KV, anchors: Sequence[KV]) -> float:
    """H(softmax(−‖V_φ − V_ψ‖)), Frobenius over layers, heads, the first tokens and dimensions."""
    layers, heads, tokens, dims = base.values.shape
    distances = []
    for anchor in anchors:
        total = 0.0
        for layer in range(layers):
            for head in range(heads):
                for token in range(tokens):
                    for dim in range(dims):
                        at = (layer, head, token, dim)
                        total += float(base.values[at] - anchor.values[at]) ** 2
        distances.append(math.sqrt(total))
    return -sum(weight * math.log(weight) for weight in softmax_of_minus(distances) if weight)


def placeholder_offset(
    base: torch.Tensor, bases: Sequence[torch.Tensor], offsets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Per token, weights from the mean absolute distance over layers, heads and dimensions."""
    layers, heads, tokens, dims = base.shape
    result = torch.zeros_like(base)
    for token in range(tokens):
        distances = []
        for other in bases:
            total = 0.0
            for layer in range(layers):
                for head in range(heads):
                    for dim in range(dims):
                        at = (layer, head, token, dim)
                        total += abs(float(base[at] - other[at]))
            distances.append(total / (layers * heads * dims))
        weights = softmax_of_minus(distances)
        for layer in range(1, layers):  # layer 0 is exact
            for offset, weight in zip(offsets, weights, strict=True):
                result[layer, :, token] += weight * offset[layer, :, token]
    return result


def literal_offset(
    base: torch.Tensor, bases: Sequence[torch.Tensor], literals: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Per layer, head and channel, weights from the ℓ2 distance over tokens, ends aligned."""
    layers, heads, tokens, dims = base.shape
    result = torch.zeros_like(literals[0])
    for layer in range(1, layers):  # layer 0 is exact
        for head in range(heads):
            for dim in range(dims):
                distances = []
                for other in bases:
                    total = 0.0
                    for back in range(1, tokens + 1):
                        at = base[layer, head, tokens - back, dim]
                        total += float(at - other[layer, head, other.shape[2] - back, dim]) ** 2
                    distances.append(math.sqrt(total))
                for literal, weight in zip(literals, softmax_of_minus(distances), strict=True):
                    result[layer, head, :, dim] += weight * literal[layer, head, :, dim]
    return result
