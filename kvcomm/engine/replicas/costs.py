"""Is KV fetched from another replica, or computed? What either takes, as it was measured."""

from __future__ import annotations

from dataclasses import dataclass

from kvcomm.trace.text import megabytes, seconds

# How much the latest measurement says of how fast things are now, and how much of that is still
# believed when the next decision found nothing new to measure.
WEIGHT, BELIEVED = 0.25, 0.9


@dataclass
class Rate:
    """Seconds for an amount: `fixed` and `each`, measured once, times how it went lately."""

    fixed: float
    each: float
    lately: float = 1.0

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> Rate:
        """The line through two measurements (amount, seconds); never one that falls."""
        each = max(large[1] - small[1], 0.0) / max(large[0] - small[0], 1)
        return cls(max(small[1] - each * small[0], 0.0), each)

    def seconds(self, amount: int) -> float:
        """What the amount would take now."""
        return self.lately * self._usual(amount)

    def more(self, amount: int) -> float:
        """What the amount would add to something of the kind that is done anyway."""
        return self.lately * self.each * amount

    def learn(self, amount: int, spent: float) -> None:
        """It took so long."""
        usual = self._usual(amount)
        if usual > 0 and spent > 0:
            # Geometric, so that one stall counts as much as one hit of luck.
            self.lately *= (spent / usual / self.lately) ** WEIGHT

    def fade(self) -> None:
        """Not tried this time: what was bad luck before must not keep it from being tried again."""
        self.lately **= BELIEVED

    def _usual(self, amount: int) -> float:
        return self.fixed + self.each * amount


@dataclass(frozen=True)
class Choice:
    """What is done about KV on another replica. `expected_s` is what moving it would take."""

    move: bool
    expected_s: float
    reason: str


def choose(moving: Rate, computing: Rate, nbytes: int, tokens: int) -> Choice:
    """The faster way to `tokens` of a message, whose KV has `nbytes`.

    The reader's prompt has a forward in any case, so computing counts only what it adds. Realigning
    itself, and what is repaired of it, are in neither.
    """
    move, compute = moving.seconds(nbytes), computing.more(tokens)
    moves = move < compute
    if not moves:
        moving.fade()
    return Choice(
        moves,
        move,
        f"moving {megabytes(nbytes)} would take {seconds(move)}, computing {seconds(compute)}",
    )
