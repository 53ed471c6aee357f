"""Agents: which placeholder gets which message, and what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from kvcomm.agents import Agent, Sampling
from kvcomm.agents.agent import SHARED_SYSTEM, Sender
from kvcomm.errors import GraphError, TemplateError, UsageError
from kvcomm.prompt import Hole, Piece, Text
from tests.codecs import byte_codec, smol_codec

SOLVER, CRITIC = Sender("solver", "solver"), Sender("critic", "critic")
OWN1, OWN2 = Sender("me@1", "me", own=True), Sender("me@2", "me", own=True)


def source(pieces: tuple[Piece, ...]) -> str:
    """Bound pieces as they would be written."""
    return "".join(p.text if isinstance(p, Text) else f"{{{p.name}}}" for p in pieces)


def bound(prompt: str, *senders: Sender, inputs: tuple[str, ...] = ("task",), **fields: str) -> str:
    """The user turn of an agent called `me`."""
    return source(Agent("me", prompt=prompt, **fields).resolve(senders, inputs)[1])


# --- binding ---


def test_inputs_and_named_messages() -> None:
    prompt = "{task}; {passage}; {critic} after {solver}"
    got = bound(prompt, SOLVER, CRITIC, inputs=("task", "passage"))
    assert got == prompt


def test_messages_are_those_not_named_elsewhere_in_graph_order() -> None:
    judge = Sender("judge", "judge")
    assert bound("{messages}\n\nBy {critic}", SOLVER, CRITIC, judge) == (
        "solver wrote:\n{solver}\n\njudge wrote:\n{judge}\n\nBy {critic}"
    )


def test_a_name_in_the_role_text_counts() -> None:
    agent = Agent("me", system="You read {solver}.", prompt="{task} {messages}")
    system, prompt = agent.resolve([SOLVER, CRITIC], ["task"])
    assert source(system) == "You read {solver}."
    assert source(prompt) == "{task} critic wrote:\n{critic}"


def test_nodes_of_a_debate_are_named_by_node_or_agent() -> None:
    first, second = Sender("solver@1", "solver"), Sender("critic@1", "critic")
    assert bound("{solver@1} {critic}", first, second) == "{solver@1} {critic@1}"


def test_a_node_name_comes_before_an_agent_name() -> None:
    odd = Sender("critic", "solver"), Sender("x", "critic")
    assert bound("{critic} {messages}", *odd) == "{critic} critic wrote:\n{x}"


def test_own_messages_go_to_history_before_messages() -> None:
    assert bound("{history}|{messages}", OWN1, SOLVER, OWN2) == (
        "You wrote before:\n{me@1}\n\nYou wrote before:\n{me@2}|solver wrote:\n{solver}"
    )
    assert bound("{messages}", SOLVER, OWN1) == "solver wrote:\n{solver}\n\nme wrote:\n{me@1}"


def test_the_own_name_is_the_latest_own_message() -> None:
    assert bound("{me}", OWN1) == "{me@1}"
    assert bound("{me}|{history}", OWN1, OWN2) == "{me@2}|You wrote before:\n{me@1}"


def test_own_messages_named_by_node_stand_nowhere_else() -> None:
    assert bound("{me@1}|{messages}", OWN1, SOLVER) == "{me@1}|solver wrote:\n{solver}"
    assert bound("{me@1}{me@2}", OWN1, OWN2) == "{me@1}{me@2}"


def test_a_placeholder_may_be_used_twice() -> None:
    assert bound("{task} {solver} {task}", SOLVER) == "{task} {solver} {task}"


def test_braces_are_no_placeholder() -> None:
    assert source(Agent("me", prompt="{{x}}").resolve([], [])[1]) == "{x}"


# --- gaps ---


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("{task}\n\n{messages}", "{task}"),
        ("{messages}\n\n{task}", "{task}"),
        ("{task}\n\n{history}\n\n{messages}\n\nSolve it.", "{task}\n\nSolve it."),
        ("{history}\n\n{messages}\n\nSolve it.", "Solve it."),
        ("Hear:\n{messages}\n\n\nSolve it.", "Hear:\n\n\nSolve it."),
        ("Hear {messages}and solve it.\n", "Hear and solve it.\n"),
        ("\n{task}\n", "\n{task}\n"),
    ],
)
def test_an_empty_placeholder_leaves_no_gap(prompt: str, left: str) -> None:
    assert bound(prompt) == left


# --- layouts ---


def test_role_first_puts_the_role_in_the_system_turn() -> None:
    agent = Agent("me", system="You check.", prompt="{task}\n\nGo.")
    assert [source(turn) for turn in agent.resolve([], ["task"])] == [
        "You check.",
        "{task}\n\nGo.",
    ]


def test_shared_first_puts_the_role_last() -> None:
    agent = Agent("me", system="You check {task}.", prompt="{task}\n\n", layout="shared-first")
    assert [source(turn) for turn in agent.resolve([], ["task"])] == [
        SHARED_SYSTEM,
        "{task}\n\nYou check {task}.",
    ]
    plain = Agent("me", prompt="{task}", layout="shared-first")
    assert source(plain.resolve([], ["task"])[1]) == "{task}"


@pytest.mark.parametrize("make", [byte_codec, smol_codec])
def test_shared_first_agents_share_their_tokens_up_to_the_role(make: object) -> None:
    codec = make()
    prompts = []
    for name, role in (("critic", "Find the mistakes."), ("editor", "Write the answer.")):
        agent = Agent(name, system=role, layout="shared-first")
        template = agent.template(codec, [SOLVER], ["task"])
        texts = {"task": tuple(codec.encode("2+2?")), "solver": tuple(codec.encode("It is 4."))}
        prompts.append([i for segment in template.fill(texts) for i in segment.ids])
    shared = next(i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b)
    text = codec.decode(prompts[0][:shared])
    assert text.endswith("2+2?\n\nsolver wrote:\nIt is 4.\n\n")
    assert SHARED_SYSTEM in text


# --- refusals ---


def test_a_placeholder_without_producer_lists_what_is_known() -> None:
    with pytest.raises(GraphError) as raised:
        bound("{tasks}", SOLVER, inputs=("task", "passage"))
    assert str(raised.value) == (
        "placeholder `{tasks}` of agent `me` has no producer: known here are `{task}`, "
        "`{passage}`, `{solver}`, `{messages}`, `{history}`. Write `{{tasks}}` if you mean braces; "
        "a text of yours is an input: AgentGraph(..., inputs=('task', 'passage', 'tasks'))"
    )


def test_a_message_without_a_place_says_what_to_add() -> None:
    with pytest.raises(GraphError, match=r"message from `solver@1`.*add `\{solver\}` or `\{mess"):
        bound("{task}", Sender("solver@1", "solver"))
    with pytest.raises(GraphError, match=r"message from `critic`"):
        bound("{task} {solver} {history}", SOLVER, CRITIC)


@pytest.mark.parametrize("prompt", ["{task}", "{me@1}"])
def test_an_own_message_without_a_place_says_what_to_add(prompt: str) -> None:
    with pytest.raises(GraphError, match=r"own earlier message.*add `\{history\}` or `\{messages"):
        bound(prompt, OWN1, OWN2)


def test_a_name_that_could_be_two_messages_asks_for_the_node() -> None:
    both = Sender("solver@1", "solver"), Sender("solver@2", "solver")
    with pytest.raises(GraphError, match=r"could be 2 messages: name a node \(`\{solver@1\}`, `"):
        bound("{solver}", *both)
    assert bound("{{solver}} {messages}", *both).startswith("{solver} solver wrote:")


@pytest.mark.parametrize("name", ["", "2nd", "a b", "task", "messages", "history", "a@1", "a\n"])
def test_a_name_that_cannot_stand_in_a_template_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a template: use letters, digits"):
        Agent(name)


def test_single_braces_name_the_agent() -> None:
    for field in ("system", "prompt"):
        with pytest.raises(TemplateError, match=r"agent `me`: single brace.*write `\{\{`"):
            Agent("me", **{field: r"Answer with \boxed{4}."})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "role-last"}, "use 'role-first' or 'shared-first'"),
        ({"retries": -1}, "`me`: retries"),
        ({"timeout_s": 0}, "`me`: timeout_s must be positive"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Agent("me", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is negative"),
        ({"temperature": float("nan")}, "temperature nan is negative or not finite"),
        ({"temperature": float("inf")}, "use 0 for greedy"),
        ({"top_p": 0.0}, "top_p 0.0 is outside"),
        ({"top_p": 1.1}, "top_p 1.1 is outside"),
        ({"top_p": float("nan")}, "top_p nan is outside"),
        ({"max_tokens": 0}, "max_tokens 0 must be at least 1"),
    ],
)
def test_sampling_out_of_range_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**fields)


def test_an_agent_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Agent("me").name = "you"


def test_holes_are_bound_to_nodes_not_agents() -> None:
    agent = Agent("me", prompt="{solver}")
    assert agent.resolve([Sender("solver@2", "solver")], [])[1] == (Hole("solver@2"),)


@pytest.mark.parametrize("option", ["tools", "functions", "tool_choice"])
def test_tools_of_an_agent_are_nodes_of_its_graph(option: str) -> None:
    with pytest.raises(UsageError, match=r"put Tool\(name, function\) into the graph"):
        Agent("a", **{option: []})
    with pytest.raises(TypeError, match="unexpected keyword argument 'toolz'"):
        Agent("a", toolz=[])  # type: ignore[call-arg]


def test_an_agent_can_be_copied_and_sent() -> None:
    agent = Agent("a", system="x")
    assert copy.deepcopy(agent) == replace(agent) == pickle.loads(pickle.dumps(agent)) == agent
