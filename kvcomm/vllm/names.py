"""The names in the store, and the entries behind them: bytes, a budget, and who has to go."""

from __future__ import annotations

import itertools
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Name:
    """KV of `tokens` in the entry of this number; so many live requests have `users` use of it.

    One that is `gone` is found no more, and dropped when nobody uses it.
    """

    entry: int
    tokens: array[int]
    users: int = 0
    gone: bool = False

    def holds(self, ids: Sequence[int], origin: int) -> bool:
        """Whether its tokens from `origin` on are `ids`."""
        return self.tokens[origin : origin + len(ids)] == ids


class Names:
    """Names under a budget of bytes, `token_bytes` a token; the least recently used one goes first.

    What rows keep for themselves counts, too, but only names make way. `drops` are entries that
    workers are to let go of.
    """

    def __init__(self, budget: int, token_bytes: int) -> None:
        self.budget = budget
        self.token_bytes = token_bytes
        self.used = 0
        self.drops: list[int] = []
        self._names: OrderedDict[str, Name] = OrderedDict()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: str) -> Name | None:
        """A name, as the most recently used one."""
        if name in self._names:
            self._names.move_to_end(name)
        return self._names.get(name)

    def add(self, name: str, tokens: array[int]) -> Name | None:
        """A new name; None where it is there already, or there is no room for it."""
        if name in self._names or not tokens:
            return None
        entry = self.reserve(len(tokens))
        if entry is None:
            return None
        self._names[name] = Name(entry, tokens)
        return self._names[name]

    def reserve(self, tokens: int) -> int | None:
        """The number of a new entry of so many tokens; None where names cannot make way for it."""
        needed = tokens * self.token_bytes
        if self.used + needed > self.budget and not self._make_room(needed):
            return None
        self.used += needed
        return next(self._numbers)

    def _make_room(self, needed: int) -> bool:
        """Have names that nobody uses make way for so many bytes, if that is enough."""
        idle = [(key, name) for key, name in self._names.items() if not name.users]
        held = self.used - sum(len(name.tokens) for _, name in idle) * self.token_bytes
        if held + needed > self.budget:
            return False
        for key, name in idle:
            if self.used + needed <= self.budget:
                break
            del self._names[key]
            self.free(name.entry, len(name.tokens))
        return True

    def free(self, entry: int, tokens: int) -> None:
        """Let go of an entry."""
        self.drops.append(entry)
        self.used -= tokens * self.token_bytes

    def release(self, key: str) -> None:
        """A name is wanted no more. One that is not there is no error."""
        name = self._names.pop(key, None)
        if name is not None:
            name.gone = True
            self._let_go(name)

    def hold(self, name: Name) -> None:
        """A live request uses a name: it stays."""
        name.users += 1

    def unhold(self, name: Name) -> None:
        """It does so no more."""
        name.users -= 1
        if name.gone:
            self._let_go(name)

    def _let_go(self, name: Name) -> None:
        if not name.users:
            self.free(name.entry, len(name.tokens))

    def clear(self) -> None:
        """Release all."""
        for key in list(self._names):
            self.release(key)
