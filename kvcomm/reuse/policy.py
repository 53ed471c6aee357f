"""Reuse policies: pure functions from facts about segments to their plans. No tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from kvcomm.errors import UsageError
from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan

MODES = ("auto", "exact", "kvcomm", "dense")


@dataclass(frozen=True)
class ReuseOptions:
    """What a policy asks of the engine and the runtime.

    `ahead`: prompts are prefilled before their last input is complete, so `plan` sees them piece by
    piece, and of a message that is still being written, `leading` tokens are computed.
    `reads_prefix`, `feeds_prefix`: what its calls do with the prefix cache. `publishes`: messages
    carry a handle on their KV. `bases`: where base KV of inputs comes from, from the prompt of an
    earlier reader ("borrowed") or computed "alone"; "" asks for none, and nothing is realigned.
    `literals` want base KV, too. `offsets` is the family of offset models that corrects base KV.
    """

    ahead: bool = False
    reads_prefix: bool = False
    feeds_prefix: bool = False
    publishes: bool = False
    bases: Literal["", "alone", "borrowed"] = ""
    literals: bool = False
    offsets: str = ""

    @property
    def realigns(self) -> bool:
        """Whether the policy wants base KV."""
        return bool(self.bases)


@runtime_checkable
class Policy(Protocol):
    """How a call's segments get into its sequence."""

    name: str
    options: ReuseOptions

    def leading(self, tokens: int, most: int) -> int:
        """How many leading tokens of a message are computed once it has `tokens` of `most`."""

    def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
        """One plan for each segment, in order."""


class Dense:
    """The reference: the whole prompt is prefilled when the last input is there."""

    name = "dense"

    def __init__(self, reason: str = "dense mode", options: ReuseOptions = ReuseOptions()) -> None:
        self.reason = reason
        self.options = options

    def leading(self, tokens: int, most: int) -> int:
        """Nothing: it waits for all inputs."""
        return 0

    def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
        """Compute everything."""
        return Plan((SegmentPlan("compute", self.reason),) * len(facts), self.reason, dense=True)


# What audits compare with. It teaches the offsets of messages, and of inputs that others read.
SHADOW = Dense("shadow", ReuseOptions(bases="borrowed"))


class Exact:
    """Prefix hits and working ahead: the same tokens, earlier or never again. Lossless."""

    name = "exact"

    def __init__(
        self, reason: str = "exact: prefix hits and work ahead", *, publishes: bool = True
    ) -> None:
        self.reason = reason
        self.options = ReuseOptions(
            ahead=True, reads_prefix=True, feeds_prefix=True, publishes=publishes
        )

    def leading(self, tokens: int, most: int) -> int:
        """All."""
        return tokens

    def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
        """Compute what no exact prefix holds."""
        step = SegmentPlan("compute", "in no prefix")
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
    that failed become anchors. The prompt grows while messages are written, in the hope that they
    will pass too; where one does not, it starts over. Not `gated`, two anchors of the length are
    enough: so the paper's code measures time to first token (γ = 1).
    """

    name = "kvcomm"

    def __init__(self, *, gated: bool = True, anchors: Anchors = Anchors()) -> None:
        self.gated = gated
        # Only the literals before the first placeholder are kept, as the paper does: it reads
        # prefixes, and feeds none.
        self.options = ReuseOptions(
            ahead=True,
            reads_prefix=True,
            publishes=True,
            bases="alone",
            literals=True,
            offsets=anchors.family,
        )

    def leading(self, tokens: int, most: int) -> int:
        """None: all of a message is realigned."""
        return 0

    def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
        """All or nothing, as published; of a piece of a prompt, all so far or nothing."""
        refused = {
            i: why
            for i, fact in enumerate(facts)
            if fact.kind == "placeholder" and (why := self._refusal(fact))
        }
        if refused:
            reasons = "; ".join(f"{{{facts[i].name}}}: {why}" for i, why in refused.items())
            step = SegmentPlan("compute", f"dense, because {reasons}")
            learn = tuple(i for i in refused if facts[i].covered)
            gate = f"dense: {reasons}"
            return Plan((step,) * len(facts), gate, dense=True, learn=learn, whole=True)
        if not any(f.kind == "placeholder" for f in facts):
            step = SegmentPlan("compute", "nothing to realign")
            return Plan((step,) * len(facts), "dense: no placeholder", dense=True)
        before = (None, *facts[:-1])
        steps = tuple(map(self._step, facts, before))
        return Plan(steps, "realigned", dense=False)

    def _refusal(self, fact: SegmentFacts) -> str | None:
        """Why a placeholder cannot be shared; None when it can."""
        if fact.tokens == 0:
            return None
        if not fact.covered:
            return fact.absent
        if fact.offset is None:
            return "no offset model"
        passes = fact.offset.shareable if self.gated else fact.offset.usable
        return None if passes else fact.offset.reason

    @staticmethod
    def _step(fact: SegmentFacts, before: SegmentFacts | None) -> SegmentPlan:
        if fact.kind == "literal" and before is None:
            return SegmentPlan("compute", "first literal is exact")
        if fact.tokens == 0:
            return SegmentPlan("compute", "empty")
        if not fact.covered:
            return SegmentPlan("compute", fact.absent)
        if fact.kind == "placeholder":
            assert fact.offset is not None
            reason = fact.offset.reason
        elif before is not None and before.tokens:
            reason = "offset of the placeholder before"
        else:
            return SegmentPlan("compute", "no offset behind an empty placeholder")
        computed = set(range(fact.tokens)) - set(fact.covered)
        if fact.last:
            computed.add(fact.tokens - 1)
        return SegmentPlan("realign", reason, tuple(sorted(computed)))


def policy_for(mode: str) -> Policy:
    """The policy of a reuse mode. Raises `UsageError` for an unknown one."""
    if mode == "dense":
        return Dense()
    if mode == "exact":
        return Exact(publishes=False)  # every reader computes: nobody would ask for the KV
    if mode == "auto":
        return Exact("auto: exact, as no offsets are learned yet")
    if mode == "kvcomm":
        return Kvcomm()
    raise UsageError(f"reuse mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
