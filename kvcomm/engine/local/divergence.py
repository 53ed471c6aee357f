"""How far two prompts are apart along one continuation."""

from __future__ import annotations

import torch

from kvcomm.engine.base import COMPARED, SAME_TEXT, Divergence
from kvcomm.kv.precision import wide


def divergence(dense: torch.Tensor, other: torch.Tensor) -> Divergence:
    """From logits `[tokens, vocabulary]` of both along dense's greedy continuation.

    Mean KL(dense ‖ other) in nats over the first 24 tokens, and agreement of the best token: where
    it holds throughout, greedy decoding of the other one gives the same text.
    """
    p = torch.log_softmax(wide(dense), dim=-1)
    q = torch.log_softmax(wide(other), dim=-1)
    kl = (p.exp() * (p - q)).sum(dim=-1).clamp_min(0)
    same = dense.argmax(dim=-1) == other.argmax(dim=-1)
    return Divergence(
        mean=float(kl[:COMPARED].mean()),
        first=float(kl[0]),
        top1=float(wide(same[:COMPARED]).mean()),
        same_text=bool(same[:SAME_TEXT].all()),
    )
