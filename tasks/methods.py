"""The methods that an evaluation compares: modes of kvcomm, and policies from a user's file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from kvcomm.errors import UsageError
from kvcomm.own_file import Wanted, is_own_file, load_own, own_path
from kvcomm.reuse.policy import MODES, Policy

POLICY: Wanted[Policy] = Wanted(
    Policy,  # type: ignore[type-abstract]  # anything with its attributes will do
    "policy",
    'policy = Realign(Recipe("mine", first=8))',
)


@dataclass(frozen=True)
class OwnPolicy:
    """A policy from a user's file, and the digest of that file."""

    policy: Policy
    digest: str


def own_policy(spec: str) -> OwnPolicy:
    """The policy of `FILE.py[:NAME]`; a class without arguments will do.

    The file may bring an offset model: it puts it into `FAMILIES`. Raises `UsageError` for a file
    without a policy, for one that takes the name of a mode, and for an unknown family.
    """
    from kvcomm.reuse.offsets import FAMILIES
    from kvcomm.reuse.offsets.base import split_family

    path, _ = own_path(spec, POLICY.noun)
    policy = load_own(spec, POLICY)
    if policy.name in MODES:
        raise UsageError(f"the policy of {spec} is called {policy.name!r}, as a mode is: rename it")
    family = split_family(policy.options.offsets)[0]
    if family and family not in FAMILIES:
        raise UsageError(
            f"the policy of {spec} names the offset family {family!r}, and there are "
            f"{', '.join(FAMILIES)}: let the file add its own, FAMILIES[{family!r}] = MyModel "
            "(from kvcomm.reuse.offsets import FAMILIES)"
        )
    return OwnPolicy(policy, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def chosen(names: Iterable[str]) -> tuple[list[str], dict[str, OwnPolicy]]:
    """What `names` (modes, or `FILE.py[:NAME]`) are called, each once, and the user's own policies.

    Raises `UsageError` for an unknown one, and for two of one name.
    """
    modes: dict[str, str] = {}  # what each is called, and how it was asked for
    own: dict[str, OwnPolicy] = {}
    for name in names:
        called = name
        if is_own_file(name):
            found = own_policy(name)
            called = found.policy.name
            own[called] = found
        elif name not in MODES:
            raise UsageError(
                f"reuse mode {name!r} is unknown: choose one of {', '.join(MODES)}, or FILE.py:NAME"
            )
        if modes.setdefault(called, name) != name:
            raise UsageError(
                f"{modes[called]} and {name} are both called {called!r}: rename one of them"
            )
    return list(modes), own
