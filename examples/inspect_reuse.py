"""What the paper's mode decides, call by call: dense while it learns, then realigned."""

import os

from kvcomm import Session, load_engine
from kvcomm.agents import critic, solver
from kvcomm.graphs import chain

QUESTIONS = [
    "A box holds 12 pens. How many pens are in 9 boxes, when 4 pens are lost?",
    "What is 17 + 25?",
    "What is 6 times 7?",
]
graph = chain(solver(max_tokens=8), critic(max_tokens=8))
engine = load_engine(os.environ.get("KVCOMM_MODEL", "smollm2-135m"))
with engine, Session(engine, reuse="kvcomm", state=None, runs=None) as session:
    for question in QUESTIONS:
        print(f"\n{question}")
        for call in session.run(graph, task=question).calls:
            report, reused = call.report, call.total("prefix") + call.total("realigned")
            print(f"  {call.node}: {reused} of {report.prompt_tokens} tokens reused")
            print(f"    {report.gate}")
            for step in call.steps if not report.dense else []:
                print(f"    {step.name:10} {step.tokens:3} tokens, {step.way}: {step.reason}")
