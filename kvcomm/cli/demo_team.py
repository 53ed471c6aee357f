"""What the demo works on: two texts, questions about them, and three agents who read both."""

from __future__ import annotations

from dataclasses import dataclass

from kvcomm.agents import Agent, Sampling
from kvcomm.graphs import AgentGraph
from kvcomm.tasks import DATA

PROMPT = "Text:\n{text}\n\nQuestion: {question}\n\n{messages}\n\n"
# What small models write last is what they make up.
PARAGRAPH, SENTENCE, CLAUSE = (
    Sampling(max_tokens=64, stop=ends) for ends in (("\n",), (".", "\n"), (",", ".", "\n"))
)


@dataclass(frozen=True)
class Question:
    """A question about one of the texts in `DATA`; a right answer holds the words of `fact`."""

    id: str
    source: str
    text: str
    fact: str

    @property
    def passage(self) -> str:
        return (DATA / f"{self.source}.txt").read_text(encoding="utf-8").strip()

    def right(self, answer: str) -> bool:
        """Whether `answer` names the fact, in upper or lower case."""
        return self.fact.casefold() in answer.casefold()


# Texts take turns: the third question and the fourth are about texts that were read before.
QUESTIONS = (
    Question(
        "mayor",
        "maddock-ferry",
        "Who is the mayor of Maddock Ferry, and what has she promised?",
        "Rosa Lindgren",
    ),
    Question(
        "school",
        "grey-petrel",
        "Who bought the Grey Petrel in 1926, and what was his idea?",
        "Henrik Dahl",
    ),
    Question("mill", "maddock-ferry", "Who opened the paper mill?", "Sarratt"),
    Question("keeper", "grey-petrel", "Who is the keeper of the museum?", "Lena Ostberg"),
)


def team() -> AgentGraph:
    """A reader, a checker and an editor: each reads the text and what was written before."""
    system = "You read a text for a team and write down what it says about a question."
    says = "Write down what the text says about it, in a few sentences."
    reader = Agent("reader", system=system, prompt=PROMPT + says, sampling=PARAGRAPH)
    system = "You check what others wrote against a text, and say what is right."
    says = "Check it against the text, and say what is right."
    begins = "According to the text,"
    checker = Agent(
        "checker", system=system, prompt=PROMPT + says, begins=begins, sampling=SENTENCE
    )
    system = "You answer a question from a text and from the notes of others."
    prompt = f"{PROMPT}Answer in one sentence."
    editor = Agent("editor", system=system, prompt=prompt, begins="Answer:", sampling=CLAUSE)
    edges = [("reader", "checker"), ("reader", "editor"), ("checker", "editor")]
    return AgentGraph((reader, checker, editor), edges, name="readers", inputs=("text", "question"))
