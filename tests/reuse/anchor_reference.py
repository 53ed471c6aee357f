"""The paper's anchor formulas, one distance at a time, in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvcomm.kv import KV


def numbers(tensor: torch.Tensor) -> list[float]:
    return tensor.flatten().tolist()


def softmax_of_minus(distances: Sequence[float]) -> list[float]:
    nearest = min(distances)
    powers = [math.exp(nearest - distance) for distance in distances]
    return [power / sum(powers) for power in powers]


def entropy(base: KV, anchors: Sequence[KV]) -> float:
    """H(softmax(−‖V_φ − V_ψ‖)), Frobenius over layers, heads, the first tokens and dimensions."""
    own, tokens = numbers(base.values), len(base)
    weights = softmax_of_minus(
        [math.dist(own, numbers(anchor.values[:, :, :tokens])) for anchor in anchors]
    )
    return -sum(weight * math.log(weight) for weight in weights if weight)


def placeholder_offset(
    base: torch.Tensor, bases: Sequence[torch.Tensor], offsets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Per token, weights from the mean absolute distance over layers, heads and dimensions."""
    result = torch.zeros_like(base)
    for token in range(base.shape[2]):
        own = numbers(base[:, :, token])
        distances = []
        for other in bases:
            pairs = zip(own, numbers(other[:, :, token]), strict=True)
            distances.append(sum(abs(a - b) for a, b in pairs) / len(own))
        for offset, weight in zip(offsets, softmax_of_minus(distances), strict=True):
            result[1:, :, token] += weight * offset[1:, :, token]  # layer 0 is exact
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
                own = numbers(base[layer, head, :, dim])
                distances = [
                    math.dist(own, numbers(other[layer, head, -tokens:, dim])) for other in bases
                ]
                for literal, weight in zip(literals, softmax_of_minus(distances), strict=True):
                    result[layer, head, :, dim] += weight * literal[layer, head, :, dim]
    return result
