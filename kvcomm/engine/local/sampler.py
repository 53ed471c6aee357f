"""Drawing a token from logits."""

from __future__ import annotations

import torch

from kvcomm.errors import NotANumber
from kvcomm.sampling import Sampling


class Sampler:
    """Draws the tokens of one call from its own generator, independent of what runs beside it."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, logits: torch.Tensor) -> int:
        """One token id from logits `[vocabulary]`.

        Raises `NotANumber` for logits that are no distribution: NaN, infinite, all impossible.
        """
        if self.sampling.temperature == 0:
            token = int(logits.argmax())
            if torch.isnan(logits[token]):
                raise NotANumber(logits.dtype)
            return token
        probabilities = torch.softmax(logits.float().cpu() / self.sampling.temperature, dim=-1)
        if torch.isnan(probabilities).any():
            raise NotANumber(logits.dtype)
        if self.sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True, stable=True)
            # A token stays while the mass before it is below top_p: the first always stays.
            before = ordered.cumsum(0) - ordered
            ordered[before >= self.sampling.top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter_(0, order, ordered)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
