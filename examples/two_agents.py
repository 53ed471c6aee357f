"""Two agents of our own, a graph of our own, and their words as they come."""

import os

from kvcomm import Delta, NodeEnd, NodeStart, Session, load_engine
from kvcomm.agents import Agent, Sampling
from kvcomm.graphs import AgentGraph
from kvcomm.runtime.result import Result

poet = Agent(
    "poet",
    system="You write one line of verse.",
    prompt="Write about {task}.",
    sampling=Sampling(temperature=0.7, top_p=0.9, max_tokens=24),
)
translator = Agent(
    "translator",
    system="You say things plainly.",
    prompt="Say this plainly: {poet}",
    sampling=Sampling(max_tokens=24),
)
graph = AgentGraph([poet, translator], [("poet", "translator")])

engine = load_engine(os.environ.get("KVCOMM_MODEL", "smollm2-135m"))
with engine, Session(engine, reuse="exact", runs=None) as session:
    for item in session.stream(graph, task="the sea at night"):
        match item:
            case NodeStart(node):
                print(f"[{node} reads]")
            case Delta(_, text):
                print(text, end="", flush=True)
            case NodeEnd(node):
                print(f"\n[{node} has spoken]")
            case Result(totals=totals):
                ahead = item.call("translator").total("ahead")
                print(f"{totals.computed_tokens} tokens computed in {totals.wall_s:.1f} s")
                print(f"{ahead} of the translator's prompt were ready before the poet was")
