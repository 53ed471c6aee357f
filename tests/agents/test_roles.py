"""The roles that come with kvcomm."""

import pytest

from kvcomm.agents import ROLES, Sampling, critic, judge, role, solver
from kvcomm.agents.agent import Sender
from kvcomm.errors import UsageError

SENDERS = [Sender("a", "a"), Sender("me@1", "me", own=True)]


@pytest.mark.parametrize("kind", ROLES)
def test_every_role_works_alone_and_with_predecessors(kind: str) -> None:
    agent = role(kind)
    assert (agent.name, agent.exact) == (kind, kind == "judge")
    assert agent.system
    for senders in ([], SENDERS):
        _, prompt = agent.resolve(senders, ["task"])
        names = {getattr(piece, "name", None) for piece in prompt}
        assert {"task", *(s.node for s in senders)} <= names


def test_a_role_takes_any_field_of_an_agent() -> None:
    agent = solver("ann", retries=2, layout="shared-first", prompt="{task}")
    assert (agent.name, agent.retries, agent.layout) == ("ann", 2, "shared-first")
    assert agent.prompt == "{task}"
    assert not judge(exact=False).exact
    warm = Sampling(temperature=0.5)
    assert critic(max_tokens=7, sampling=warm).sampling == Sampling(temperature=0.5, max_tokens=7)
    assert critic(max_tokens=None) == critic()


def test_an_unknown_role_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'poet' is unknown: choose one of solver, critic"):
        role("poet")


def test_the_names_promised_and_texts_that_tell_them_apart() -> None:
    assert set(ROLES) == {"solver", "critic", "programmer", "judge", "retriever", "editor"}
    agents = [role(kind) for kind in ROLES]
    assert len({agent.system for agent in agents}) == len(agents)
    assert len({agent.prompt for agent in agents}) == len(agents)
