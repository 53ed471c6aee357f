"""Two agents of our own, a graph of our own, and their words as they come."""

import os

from kvcomm import Session, load_engine
from kvcomm.agents import Agent, Sampling
from kvcomm.graphs import AgentGraph
from kvcomm.runtime.session import Delta

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
    speaker = ""
    for item in session.stream(graph, task="the sea at night"):
        if isinstance(item, Delta):
            if item.node != speaker:
                print(f"\n{item.node}: ", end="")
                speaker = item.node
            print(item.text, end="", flush=True)
        else:
            ahead = item.call("translator").total("ahead")
            print(
                f"\n\n{item.totals.computed_tokens} tokens computed in {item.totals.wall_s:.1f} s"
            )
            print(f"{ahead} tokens of the translator's prompt were ready before the poet was")
