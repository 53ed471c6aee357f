"""What the connector's scheduler side has the workers do in a step, rank by rank the same.

Workers know nothing of names, rows or requests' wishes: they keep numbered *entries*, each the KV
of some tokens of one prompt, and the scheduler decides what is written, read and let go of. A
number is used once, so the order of a step's drops and saves does not matter.

Slots are places in a prompt; `blocks` are the ids of the blocks it has, from its first token on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# An offset model: family, template and label.
Model = tuple[str, str, str]


@dataclass(frozen=True)
class Copy:
    """The slots `[start, stop)` become the entry of this number."""

    entry: int
    start: int
    stop: int


@dataclass(frozen=True)
class Fill:
    """The slots `[start, stop)` are filled with an entry's tokens from `origin` on.

    What `model` predicts, times `scale`, is added. With `behind` they are a literal's, and the
    model predicts what follows a text of that entry.
    """

    start: int
    stop: int
    entry: int
    origin: int = 0
    model: Model | None = None
    scale: float = 1.0
    behind: int | None = None


@dataclass(frozen=True)
class Load:
    """Fill slots of a request before the step runs; one that `fails` is reported as not loaded."""

    blocks: tuple[int, ...]
    fills: tuple[Fill, ...]
    fails: bool = False

    @property
    def start(self) -> int:
        """The first slot that is filled."""
        return self.fills[0].start

    @property
    def stop(self) -> int:
        """Behind the last one."""
        return self.fills[-1].stop


@dataclass(frozen=True)
class Teach:
    """Lesson `number`: the slots `[start, stop)` are the truth for an entry from `origin` on.

    The slots from `stop` on are the truth for the whole entry `literal`, where there is one.
    """

    number: int
    model: Model
    entry: int
    start: int
    stop: int
    origin: int = 0
    literal: int | None = None
    behind: int = 0  # how many tokens that literal has


@dataclass(frozen=True)
class Save:
    """Read a request's slots: into entries, and for lessons."""

    blocks: tuple[int, ...]
    copies: tuple[Copy, ...] = ()
    lessons: tuple[Teach, ...] = ()


@dataclass(frozen=True)
class Ask:
    """Question `number`: can `model` predict the offset of `tokens` of an entry from `origin`?"""

    number: int
    model: Model
    entry: int
    origin: int
    tokens: int


@dataclass
class Orders:
    """All of a step, in this order: `before`, `loads`, the step, `after`, `asks`, `drops`.

    `before` reads prompts of requests that are over, `after` those that the step completes.
    """

    before: list[Save] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    after: list[Save] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
