"""A logits processor that has a request say given tokens, so that their logprobs can be read.

    vllm serve MODEL --logits-processors kvcomm.vllm.forced:ForcedTokens

A request with `"vllm_xargs": {"kvcomm_force": [ids]}` says these tokens first, whatever it would
have said, and `logprobs` are those of the model as it is: vLLM takes raw logprobs before processors
run. Requests without it are left alone.

vLLM's V2 model runner (the default where Triton is) refuses such classes at start. It has
`--enable-trace-replay` instead: `trace_decode_token_ids` of `/inference/v1/generate` (with
`--enable-scale-out`) force tokens in the same way. Where neither is there, a request a token says
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from kvcomm.vllm.protocol import FORCE

MOST = 4096


def forced_ids(extra: Any) -> list[int]:
    """The ids that the extra arguments of a request force. Raises `ValueError` for others."""
    ids = (extra or {}).get(FORCE) or []
    if not isinstance(ids, list | tuple) or len(ids) > MOST:
        raise ValueError(f"{FORCE} takes a list of at most {MOST} token ids")
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"{FORCE} takes token ids")
    return list(ids)


class ForcedTokens(AdapterLogitsProcessor):
    """See the module."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request that forces anything but token ids. Raises `ValueError`."""
        forced_ids(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """It changes what is likeliest."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None:
        """What is applied to the logits `[vocabulary]` of a request's next token, if anything."""
        forced = forced_ids(params.extra_args)
        if not forced:
            return None

        def force(said: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            at = len(said)
            if at < len(forced) and forced[at] < len(logits):
                kept = logits[forced[at]].clone()
                logits.fill_(float("-inf"))
                logits[forced[at]] = kept
            return logits

        return force
