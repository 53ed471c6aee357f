"""A graph file: kvcomm run "Why is the sky blue?" --graph examples/my_graph.py"""

from kvcomm.agents import Sampling, editor, solver
from kvcomm.graphs import layered

short = Sampling(max_tokens=24)
graph = layered(
    [
        solver("physicist", system="You explain with physics.", sampling=short),
        solver("poet", system="You explain with pictures.", sampling=short),
    ],
    [editor(sampling=short)],
)
