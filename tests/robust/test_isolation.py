"""Tenants on one engine: nothing crosses a namespace, and approximate KV never becomes exact."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.check import cache_name
from kvcomm.graphs import AgentGraph, fully_connected, random_dag
from kvcomm.reuse.recipe import LINEAR, METHODS, Realign
from kvcomm.runtime.result import Result
from tests.runtime.support import TASK, TASKS, agent, answered, auto, rest, session

GRAPH = fully_connected(agent("a", 20), agent("b", 20), agent("c", 8))
NAMES = ["alice", "bob", "alice/../bob", "", "-", "älice", "alice\0", "a" * 1000]


def counts(result: Result) -> list[tuple[int, int, int]]:
    """What every segment cost; the same text is cheaper for who has seen it."""
    return [(s.computed, s.prefix, s.realigned) for call in result.calls for s in call.steps]


@pytest.mark.parametrize("mode", ["exact", "kvcomm", "auto"])
def test_nobody_can_tell_what_another_tenant_has_asked(tiny: LocalEngine, mode: str) -> None:
    """Bob asks what Alice has asked: it costs him what it costs on a fresh engine."""

    def ask(namespace: str) -> tuple[list[tuple[int, int, int]], list[str]]:
        names = {"namespace": namespace}
        with auto(tiny, **names) if mode == "auto" else session(tiny, mode, **names) as active:
            result = active.run(GRAPH, TASK)
        return counts(result), [call.report.gate for call in result.calls]

    fresh = ask("bob")
    tiny.forget()
    for _ in range(2):
        ask("alice")
    assert ask("bob") == fresh
    assert ask("bob") != fresh or mode == "kvcomm", "bob himself does profit, the next time"


def test_keys_prefixes_and_offsets_of_tenants_are_apart(tiny: LocalEngine) -> None:
    keys, offsets = [], []
    for name in NAMES:
        before, known = set(tiny.segments._entries), set(tiny.offsets.models)
        answered(tiny, "kvcomm", GRAPH, namespace=name)
        rest(tiny)
        keys.append(len(set(tiny.segments._entries) - before))
        offsets.append(len(set(tiny.offsets.models) - known))
    for found in (keys, offsets):  # as many for each: none is shared
        assert found[0] > 0
        assert set(found) == {found[0]}

    def spaces() -> set[str]:
        return {entry.namespace for entry in tiny.prefix._entries.values()}

    assert spaces() == set(NAMES)
    tiny.forget("alice")
    assert spaces() == set(NAMES) - {"alice"}


POLICIES = [*METHODS.values(), LINEAR]


def plain(engine: LocalEngine, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer, by transformers alone."""
    network = engine.network
    name = network.config._attn_implementation
    network.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            out = network(torch.tensor([ids]), use_cache=True)
            cache = getattr(out, cache_name(network))
    finally:
        network.set_attn_implementation(name)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


@given(
    recipes=st.lists(st.sampled_from(POLICIES), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 24), min_size=2, max_size=6),
    density=st.floats(0, 1),
    seed=st.integers(0, 999),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_prefix_cache_holds_what_the_plain_model_computes(
    tiny: LocalEngine, recipes: list, sizes: list[int], density: float, seed: int
) -> None:
    """Runs realigned in any way, one after another and on top of each other's caches."""
    tiny.forget()
    members = [agent(f"n{number}", tokens) for number, tokens in enumerate(sizes)]
    graph: AgentGraph = random_dag(*members, density=density, seed=seed)
    for number, recipe in enumerate(recipes):
        with session(tiny, Realign(recipe)) as active:
            active.run(graph, TASKS[number % 2])
    entries = list(tiny.prefix._entries.values())
    assert entries
    for entry in entries:
        for layer, (keys, values) in enumerate(plain(tiny, entry.ids)):
            tokens = len(entry.ids)
            assert torch.allclose(entry.buffer.keys[layer, :, :tokens], keys, atol=1e-9)
            assert torch.allclose(entry.buffer.values[layer, :, :tokens], values, atol=1e-9)
