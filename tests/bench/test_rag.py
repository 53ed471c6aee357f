"""`bench rag`: what it counts, and that every mode answers the same questions."""

from __future__ import annotations

import asyncio
import random

import pytest

from kvcomm.agents import Agent, Sampling
from kvcomm.bench.rag import Asked, Rag, methods
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.reuse.auto import Auto

READER = Agent(
    "reader",
    prompt="Read.\n\n{passage1}\n\n{passage2}\n\nQuestion: {question}\n",
    begins="Answer:",
    chat=False,
    sampling=Sampling(max_tokens=4, stop=("\n",)),
)
DRAW = random.Random(1)
TEXTS = ["".join(DRAW.choices("abcdefgh ", k=150)) for _ in range(6)]
MODES = ["exact", "kvcomm", "auto", "cacheblend-20", "repair-20", "linear-20", "query-20"]


def asked(*numbers: int) -> Asked:
    return Asked("why?", [TEXTS[n] for n in numbers], lambda answer: float(len(answer) > 1))


def test_all_modes_answer_the_same_questions_over_passages_that_others_read(
    tiny: LocalEngine,
) -> None:
    bench = Rag(tiny, READER, 2, Auto(rate=1.0), MODES, shares=[0.2])
    ahead = [asked(2, 0), asked(3, 1), asked(5, 4)]
    asyncio.run(bench.run(ahead, [asked(0, 1), asked(4, 3)], [asked(1, 2)]))
    found = bench.report("suite").value
    assert (found["questions"], found["passages"], found["passage_tokens"]) == (2, 2, 300)
    assert found["warmup_tokens"] > 900
    modes = found["modes"]
    assert list(modes) == ["dense", *MODES]
    for name, mode in modes.items():
        counted = mode["computed_tokens"]
        assert mode["computed_fraction"] == pytest.approx(
            sum(counted.values()) / bench.prompt_tokens
        )
        assert len(mode["divergences"]) == 2, name
        assert mode["ttft_s"] > 0
    assert modes["dense"]["computed_fraction"] == 1
    assert modes["exact"]["divergence"]["worst"] < 1e-9
    query = modes["query-20"]["computed_tokens"]
    assert query["passages"] == 2 * round(0.2 * 300)
    assert query["query"] > 0
    # CacheBlend's first two layers of all tokens are counted with what it repairs.
    assert modes["cacheblend-20"]["computed_tokens"]["passages"] > 2 * 0.2 * 300
    assert modes["dense"]["same_answer"] == modes["exact"]["same_answer"] == 1
    assert sum(modes["auto"]["levels"].values()) == 2
    assert modes["auto"]["audits"]["probes"] > 0
    # `auto` has measured the question that does not count, too.
    assert max(map(len, bench.auto.audits.values())) == 3


def test_methods_have_names_and_shares() -> None:
    assert {"cacheblend-30", "repair-30", "linear-30", "query-30"} <= set(methods([0.3]))


def test_an_unknown_mode_is_a_clear_error(tiny: LocalEngine) -> None:
    with pytest.raises(UsageError, match="mode 'qery-20' is unknown: choose among dense, exact"):
        Rag(tiny, READER, 2, Auto(), ["qery-20"])
