"""What the speed benchmarks run: sequences that decode, and agents with long roles and a long task.

The paper measures five fully connected agents with prefixes of 512 tokens, an input of 1,024 and
outputs of 512. Texts are synthetic but read like text, and every sample has its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kvcomm.agents import Agent
from kvcomm.engine.base import Answer, CallSpec, Engine
from kvcomm.graphs import AgentGraph, debate, fully_connected
from kvcomm.message import TextCodec
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.policy import Dense
from kvcomm.sampling import Sampling

CLOSING = (
    "Read everything above with care, then write your own solution step by step, and end with the "
    "final answer in one short sentence of its own, please."
)
SUBJECTS = ("the baker", "a train", "our neighbour", "the second agent", "a small company")
VERBS = ("counts", "sells", "compares", "explains", "divides", "checks", "collects", "forgets")
OBJECTS = ("apples", "tickets", "the boxes", "long reports", "several answers", "the distance")
WHEN = ("in the morning", "after lunch", "on the way home", "every week", "at last")
LINKS = ("because", "although", "while", "so that", "and later")
COMPUTE = Dense("benchmark")
HOT = 2.0


def prose(draw: random.Random) -> str:
    """One sentence of its own."""

    def clause() -> str:
        words = (SUBJECTS, VERBS, (str(draw.randint(2, 99)),), OBJECTS, WHEN)
        return " ".join(draw.choice(part) for part in words)

    return f"{clause()} {draw.choice(LINKS)} {clause()}.".capitalize()


def ids_of(codec: TextCodec, tokens: int, seed: str) -> list[int]:
    """Prose as exactly so many tokens; another seed has another text."""
    ids: list[int] = []
    sentences: list[str] = []
    draw = random.Random(seed)
    while len(ids) < tokens:
        sentences += [prose(draw) for _ in range(4)]
        ids = codec.encode(" ".join(sentences))
    return ids[:tokens]


async def decoded(engine: Engine, ids: Sequence[int], tokens: int, seed: int = 0) -> list[float]:
    """When each of `tokens` tokens behind a prompt was sampled, in a sequence of its own.

    They are sampled hot, so that none ends early and each says something else.
    """
    template = Template(((), ()), ("text",), "benchmark")
    seq = engine.open(CallSpec(f"row {seed}", template, len(ids) + tokens))
    answer = Answer(Sampling(temperature=HOT, max_tokens=tokens), seed=seed)
    try:
        for part, last in ((ids[:-1], None), (ids[-1:], answer)):
            await seq.extend([Segment("placeholder", "text", tuple(part))], COMPUTE, last=last)
        return [token.at async for token in seq.answer()]
    finally:
        await seq.close()


@dataclass(frozen=True)
class Workload:
    """Sizes in tokens: each agent's role text, the task, each answer, the text behind the messages.

    `graph` is "full" or "debate" (two rounds, no judge).
    """

    agents: int = 5
    prefix: int = 512
    input: int = 1024
    output: int = 512
    closing: int = 24
    graph: Literal["full", "debate"] = "full"
    seed: int = 0

    def build(self, codec: TextCodec, *, shared_first: bool = False) -> AgentGraph:
        """The graph; role texts differ from agent to agent and stay from sample to sample."""
        closing = codec.decode(codec.encode(CLOSING)[: self.closing])
        members = [
            Agent(
                f"agent{number}",
                system=codec.decode(ids_of(codec, self.prefix, f"{self.seed} role {number}")),
                prompt=f"{{task}}\n\n{{history}}\n\n{{messages}}\n\n{closing}",
                layout="shared-first" if shared_first else "role-first",
                sampling=Sampling(max_tokens=self.output),
            )
            for number in range(1, self.agents + 1)
        ]
        build: Callable[..., AgentGraph] = fully_connected if self.graph == "full" else debate
        return build(*members)

    def task(self, codec: TextCodec, sample: int) -> str:
        """The task of one sample."""
        return codec.decode(ids_of(codec, self.input, f"{self.seed} task {sample}"))

    def answers(
        self, codec: TextCodec, graph: AgentGraph, sample: int
    ) -> dict[str, tuple[int, ...]]:
        """An answer of exactly `output` tokens for every node."""
        return {
            name: tuple(ids_of(codec, self.output, f"{self.seed} {name} {sample}"))
            for name in graph.nodes
        }
