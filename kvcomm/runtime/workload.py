"""The workload of the speed benchmarks: agents with long roles, a long task, answers of one length.

The paper measures five fully connected agents with prefixes of 512 tokens, an input of 1,024 and
outputs of 512. Texts are synthetic but read like text, and every sample has its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kvcomm.agents import Agent
from kvcomm.graphs import AgentGraph, debate, fully_connected
from kvcomm.message import TextCodec
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


def prose(draw: random.Random) -> str:
    """One sentence of its own."""

    def clause() -> str:
        words = (SUBJECTS, VERBS, (str(draw.randint(2, 99)),), OBJECTS, WHEN)
        return " ".join(draw.choice(part) for part in words)

    return f"{clause()} {draw.choice(LINKS)} {clause()}.".capitalize()


def text_of(codec: TextCodec, tokens: int, draw: random.Random) -> str:
    """Prose that is encoded as `tokens` tokens, or one or two fewer at a cut."""
    ids: list[int] = []
    sentences: list[str] = []
    while len(ids) < tokens:
        sentences += [prose(draw) for _ in range(4)]
        ids = codec.encode(" ".join(sentences))
    return codec.decode(ids[:tokens])


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

    def build(
        self, codec: TextCodec, layout: Literal["role-first", "shared-first"] = "role-first"
    ) -> AgentGraph:
        """The graph; role texts differ from agent to agent and stay from sample to sample."""
        closing = codec.decode(codec.encode(CLOSING)[: self.closing])
        members = [
            Agent(
                f"agent{number}",
                system=text_of(codec, self.prefix, random.Random(f"{self.seed} role {number}")),
                prompt=f"{{task}}\n\n{{history}}\n\n{{messages}}\n\n{closing}",
                layout=layout,
                sampling=Sampling(max_tokens=self.output),
            )
            for number in range(1, self.agents + 1)
        ]
        build: Callable[..., AgentGraph] = fully_connected if self.graph == "full" else debate
        return build(*members)

    def task(self, codec: TextCodec, sample: int) -> str:
        """The task of one sample."""
        return text_of(codec, self.input, random.Random(f"{self.seed} task {sample}"))

    def answers(
        self, codec: TextCodec, graph: AgentGraph, sample: int
    ) -> dict[str, tuple[int, ...]]:
        """An answer of exactly `output` tokens for every node."""
        found = {}
        for name in graph.nodes:
            draw = random.Random(f"{self.seed} {name} {sample}")
            text = text_of(codec, self.output + 8, draw)
            found[name] = tuple(codec.encode(text)[: self.output])
        return found
