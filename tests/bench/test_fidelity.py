"""`bench fidelity`: the same calls for every method, and numbers that mean what they say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvcomm.bench.fidelity import Fidelity, Method
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import AgentGraph, chain, fully_connected
from kvcomm.reuse.auto import LEVELS, Auto
from kvcomm.reuse.policy import Dense, Exact
from kvcomm.reuse.recipe import METHODS, Realign, Recipe
from tests.runtime.support import TASKS, agent

GRAPH = fully_connected(agent("a", 40), agent("b", 30), agent("c"))
QUESTIONS = [{"task": task} for task in TASKS]


def bench(
    engine: LocalEngine, *recipes: Recipe, warmup: int = 6, held_out: int = 4, **options: Any
) -> dict[str, Method]:
    if recipes:
        options["methods"] = {recipe.name: Realign(recipe) for recipe in recipes}
    made = Fidelity(engine, GRAPH, warmup=warmup, held_out=held_out, **options)
    return {method.name: method for method in asyncio.run(made.run(QUESTIONS))}


def test_every_method_sees_the_same_calls_and_learns_for_itself(tiny: LocalEngine) -> None:
    auto = Auto(priors={level.name: 0.0 for level in LEVELS}, target=100.0)
    found = bench(tiny, auto=auto)
    assert list(found) == [*METHODS, "kvcomm", "exact", "auto"]
    tokens = [[call.tokens for call in method.calls] for method in found.values()]
    assert len(tokens[0]) == 4
    assert all(counts == tokens[0] for counts in tokens)
    assert {n for n, m in found.items() if m.state_bytes} == {"anchors", "kvcomm", "linear", "auto"}
    value = found["auto"].to_json()
    assert sum(value["choices"].values()) == 4
    assert value["audits"]["used"] > 0
    assert value["audits"]["mean"] > 0


def test_exact_is_dense_and_who_computes_more_is_nearer_to_it(tiny: LocalEngine) -> None:
    methods = {"exact": Exact(), "dense": Dense()}
    for name, recipe in (("none", Recipe("none")), ("most", Recipe("most", deviating=0.65))):
        methods[name] = Realign(recipe)
    found = bench(tiny, methods=methods)
    for name in ("exact", "dense"):
        assert max(call.divergence.mean for call in found[name].calls) < 1e-12
        assert all(call.divergence.same_text for call in found[name].calls)
    values = {name: method.to_json() for name, method in found.items()}
    computed = {name: value["computed_fraction"] for name, value in values.items()}
    assert computed["exact"] < computed["dense"] == 1  # the first literal is a prefix hit
    assert computed["most"] > computed["none"] + 0.4
    assert values["most"]["divergence"]["mean"] < values["none"]["divergence"]["mean"]


def test_measuring_what_deviates_is_counted_in_layers(tiny: LocalEngine) -> None:
    found = bench(
        tiny,
        Recipe("all", short=1000),
        Recipe("first", first=1000, leading=0.3),
        Recipe("deviating", deviating=0.3),
    )
    share = 2 / tiny.config.num_hidden_layers
    computed = [[call.computed for call in method.calls] for method in found.values()]
    for whole, first, deviating in zip(*computed, strict=True):
        assert deviating == pytest.approx(first + share * whole)  # but for prefix hits


def test_without_warm_up_anchors_only_rotate(tiny: LocalEngine) -> None:
    found = bench(tiny, METHODS["rotate"], METHODS["anchors"], warmup=0)
    assert found["anchors"].to_json()["rotated_only"] == 4
    rotate, anchors = ([call.divergence.mean for call in m.calls] for m in found.values())
    assert anchors == pytest.approx(rotate)


@pytest.mark.parametrize(
    ("graph", "questions", "message"),
    [
        (chain(agent("a"), agent("b")), 2, r"2 questions gave 2 calls .* 4 are wanted"),
        (chain(agent("a")), 1, "gave 0 calls"),  # without messages there is nothing to measure
    ],
)
def test_too_few_calls_are_refused(
    tiny: LocalEngine, graph: AgentGraph, questions: int, message: str
) -> None:
    made = Fidelity(tiny, graph, warmup=2, held_out=2)
    with pytest.raises(UsageError, match=message):
        asyncio.run(made.run(QUESTIONS[:questions]))
