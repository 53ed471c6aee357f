"""The fidelity bench: the same calls for every method, and numbers that mean what they say."""

from __future__ import annotations

import asyncio

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import chain, fully_connected
from kvcomm.reuse.auto import LEVELS, Auto
from kvcomm.reuse.policy import Dense, Exact
from kvcomm.reuse.recipe import METHODS, Realign, Recipe
from kvcomm.runtime.fidelity import Fidelity, Method, policies
from tests.runtime.support import TASKS, agent

GRAPH = fully_connected(agent("a", 40), agent("b", 30), agent("c"))
QUESTIONS = [{"task": task} for task in TASKS]


def bench(
    engine: LocalEngine, *, warmup: int = 6, held_out: int = 4, **options: object
) -> dict[str, Method]:
    made = Fidelity(engine, GRAPH, warmup=warmup, held_out=held_out, **options)  # type: ignore[arg-type]
    return {method.name: method for method in asyncio.run(made.run(QUESTIONS))}


def test_every_method_sees_the_same_held_out_calls(tiny: LocalEngine) -> None:
    auto = Auto(priors={level.name: 0.0 for level in LEVELS}, target=100.0)
    found = bench(tiny, auto=auto)
    assert set(found) == {*METHODS, "kvcomm", "exact", "auto"}
    tokens = [[call.tokens for call in method.calls] for method in found.values()]
    assert len(tokens[0]) == 4
    assert all(counts == tokens[0] for counts in tokens)


def test_exact_and_dense_are_dense(tiny: LocalEngine) -> None:
    found = bench(tiny, methods={"exact": Exact(), "dense": Dense()})
    for method in found.values():
        assert max(call.divergence.mean for call in method.calls) < 1e-12
        assert all(call.divergence.same_text for call in method.calls)
    assert found["dense"].to_json()["computed_fraction"] == 1
    assert found["exact"].to_json()["computed_fraction"] < 1  # the first literal is a prefix hit


def test_repairing_nearly_everything_is_nearly_dense(tiny: LocalEngine) -> None:
    methods = {
        recipe.name: Realign(recipe) for recipe in (Recipe("none"), Recipe("most", deviating=0.65))
    }
    found = bench(tiny, methods=methods)
    none, most = (found[name].to_json() for name in ("none", "most"))
    assert most["divergence"]["mean"] < none["divergence"]["mean"]
    assert most["computed_fraction"] > none["computed_fraction"] + 0.4


def test_measuring_what_deviates_is_counted_in_layers(tiny: LocalEngine) -> None:
    recipes = (
        Recipe("all", short=1000),
        Recipe("first", first=1000, leading=0.3),
        Recipe("deviating", deviating=0.3),
    )
    found = bench(tiny, methods={recipe.name: Realign(recipe) for recipe in recipes})
    share = 2 / tiny.config.num_hidden_layers
    computed = [[call.computed for call in method.calls] for method in found.values()]
    for whole, first, deviating in zip(*computed, strict=True):
        assert deviating == pytest.approx(first + share * whole)  # but for prefix hits


def test_the_json_of_a_method(tiny: LocalEngine) -> None:
    value = bench(tiny, methods={"rotate": Realign(METHODS["rotate"])})["rotate"].to_json()
    assert set(value) == {
        "divergence",
        "first_divergence",
        "top1_agreement",
        "same_text_32",
        "computed_fraction",
        "state_bytes",
        "rotated_only",
    }
    assert set(value["divergence"]) == {"mean", "median", "sd"}
    assert value["rotated_only"] == 4
    assert value["state_bytes"] == 0


def test_what_methods_learn_is_counted_apart(tiny: LocalEngine) -> None:
    auto = Auto(priors={level.name: 0.0 for level in LEVELS}, target=100.0)
    found = bench(tiny, auto=auto)
    anchors, linear = found["anchors"].state_bytes, found["linear"].state_bytes
    assert anchors > 0
    assert linear > 0
    assert found["auto"].state_bytes > 0
    assert found["rotate"].state_bytes == 0
    value = found["auto"].to_json()
    assert sum(value["choices"].values()) == 4
    assert value["audits"]["used"] > 0
    assert value["audits"]["mean"] > 0
    longer = bench(tiny, warmup=10)
    assert longer["linear"].state_bytes <= 2 * linear  # one regression a kind, however much is seen


def test_without_warm_up_anchors_only_rotate(tiny: LocalEngine) -> None:
    found = bench(tiny, warmup=0)
    assert found["anchors"].to_json()["rotated_only"] == 4
    rotated = [call.divergence.mean for call in found["rotate"].calls]
    assert [call.divergence.mean for call in found["anchors"].calls] == pytest.approx(rotated)


def test_too_few_questions_are_refused(tiny: LocalEngine) -> None:
    made = Fidelity(tiny, chain(agent("a"), agent("b")), warmup=2, held_out=2)
    with pytest.raises(UsageError, match=r"2 questions gave 2 calls .* 4 are wanted"):
        asyncio.run(made.run(QUESTIONS[:2]))


def test_a_graph_without_messages_has_nothing_to_measure(tiny: LocalEngine) -> None:
    made = Fidelity(tiny, chain(agent("a")), warmup=0, held_out=1)
    with pytest.raises(UsageError, match="gave 0 calls"):
        asyncio.run(made.run(QUESTIONS[:1]))


def test_policies_are_named_after_their_methods() -> None:
    assert list(policies()) == [*METHODS, "kvcomm", "exact"]
