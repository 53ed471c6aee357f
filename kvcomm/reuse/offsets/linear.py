"""Linear offsets: one online ridge regression a layer, from a token's base KV to its offset.

For every layer above 0 and each of its KV heads, the features of a token are the base keys and
values of that head, the target is the head's offset at the same token. (All heads of a layer
together err no less, for state that grows with the square of their number.) Only sufficient
statistics are kept, so memory does not grow with what was seen and texts of any length are
predicted. With n tokens, features x, targets y:

    C = E[xx'] - E[x]E[x]',  c = E[xy'] - E[x]E[y]',  s = sqrt(diag C)
    W = S^-1 (S^-1 C S^-1 + λI)^-1 S^-1 c,  b = E[y] - W'E[x]         (S = diag s)

so features are standardised and λ is scaled by the count, and larger while little was seen:
λ = 0.03 + 250 / n. Solved by Cholesky in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvcomm.kv import KV
from kvcomm.reuse.offsets.base import check_saved
from kvcomm.reuse.offsets.mean import LiteralMean
from kvcomm.reuse.plan import Verdict

RIDGE = 0.03
PRIOR_TOKENS = 250.0
# The share of the old running error that one more observation leaves.
FORGET = 0.9
# Solve again when this much more was seen than at the last solution.
GROWTH = 1.1
MIN_SAMPLES = 3


@dataclass(eq=False)
class _Sums:
    """Sufficient statistics of `groups` regressions: `[groups, ...]`, float64."""

    xx: torch.Tensor
    xy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    count: int

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> _Sums:
        """Those of features and targets, `[groups, tokens, width]` each."""
        products = (x.mT @ x).double(), (x.mT @ y).double()
        return cls(*products, x.double().sum(dim=1), y.double().sum(dim=1), x.shape[1])

    def copy(self) -> _Sums:
        """The same in tensors of their own."""
        xx, xy, x, y = (tensor.clone() for tensor in self.tensors)
        return _Sums(xx, xy, x, y, self.count)

    def add(self, other: _Sums) -> None:
        """Count what `other` has counted. Raises `ValueError` for another width."""
        if self.x.shape != other.x.shape:
            raise ValueError(
                f"statistics of the shapes {tuple(self.x.shape)} and {tuple(other.x.shape)}"
            )
        for mine, more in zip(self.tensors, other.tensors, strict=True):
            mine += more
        self.count += other.count

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All but the count."""
        return (self.xx, self.xy, self.x, self.y)


class LinearOffsets:
    """Ridge regressions for one placeholder kind of one template; see the module's text.

    `heads` "together" makes one regression of all heads of a layer. `error` is the model's
    confidence: the running share of squared offset error that is left on samples it had not seen
    (1: no better than rotating alone).
    """

    def __init__(self, ridge: float = RIDGE, heads: Literal["apart", "together"] = "apart") -> None:
        self.ridge = ridge
        self.heads = heads
        self._sums: _Sums | None = None
        self._weights: torch.Tensor | None = None  # [groups, features, targets]
        self._bias: torch.Tensor | None = None  # [groups, 1, targets]
        self._solved_at = 0
        self._seen = 0
        self._left, self._total = 0.0, 0.0
        self._literal = LiteralMean()
        self._untaken: LinearOffsets | None = None

    @property
    def samples(self) -> int:
        """Observations so far."""
        return self._seen

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._sums.count if self._sums else 0

    @property
    def error(self) -> float:
        """Running share of squared error left on unseen samples; 1 while nothing is known."""
        return min(self._left / self._total, 1.0) if self._total > 0 else 1.0

    def verdict(self, base: KV) -> Verdict:
        """Shareable once a few samples were seen and the prediction beats rotating alone."""
        numbers = f"{self._seen} samples, error left {self.error:.2f}"
        if self._seen < MIN_SAMPLES:
            return Verdict(False, f"too little learned: {numbers}", self._seen, self.error)
        if self.error >= 1:
            return Verdict(False, f"offsets not predictable: {numbers}", self._seen, self.error)
        return Verdict(True, f"linear offsets: {numbers}", self._seen, self.error)

    def predict(self, base: KV) -> KV:
        """The offset of every token. Raises `ValueError` when nothing was learned."""
        if self._weights is None or self._bias is None:
            raise ValueError("no linear offsets learned yet")
        x = self._features(base).to(self._weights.dtype)
        return self._unpack(torch.baddbmm(self._bias, x, self._weights), base)

    def predict_literal(self, base: KV, tokens: int) -> KV:
        """The mean offset seen at each token of the literal."""
        return self._literal.predict(tokens)

    def observe(self, base: KV, offset: KV, literal: KV) -> None:
        """Count the tokens of one computed placeholder, after predicting them as a test."""
        if len(base) == 0:
            return
        x, y = self._features(base).float(), self._features(offset).float()
        total = float(y.double().square().sum())
        left = total
        if self._weights is not None and self._bias is not None:
            left = float((y - torch.baddbmm(self._bias, x, self._weights)).double().square().sum())
        one = LinearOffsets(self.ridge, self.heads)
        one._sums, one._seen, one._left, one._total = _Sums.of(x, y), 1, left, total
        one._literal.observe(literal)
        for model in (self, self._untaken):
            if model is not None:
                model._add(one)
        if self.tokens >= GROWTH * self._solved_at:
            self._solve()

    def _add(self, other: LinearOffsets) -> None:
        """Count what another model has counted, as if it had been observed here just now."""
        if other._sums is None:
            return
        if self._sums is None:
            self._sums = other._sums.copy()
        else:
            self._sums.add(other._sums)
        forget = FORGET**other._seen
        self._left = forget * self._left + other._left
        self._total = forget * self._total + other._total
        self._literal.merge(other._literal)
        self._seen += other._seen

    def _solve(self) -> None:
        sums = self._sums
        assert sums is not None
        mean_x, mean_y = sums.x / sums.count, sums.y / sums.count
        scale = (sums.xx.diagonal(dim1=1, dim2=2) / sums.count - mean_x.square()).clamp_min(1e-12)
        inverse = scale.rsqrt()
        covariance = sums.xx / sums.count - mean_x[:, :, None] * mean_x[:, None, :]
        cross = sums.xy / sums.count - mean_x[:, :, None] * mean_y[:, None, :]
        system = covariance * inverse[:, :, None] * inverse[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(self.ridge + PRIOR_TOKENS / sums.count)
        factor = torch.linalg.cholesky(system)
        weights = torch.cholesky_solve(cross * inverse[:, :, None], factor) * inverse[:, :, None]
        bias = mean_y[:, None, :] - mean_x[:, None, :] @ weights
        self._weights, self._bias = weights.float(), bias.float()
        self._solved_at = sums.count

    def _features(self, kv: KV) -> torch.Tensor:
        """`[groups, tokens, width]` of layers 1 and up: keys and values side by side."""
        layers, heads, tokens, dim = kv.keys.shape
        both = torch.stack([kv.keys[1:], kv.values[1:]], dim=3)  # [layers-1, heads, tokens, 2, dim]
        if self.heads == "together":
            return both.permute(0, 2, 1, 3, 4).reshape(layers - 1, tokens, heads * 2 * dim)
        return both.reshape((layers - 1) * heads, tokens, 2 * dim)

    def _unpack(self, y: torch.Tensor, like: KV) -> KV:
        """The inverse of `_features`, with zeros for layer 0."""
        layers, heads, tokens, dim = like.keys.shape
        if self.heads == "together":
            both = y.reshape(layers - 1, tokens, heads, 2, dim).permute(0, 2, 1, 3, 4)
        else:
            both = y.reshape(layers - 1, heads, tokens, 2, dim)
        keys, values = torch.zeros_like(like.keys), torch.zeros_like(like.values)
        keys[1:], values[1:] = both[..., 0, :], both[..., 1, :]
        return KV(keys, values)

    @property
    def nbytes(self) -> int:
        """Bytes of statistics, solution and literal means."""
        tensors = [self._weights, self._bias]
        if self._sums:
            tensors += self._sums.tensors
        own = sum(t.nbytes for t in tensors if t is not None) + self._literal.nbytes
        return own + (self._untaken.nbytes if self._untaken else 0)

    def state(self) -> dict[str, torch.Tensor]:
        """Statistics and counters; the solution is found again from them."""
        if self._sums is None:
            return {}
        sums = self._sums
        counters = [sums.count, self._seen, self._left, self._total]
        return {
            "xx": sums.xx,
            "xy": sums.xy,
            "x": sums.x,
            "y": sums.y,
            "counters": torch.tensor(counters, dtype=torch.float64),
            **self._literal.state(),
        }

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Replace what was learned by what `state` returned.

        Raises `ValueError` for tensors that do not fit.
        """
        self._restore(tensors)
        self._solve()

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        check_saved(tensors)
        count, seen, left, total = tensors["counters"].tolist()
        xx, xy, x, y = (tensors[name].clone() for name in ("xx", "xy", "x", "y"))
        groups, width = x.shape
        square = (groups, width, width)
        if not (xx.shape == xy.shape == square and y.shape == x.shape and count >= 1):
            raise ValueError(f"statistics of the shapes {[*map(tuple, (xx.shape, xy.shape))]}")
        literal = LiteralMean()
        literal.load_state(tensors)
        self._sums = _Sums(xx, xy, x, y, int(count))
        self._seen, self._left, self._total, self._literal = int(seen), left, total, literal

    def merge(self, tensors: dict[str, torch.Tensor]) -> None:
        """Add the statistics of another model: the sums, so the solution is that of one model.

        The errors were found by the other one's own predictions. Raises `ValueError` for tensors
        that do not fit.
        """
        if tensors:
            other = LinearOffsets(self.ridge, self.heads)
            other._restore(tensors)
            self._add(other)
            self._solve()

    def take(self) -> dict[str, torch.Tensor]:
        """Statistics and counters of what was observed here since the last `take`."""
        taken, self._untaken = self._untaken, LinearOffsets(self.ridge, self.heads)
        return taken.state() if taken else {}


def state_bytes(layers: int, heads: int, dim: int) -> int:
    """Bytes that one placeholder kind comes to, statistics and solution, literals apart."""
    width = 2 * dim
    statistics = 8 * (2 * width * width + 2 * width)
    solution = 4 * (width * width + width)
    return (layers - 1) * heads * (statistics + solution)
