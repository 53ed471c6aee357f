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

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import torch

from kvcomm.kv import KV
from kvcomm.kv.precision import place_for, wide
from kvcomm.reuse.offsets.base import OtherShape, check_saved
from kvcomm.reuse.offsets.literal import LiteralMean
from kvcomm.reuse.plan import Predictability, linear_says

RIDGE = 0.03
PRIOR_TOKENS = 250.0
# The share of the old running error that one more observation leaves.
FORGET = 0.9
# Solve again when this much more was seen than at the last solution.
GROWTH = 1.1
# Layers counted or predicted at a time, and regressions solved: on the way they need several times
# what comes of it.
LAYERS = 4
GROUPS = 16


@dataclass(eq=False)
class _Sums:
    """Sufficient statistics of `groups` regressions: `[groups, ...]`, float64."""

    xx: torch.Tensor
    xy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    count: int

    @classmethod
    def empty(cls, kv: KV) -> _Sums:
        """Room for those of the tokens of `kv`; see `put`."""
        layers, heads, tokens, dim = kv.keys.shape
        groups, width = (layers - 1) * heads, 2 * dim
        where = place_for(torch.float64, kv.keys.device)

        def room(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float64, device=where)

        xx, xy = room(groups, width, width), room(groups, width, width)
        return cls(xx, xy, room(groups, width), room(groups, width), tokens)

    def put(self, groups: slice, x: torch.Tensor, y: torch.Tensor) -> None:
        """Those of features and targets, `[groups, tokens, width]` each."""
        self.xx[groups], self.xy[groups] = wide(x.mT @ x), wide(x.mT @ y)
        self.x[groups], self.y[groups] = wide(x).sum(dim=1), wide(y).sum(dim=1)

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

    def solve(self, groups: slice, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """W `[groups, features, targets]` and b `[groups, 1, targets]`, λ being `ridge`."""
        xx, xy, x, y = (tensor[groups] / self.count for tensor in self.tensors)
        inverse = (xx.diagonal(dim1=1, dim2=2) - x.square()).clamp_min(1e-12).rsqrt()
        system = xx.sub_(x[:, :, None] * x[:, None, :])
        system.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
        system.diagonal(dim1=1, dim2=2).add_(ridge)
        cross = xy.sub_(x[:, :, None] * y[:, None, :]).mul_(inverse[:, :, None])
        factor = torch.linalg.cholesky(system)
        weights = torch.cholesky_solve(cross, factor).mul_(inverse[:, :, None])
        return weights, y[:, None, :] - x[:, None, :] @ weights

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All but the count."""
        return (self.xx, self.xy, self.x, self.y)


class LinearOffsets:
    """Ridge regressions for one placeholder kind of one template; see the module's text.

    `error` is the model's confidence: the running share of squared offset error that is left on
    samples it had not seen (1: no better than rotating alone).
    """

    def __init__(self, ridge: float = RIDGE) -> None:
        self.ridge = ridge
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

    def predictability(self, base: KV) -> Predictability:
        """Shareable once a few samples were seen and the prediction beats rotating alone."""
        return linear_says(self._seen, self.error)

    def frozen(self) -> LinearOffsets:
        """Predicts as this one does now: a new solution replaces the tensors of the old one."""
        return copy(self)

    def predict(self, base: KV) -> KV:
        """The offset of every token. Raises `ValueError` when nothing was learned."""
        solution = self._solution(base.keys.device)
        if solution is None:
            raise ValueError("no linear offsets learned yet")
        weights, bias = solution
        count, heads, _, dim = base.keys.shape
        if weights.shape[:2] != ((count - 1) * heads, 2 * dim):
            raise OtherShape
        offset = KV(torch.zeros_like(base.keys), torch.zeros_like(base.values))
        for layers, groups in _blocks(base):
            x = features(base, layers).to(weights.dtype)
            y = torch.baddbmm(bias[groups], x, weights[groups])
            _unpack(y, offset, layers)
        return offset

    def predict_literal(self, base: KV, tokens: int) -> KV:
        """The mean offset seen at each token of the literal."""
        return self._literal.predict(tokens)

    def observe(self, base: KV, offset: KV, literal: KV) -> None:
        """Count the tokens of one computed placeholder, after predicting them as a test."""
        if len(base) == 0:
            return
        one = LinearOffsets(self.ridge)
        one._sums = _Sums.empty(base)
        solution = self._solution(base.keys.device)
        for layers, groups in _blocks(base):
            x, y = (features(kv, layers).float() for kv in (base, offset))
            one._sums.put(groups, x, y)
            one._total += float(wide(y).square().sum())
            if solution is not None:
                weights, bias = solution
                y -= torch.baddbmm(bias[groups], x, weights[groups])
            one._left += float(wide(y).square().sum())
        one._seen = 1
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
        ridge = self.ridge + PRIOR_TOKENS / sums.count
        weights = torch.empty_like(sums.xy, dtype=torch.float32)
        bias = torch.empty_like(sums.y[:, None], dtype=torch.float32)
        for start in range(0, len(sums.x), GROUPS):
            groups = slice(start, start + GROUPS)
            weights[groups], bias[groups] = sums.solve(groups, ridge)
        self._weights, self._bias = weights, bias
        self._solved_at = sums.count

    def _solution(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """W and b where the KV is: they are solved where float64 is."""
        if self._sums is None:
            return None
        if not self._solved_at:
            self._solve()
        assert self._weights is not None
        assert self._bias is not None
        self._weights, self._bias = self._weights.to(device), self._bias.to(device)
        return self._weights, self._bias

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
        if literal.shape is not None:
            layers, heads, dim = literal.shape
            if ((layers - 1) * heads, 2 * dim) != (groups, width):
                raise ValueError(f"a literal of the shape {literal.shape}")
        self._sums = _Sums(xx, xy, x, y, int(count))
        self._seen, self._left, self._total, self._literal = int(seen), left, total, literal

    def merge(self, tensors: dict[str, torch.Tensor]) -> None:
        """Add the statistics of another model: the sums, so the solution is that of one model.

        The errors were found by the other one's own predictions. Raises `ValueError` for tensors
        that do not fit. It is solved again when that is asked for.
        """
        if tensors:
            other = LinearOffsets(self.ridge)
            other._restore(tensors)
            self._add(other)
            self._solved_at = 0

    def take(self) -> dict[str, torch.Tensor]:
        """Statistics and counters of what was observed here since the last `take`."""
        taken, self._untaken = self._untaken, LinearOffsets(self.ridge)
        return taken.state() if taken else {}


def _blocks(kv: KV) -> Iterator[tuple[slice, slice]]:
    """A few layers at a time, and their regressions."""
    layers, heads = kv.keys.shape[:2]
    for start in range(1, layers, LAYERS):
        stop = min(start + LAYERS, layers)
        yield slice(start, stop), slice((start - 1) * heads, (stop - 1) * heads)


def features(kv: KV, layers: slice) -> torch.Tensor:
    """`[groups, tokens, width]`: keys and values side by side."""
    return torch.cat([kv.keys[layers], kv.values[layers]], dim=3).flatten(0, 1)


def _unpack(y: torch.Tensor, into: KV, layers: slice) -> None:
    """The inverse of `features`."""
    keys, values = y.chunk(2, dim=2)  # [layers * heads, tokens, dim]
    shape = into.keys[layers].shape
    into.keys[layers], into.values[layers] = keys.reshape(shape), values.reshape(shape)


def state_bytes(layers: int, heads: int, dim: int) -> int:
    """Bytes that one placeholder kind comes to, statistics and solution, literals apart."""
    width = 2 * dim
    statistics = 8 * (2 * width * width + 2 * width)
    solution = 4 * (width * width + width)
    return (layers - 1) * heads * (statistics + solution)
