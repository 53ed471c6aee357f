"""Agents: which placeholder gets which message, and what is refused."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest

from kvcomm.agents import Agent, Sampling
from kvcomm.agents.agent import SHARED_SYSTEM, Sender
from kvcomm.errors import GraphError, TemplateError, UsageError
from kvcomm.prompt import Piece, Text
from tests.codecs import byte_codec, smol_codec

SOLVER, CRITIC = Sender("solver", "solver"), Sender("critic", "critic")
SOLVER1 = Sender("solver@1", "solver")
OWN1, OWN2 = Sender("me@1", "me", own=True), Sender("me@2", "me", own=True)


def source(pieces: tuple[Piece, ...]) -> str:
    return "".join(p.text if isinstance(p, Text) else f"{{{p.name}}}" for p in pieces)


def bound(prompt: str, *senders: Sender, inputs: tuple[str, ...] = ("task",), **fields: str) -> str:
    return source(Agent("me", prompt=prompt, **fields).resolve(senders, inputs)[1])


@pytest.mark.parametrize(
    ("prompt", "senders", "expected"),
    [
        ("{task}; {passage}; {critic} after {solver}", (SOLVER, CRITIC), None),
        # `messages` are those that are not named elsewhere, in the order of the graph.
        (
            "{messages}\n\nBy {critic}",
            (SOLVER, CRITIC, Sender("judge", "judge")),
            "solver wrote:\n{solver}\n\njudge wrote:\n{judge}\n\nBy {critic}",
        ),
        # A node's name comes before an agent's.
        ("{solver@1} {critic}", (SOLVER1, Sender("critic@1", "critic")), "{solver@1} {critic@1}"),
        (
            "{critic} {messages}",
            (Sender("critic", "solver"), Sender("x", "critic")),
            "{critic} critic wrote:\n{x}",
        ),
        # One's own messages go to `history`; one's own name is the latest of them.
        (
            "{history}|{messages}",
            (OWN1, SOLVER, OWN2),
            "You wrote before:\n{me@1}\n\nYou wrote before:\n{me@2}|solver wrote:\n{solver}",
        ),
        ("{messages}", (SOLVER, OWN1), "solver wrote:\n{solver}\n\nme wrote:\n{me@1}"),
        ("{me}", (OWN1,), "{me@1}"),
        ("{me}|{history}", (OWN1, OWN2), "{me@2}|You wrote before:\n{me@1}"),
        ("{me@1}|{messages}", (OWN1, SOLVER), "{me@1}|solver wrote:\n{solver}"),
        ("{me@1}{me@2}", (OWN1, OWN2), None),
        ("{task} {solver} {task}", (SOLVER,), None),
        ("{{x}} {task}", (), "{x} {task}"),
    ],
)
def test_what_is_bound(prompt: str, senders: tuple[Sender, ...], expected: str | None) -> None:
    assert bound(prompt, *senders, inputs=("task", "passage")) == (expected or prompt)


def test_a_name_in_the_role_text_counts() -> None:
    agent = Agent("me", system="You read {solver}.", prompt="{task} {messages}")
    system, prompt = agent.resolve([SOLVER, CRITIC], ["task"])
    assert source(system) == "You read {solver}."
    assert source(prompt) == "{task} critic wrote:\n{critic}"


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


@pytest.mark.parametrize(
    ("layout", "role", "turns"),
    [
        ("role-first", "You check.", ["You check.", "{task}\n\n"]),
        ("shared-first", "You check {task}.", [SHARED_SYSTEM, "{task}\n\nYou check {task}."]),
        ("shared-first", "", [SHARED_SYSTEM, "{task}\n\n"]),
    ],
)
def test_a_layout_says_where_the_role_stands(layout: str, role: str, turns: list[str]) -> None:
    agent = Agent("me", system=role, prompt="{task}\n\n", layout=layout)
    assert [source(turn) for turn in agent.resolve([], ["task"])] == turns


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


def test_a_placeholder_without_producer_lists_what_is_known() -> None:
    with pytest.raises(GraphError) as raised:
        bound("{tasks}", SOLVER, inputs=("task", "passage"))
    assert str(raised.value) == (
        "placeholder `{tasks}` of agent `me` has no producer: known here are `{task}`, "
        "`{passage}`, `{solver}`, `{messages}`, `{history}`. Write `{{tasks}}` if you mean braces; "
        "a text of yours is an input: AgentGraph(..., inputs=('task', 'passage', 'tasks'))"
    )


@pytest.mark.parametrize(
    ("prompt", "senders", "message"),
    [
        ("{task}", (SOLVER1,), r"message from `solver@1`.*add `\{solver\}` or `\{mess"),
        ("{task} {solver} {history}", (SOLVER, CRITIC), "message from `critic`"),
        ("{task}", (OWN1, OWN2), r"own earlier message.*add `\{history\}` or `\{messages"),
        ("{me@1}", (OWN1, OWN2), r"own earlier message.*add `\{history\}` or `\{messages"),
        (
            "{solver}",
            (SOLVER1, Sender("solver@2", "solver")),
            r"could be 2 messages: name a node \(`\{solver@1\}`, `",
        ),
    ],
)
def test_a_message_without_its_place_is_told(
    prompt: str, senders: tuple[Sender, ...], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        bound(prompt, *senders)


@pytest.mark.parametrize("name", ["", "2nd", "a b", "task", "messages", "history", "a@1", "a\n"])
def test_a_name_that_cannot_stand_in_a_template_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a template: use letters, digits"):
        Agent(name)


def test_single_braces_name_the_agent() -> None:
    for field in ("system", "prompt"):
        with pytest.raises(TemplateError, match=r"agent `me`: single brace.*write `\{\{`"):
            Agent("me", **{field: r"Answer with \boxed{4}."})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Agent("me", layout="role-last"), "use 'role-first' or 'shared-first'"),
        (lambda: Agent("me", retries=-1), "`me`: retries"),
        (lambda: Agent("me", timeout_s=0), "`me`: timeout_s must be positive"),
        (lambda: Sampling(temperature=-0.1), "temperature -0.1 is negative"),
        (lambda: Sampling(temperature=math.nan), "temperature nan is negative or not finite"),
        (lambda: Sampling(temperature=math.inf), "use 0 for greedy"),
        (lambda: Sampling(top_p=0.0), "top_p 0.0 is outside"),
        (lambda: Sampling(top_p=1.1), "top_p 1.1 is outside"),
        (lambda: Sampling(top_p=math.nan), "top_p nan is outside"),
        (lambda: Sampling(max_tokens=0), "max_tokens 0 must be at least 1"),
        *(
            (lambda name=name: Agent("a", **{name: []}), r"put Tool\(name, function\) into the g")
            for name in ("tools", "functions", "tool_choice")
        ),
    ],
)
def test_fields_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_an_agent_can_be_copied_and_sent_and_not_changed() -> None:
    agent = Agent("a", system="x")
    assert copy.deepcopy(agent) == replace(agent) == pickle.loads(pickle.dumps(agent)) == agent
    with pytest.raises(AttributeError):
        agent.name = "you"
    with pytest.raises(TypeError, match="unexpected keyword argument 'toolz'"):
        Agent("a", toolz=[])  # type: ignore[call-arg]
