"""What the paper's mode decides, call by call, while its anchor pools fill."""

import os

from kvcomm import Session, load_engine
from kvcomm.agents import critic, solver
from kvcomm.graphs import chain

QUESTIONS = [
    "A box holds 12 pens. How many pens are in 9 boxes, when 4 pens are lost?",
    "What is 17 + 25?",
    "What is 6 times 7?",
    "Is 91 prime?",
]
graph = chain(solver(max_tokens=8), critic(max_tokens=8))
engine = load_engine(os.environ.get("KVCOMM_MODEL", "smollm2-135m"))
with engine, Session(engine, reuse="kvcomm", state=None, runs=None) as session:
    for question in QUESTIONS:
        print(question)
        for call in session.run(graph, task=question).calls:
            reused = call.total("prefix") + call.total("realigned")
            print(f"  {call.node}: {reused} of {call.report.prompt_tokens} tokens reused")
            print(f"    {call.report.gate}")
