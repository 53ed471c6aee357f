"""Reuse policies: pure functions from facts about segments to steps. They never touch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kvcomm.errors import UsageError
from kvcomm.reuse.plan import Fact, Plan, Step

MODES = ("auto", "exact", "kvcomm", "dense")


@runtime_checkable
class Policy(Protocol):
    """How a call's segments are obtained.

    `ahead`: rows grow before the last input is complete, so `plan` sees a prompt piece by piece,
    and of a message that is still being written, `leading` tokens are computed.
    `reads_prefix`, `feeds_prefix`: what its calls do with the prefix cache. `hands_over`: messages
    carry a handle on their KV. `realigns`: the policy wants base KV, of literals too if `literals`,
    and verdicts of the family `offsets`. `borrows`: base KV of inputs is that of an earlier reader,
    and not made of the input alone.
    """

    name: str
    ahead: bool
    reads_prefix: bool
    feeds_prefix: bool
    hands_over: bool
    realigns: bool
    borrows: bool
    literals: bool
    offsets: str

    def leading(self, tokens: int, most: int) -> int:
        """How many leading tokens of a message are computed once it has `tokens` of `most`."""

    def plan(self, facts: Sequence[Fact]) -> Plan:
        """One step for each fact, in order."""


class Dense:
    """The reference: the whole prompt is prefilled when the last input is there."""

    name, ahead = "dense", False
    reads_prefix, feeds_prefix = False, False
    realigns, borrows, literals, offsets = False, False, False, ""

    def __init__(self, reason: str = "dense mode", *, hands_over: bool = False) -> None:
        self.reason = reason
        self.hands_over = hands_over

    def leading(self, tokens: int, most: int) -> int:
        """Nothing: it waits for all inputs."""
        return 0

    def plan(self, facts: Sequence[Fact]) -> Plan:
        """Compute everything."""
        return Plan((Step("compute", self.reason),) * len(facts), self.reason, dense=True)


class Exact:
    """Prefix hits and working ahead: the same tokens, earlier or never again. Lossless."""

    name, ahead = "exact", True
    reads_prefix, feeds_prefix = True, True
    realigns, borrows, literals, offsets = False, False, False, ""

    def __init__(
        self, reason: str = "exact: prefix hits and work ahead", *, hands_over: bool = True
    ) -> None:
        self.reason = reason
        self.hands_over = hands_over

    def leading(self, tokens: int, most: int) -> int:
        """All."""
        return tokens

    def plan(self, facts: Sequence[Fact]) -> Plan:
        """Compute what no exact prefix holds."""
        step = Step("compute", "in no prefix")
        return Plan((step,) * len(facts), self.reason, dense=False)


@dataclass(frozen=True)
class Anchors:
    """The paper's two numbers: γ of the entropy test, and V, the most anchors in a pool.

    Raises `UsageError` for a γ outside 0 to 1, and for a pool of less than two anchors.
    """

    gamma: float = 0.3
    capacity: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UsageError(f"gamma {self.gamma!r}: use 0 to 1; the paper has 0.3, 1 lets all in")
        if self.capacity < 2:
            raise UsageError(f"{self.capacity!r} anchors: a pool needs at least 2")

    @property
    def family(self) -> str:
        """The family of offset models with these numbers."""
        if self == Anchors():
            return "anchors"
        return f"anchors:gamma={self.gamma!r},capacity={self.capacity}"


class Kvcomm:
    """The paper: realign every placeholder, or prefill the whole prompt (section 3 of the paper).

    A call is realigned when every placeholder passes the length and entropy tests; literals after
    a placeholder get their own offsets, the first literal is exact, and only tokens without KV
    and the prompt's last token are computed. Otherwise the call is dense, and the placeholders
    that failed become anchors. The row grows while messages are written, in the hope that they
    will pass too; where one does not, it starts over. Not `gated`, two anchors of the length are
    enough: so the paper's code measures time to first token (γ = 1).
    """

    name, ahead, hands_over = "kvcomm", True, True
    # Only the literals before the first placeholder are kept, as the paper does.
    reads_prefix, feeds_prefix = True, False
    realigns, borrows, literals = True, False, True

    def __init__(self, *, gated: bool = True, anchors: Anchors = Anchors()) -> None:
        self.gated = gated
        self.offsets = anchors.family

    def leading(self, tokens: int, most: int) -> int:
        """None: all of a message is realigned."""
        return 0

    def plan(self, facts: Sequence[Fact]) -> Plan:
        """All or nothing, as published; of a piece of a prompt, all so far or nothing."""
        refused = {
            i: why
            for i, fact in enumerate(facts)
            if fact.kind == "placeholder" and (why := self._refusal(fact))
        }
        if refused:
            reasons = "; ".join(f"{{{facts[i].name}}}: {why}" for i, why in refused.items())
            step = Step("compute", f"dense, because {reasons}")
            learn = tuple(i for i in refused if facts[i].covered)
            gate = f"dense: {reasons}"
            return Plan((step,) * len(facts), gate, dense=True, learn=learn, whole=True)
        if not any(f.kind == "placeholder" for f in facts):
            step = Step("compute", "nothing to realign")
            return Plan((step,) * len(facts), "dense: no placeholder", dense=True)
        before = (None, *facts[:-1])
        steps = tuple(map(self._step, facts, before))
        return Plan(steps, "realigned", dense=False)

    def _refusal(self, fact: Fact) -> str | None:
        """Why a placeholder cannot be shared; None when it can."""
        if fact.tokens == 0:
            return None
        if not fact.covered:
            return fact.absent
        if fact.verdict is None:
            return "no verdict"
        passes = fact.verdict.shareable if self.gated else fact.verdict.usable
        return None if passes else fact.verdict.reason

    @staticmethod
    def _step(fact: Fact, before: Fact | None) -> Step:
        if fact.kind == "literal" and before is None:
            return Step("compute", "first literal is exact")
        if fact.tokens == 0:
            return Step("compute", "empty")
        if not fact.covered:
            return Step("compute", fact.absent)
        if fact.kind == "placeholder":
            assert fact.verdict is not None
            reason = fact.verdict.reason
        elif before is not None and before.tokens:
            reason = "offset of the placeholder before"
        else:
            return Step("compute", "no offset behind an empty placeholder")
        computed = set(range(fact.tokens)) - set(fact.covered)
        if fact.last:
            computed.add(fact.tokens - 1)
        return Step("realign", reason, tuple(sorted(computed)))


def policy_for(mode: str) -> Policy:
    """The policy of a reuse mode. Raises `UsageError` for an unknown one."""
    if mode == "dense":
        return Dense()
    if mode == "exact":
        return Exact(hands_over=False)  # every reader computes: nobody would ask for the KV
    if mode == "auto":
        return Exact("auto: exact, as no offsets are learned yet")
    if mode == "kvcomm":
        return Kvcomm()
    raise UsageError(f"reuse mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
