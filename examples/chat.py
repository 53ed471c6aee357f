"""A conversation with two agents: each turn begins with the KV of the one before."""

import os

from kvcomm import Session, load_engine
from kvcomm.agents import Agent, Sampling
from kvcomm.graphs import AgentGraph

short = Sampling(max_tokens=24)
guide = Agent("guide", system="You show a visitor around.", prompt="{task}", sampling=short)
editor = Agent(
    "editor",
    system="You make answers friendly.",
    prompt="{task}\n\nThe guide says: {guide}\n\nAnswer the visitor.",
    sampling=short,
)
graph = AgentGraph([guide, editor], [("guide", "editor")])

engine = load_engine(os.environ.get("KVCOMM_MODEL", "smollm2-135m"))
with engine, Session(engine, reuse="exact", runs=None) as session:
    chat = session.chat(graph)
    for question in ("What is there to see in Paris?", "How do I get there?", "And by night?"):
        result = chat.run(question)
        print(f"\nvisitor: {question}\neditor: {result.answer}")
        for call in result.calls:
            usage = call.usage()
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            print(f"  {call.node}: {cached} of {usage['prompt_tokens']} tokens had their KV")
