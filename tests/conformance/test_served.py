"""The engine over HTTP keeps the contract, and copes with servers that do not."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.engine.base import Answer, Engine
from kvcomm.engine.load import load_served
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.served.protocol import Gate, ServedUsage
from kvcomm.engine.served.sequence import BLOCK, GROWTH
from kvcomm.errors import ContextOverflow, ModelError, ServerError
from kvcomm.graphs import chain
from kvcomm.sampling import Sampling
from tests.conformance.engine import (
    DENSE,
    TASK,
    EngineContract,
    answered,
    call,
    check_usage,
    pieces,
    prompt,
    tokens_of,
)
from tests.conformance.fake_server import FakeServer
from tests.engine.support import generate
from tests.runtime.support import Events, agent, session

TWO = chain(agent("a"), agent("b"))


@pytest.fixture(scope="module")
def behind(engine_of: Callable[..., LocalEngine]) -> LocalEngine:
    return engine_of("random:llama-tiny", "float64")


@pytest.fixture(scope="module")
def shared(behind: LocalEngine) -> Iterator[Engine]:
    # A tiny model is done before anybody can work ahead of it.
    with FakeServer(behind, pause_s=0.002) as server, load_served(server.url) as engine:
        yield engine


class TestServed(EngineContract):
    @pytest.fixture
    def engine(self, shared: Engine) -> Engine:
        return shared


@pytest.fixture
def server(behind: LocalEngine) -> Iterator[FakeServer]:
    with FakeServer(behind) as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcomm.engine.served.client.WAITS", (0.0, 0.0))
    for name in ("OPENAI_API_KEY", "KVCOMM_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


async def test_a_prompt_is_on_the_server_when_its_last_input_arrives(server: FakeServer) -> None:
    graph = chain(agent("a", 190), agent("b", 20))
    server.manners.pause_s = 0.003
    with load_served(server.url) as engine, session(engine, "exact") as active:
        probes = len(server.ahead())
        result = await active.arun(graph, TASK)
    final, ahead = server.real()[1], server.ahead()[probes:]
    sizes = [len(body["prompt"]) for body in ahead]
    assert len(sizes) >= 3
    assert all(body["max_tokens"] == 1 for body in ahead)
    assert all(
        body["prompt"] == final["prompt"][:size] for body, size in zip(ahead, sizes, strict=True)
    )
    assert all(size % BLOCK == 0 for size in sizes)
    assert all(b - a >= GROWTH for a, b in itertools.pairwise(sizes))
    assert {body["cache_salt"] for body in (*ahead, final)} == {server.real()[0]["cache_salt"]}
    done = result.call("b")
    left = done.report.prompt_tokens - done.total("ahead")
    closing = done.steps[-1].tokens
    assert left <= closing + 2 * GROWTH + 3 * BLOCK
    # It was computed for this very call, which does not call it a prefix.
    assert done.total("computed") >= done.steps[-2].tokens
    assert done.report.phases["forward"] > 0


async def test_a_second_run_finds_its_prefix_another_namespace_not(server: FakeServer) -> None:
    graph = chain(agent("a", 20), agent("b", 20))
    with load_served(server.url) as engine:
        for namespace, warm in (("x", False), ("x", True), ("y", False)):
            with session(engine, "exact", namespace=namespace) as active:
                result = await active.arun(graph, TASK)
            check_usage(result)
            first = result.call("a")
            expected = (first.report.prompt_tokens - 1) // BLOCK * BLOCK if warm else 0
            assert first.total("prefix") == expected
        with session(engine, "exact", namespace="x") as active:
            step = (await active.arun(graph, TASK)).call("a").steps[0]
        assert (step.way, step.reason) == ("prefix", "in the server's prefix cache")


async def test_dense_calls_are_alone(server: FakeServer) -> None:
    with load_served(server.url) as engine, session(engine, "dense") as active:
        probes = len(server.requests)
        for _ in range(2):
            assert (await active.arun(TWO, TASK)).totals.reused_tokens == 0
    sent = server.requests[probes:]
    assert len(sent) == 4
    assert len({body["cache_salt"] for body in sent}) == 4


async def test_auto_is_exact_and_says_why(server: FakeServer) -> None:
    with load_served(server.url) as engine, session(engine, "auto") as active:
        report = (await active.arun(TWO, TASK)).call("b").report
    why = "exact, because its KV stays on the server, which reuses equal prefixes"
    assert (report.mode, report.gate) == ("exact", why)


async def test_sampling_is_sent_as_it_was_asked(server: FakeServer) -> None:
    with load_served(server.url) as engine:
        hot = Sampling(temperature=0.7, top_p=0.9, max_tokens=3, stop_token_ids=(300,))
        await answered(engine, [20, 21, 22], 3, Answer(hot, 11))
    body = server.real()[0]
    fields = ("prompt", "temperature", "top_p", "max_tokens", "seed", "stop_token_ids")
    assert [body[name] for name in fields] == [[20, 21, 22], 0.7, 0.9, 3, 11, [300]]


async def test_beginnings_and_stop_texts_are_as_locally(
    server: FakeServer, behind: LocalEngine
) -> None:
    with session(behind, "dense") as active:
        whole = (await active.arun(chain(agent("a", 30, begins="So:")), TASK)).calls[0].text
    stop = next(whole[i] for i in range(8, 30) if whole[i].isascii())
    first = agent("a", begins="So:", sampling=Sampling(max_tokens=30, stop=(stop,)))
    graph = chain(first, agent("b", 8, chat=False))
    said = []
    for engine in (behind, load_served(server.url)):
        with session(engine, "exact") as active:
            said.append(await active.arun(graph, TASK))
        if engine is not behind:
            engine.close()
    assert said[0].calls[0].text == whole[: whole.index(stop, 3)]
    assert [call.text for call in said[0].calls] == [call.text for call in said[1].calls]
    assert said[1].calls[0].report.stop == "stop"
    assert all(call.report.prompt_tokens for call in said[1].calls)


async def test_no_more_requests_are_under_way_than_the_gate_lets_through(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvcomm.engine.served.engine.PARALLEL", 3)
    server.manners.pause_s = 0.01
    with load_served(server.url) as engine:
        server.busiest = 0
        await asyncio.gather(*(answered(engine, prompt(engine, 30), 4) for _ in range(10)))
    assert server.busiest == 3


async def test_requests_ahead_leave_room_and_make_nobody_wait() -> None:
    gate, one = Gate(4), Gate(1)
    async with gate.spare() as first, gate.spare() as second, gate.spare() as third:
        assert (first, second, third) == (True, True, False)  # half of the places at most
    async with gate.ready() as begun:
        async with gate.spare() as free:
            assert not free  # somebody waits for a first token
        begun()
        async with gate.spare() as free:
            assert free
    async with one.ready() as begun:
        begun()
        async with one.spare() as free:
            assert not free  # there is no place
    async with one.spare() as free:
        assert free


async def test_without_ids_texts_are_encoded_again(server: FakeServer, behind: LocalEngine) -> None:
    server.manners.token_ids = False
    with load_served(server.url) as engine:
        assert "encoded again" in engine.capabilities.reason
        ids = prompt(engine, 40)
        expected = generate(behind, ids, 12)
        text = engine.codec.decode(await answered(engine, ids, 12))
        # Random weights write bytes that are no text: those are lost on the way.
        assert text.encode("utf-8", "ignore")[:4] == behind.codec.decode(expected).encode()[:4]
        with session(engine, "exact") as active:
            result = await active.arun(chain(agent("a", 30), agent("b", 30)), TASK)
    check_usage(result)
    assert "encoded again" in result.call("b").steps[-1].reason


@pytest.mark.parametrize(
    ("manners", "said"),
    [
        ({"salts": False}, "refuses cache_salt"),
        ({"counts": False}, "does not say what its prefix cache held"),
        ({"refuses_ids": True}, "gives no token ids"),
    ],
)
async def test_what_a_server_lacks_is_said(
    server: FakeServer, manners: dict[str, bool], said: str
) -> None:
    vars(server.manners).update(manners)
    with load_served(server.url) as engine:
        assert said in engine.capabilities.reason
        with session(engine, "auto") as active:
            result = await active.arun(TWO, TASK)
    check_usage(result)
    assert said in result.call("b").report.gate
    fields = {"salts": "cache_salt", "refuses_ids": "return_token_ids"}
    for name in manners:
        if name in fields:
            assert all(fields[name] not in body for body in server.real())


@pytest.mark.parametrize("fault", [429, 500, 503, "drop-first"])
async def test_what_may_pass_is_tried_again(server: FakeServer, fault: int | str) -> None:
    with load_served(server.url) as engine:
        server.manners.faults.extend([fault, fault])
        found = [await answered(engine, prompt(engine, 30), 5) for _ in range(2)]
        assert found[0] == found[1]
    assert len(server.real()) == 4


@pytest.mark.parametrize(("after", "waits"), [("", [0.0, 0.0]), ("7", [7.0] * 2), ("99", [30] * 2)])
async def test_what_does_not_pass_is_told_after_the_waits_that_the_server_asks_for(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, after: str, waits: list[float]
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("kvcomm.engine.served.client.asyncio", SimpleNamespace(sleep=sleep))
    server.manners.retry_after = after
    with load_served(server.url) as engine:
        server.manners.faults.extend([503] * 9)
        with pytest.raises(ServerError, match="answered 503: not now, after 3 attempts"):
            await answered(engine, prompt(engine, 30), 5)
    assert (len(server.real()), waited) == (3, waits)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("drop", "in the middle of an answer"),
        ("early", "ended an answer in the middle"),
        ("error", "failed: the GPU is on fire"),
    ],
)
async def test_an_answer_that_breaks_off_has_failed(
    server: FakeServer, fault: str, said: str
) -> None:
    with load_served(server.url) as engine:
        server.manners.faults.append(fault)
        with pytest.raises(ServerError, match=said):
            await answered(engine, prompt(engine, 30), 8)
        # A node is tried again as its agent says, and its readers hear the second attempt only.
        server.manners.faults.append(fault)
        events = Events()
        graph = chain(agent("a", retries=1, backoff_s=0.0), agent("b"))
        with session(engine, "exact", listeners=(events,)) as active:
            result = await active.arun(graph, TASK)
            assert said in events.of("retry")[0].error
            assert result.answer == (await active.arun(graph, TASK)).answer
    check_usage(result)


async def test_requests_ahead_may_fail(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain(agent("a", 150), agent("b", 20))
    with load_served(server.url) as engine:
        with session(engine, "dense") as active:
            expected = (await active.arun(graph, TASK)).answer
        server.manners.fails_ahead = True
        with session(engine, "exact") as active:
            result = await active.arun(graph, TASK)
    assert result.answer == expected
    assert result.call("b").total("ahead") == 0
    check_usage(result)


async def test_an_engine_that_is_closed_fails_its_open_rows(server: FakeServer) -> None:
    server.manners.pause_s = 0.01
    engine = load_served(server.url)
    seq = engine.open(call(300))
    await seq.extend(pieces(prompt(engine, 30), 30), DENSE, last=Answer(Sampling(max_tokens=200)))
    closing = asyncio.get_running_loop().run_in_executor(None, engine.close)
    with pytest.raises(ServerError, match="closed"):
        await tokens_of(seq)
    await closing
    await seq.close()
    engine.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "write http://HOST:PORT/v1"),
        ("", "write http://HOST:PORT/v1"),
        ("http://me:secret@host/v1", "put the key in OPENAI_API_KEY"),
        ("http://127.0.0.1:9", r"127.0.0.1:9/v1 cannot be reached: start it \(`vllm"),
    ],
)
def test_addresses_are_checked(url: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as raised:
        load_served(url)
    assert "secret" not in str(raised.value)


def test_the_model_and_its_tokenizer_are_chosen(server: FakeServer) -> None:
    for models, named, said in (
        (("one", "two"), {}, "2 models: choose one with --served-model"),
        (("one", "two"), {"served_model": "three"}, "no model 'three': choose one of one, two"),
        ((), {}, "serves no model"),
        (("tiny",), {"model": "smollm2-135m"}, "another tokenizer"),
    ):
        server.manners.models = models
        with pytest.raises(ModelError, match=said):
            load_served(server.url, **named)
    server.manners.models = ("one", "two")
    with load_served(server.url, served_model="two") as engine:
        assert engine.model == "two"
    server.manners.root = "no such thing"
    with pytest.raises(ModelError, match="name the folder or hub id of its tokenizer"):
        load_served(server.url, served_model="two")


def test_keys_come_from_the_environment_and_are_told_to_nobody(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.manners.key = "sesame-1234"
    with pytest.raises(ModelError, match="wants a key: set OPENAI_API_KEY"):
        load_served(server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-5678")
    with pytest.raises(ModelError, match="refuses the key in OPENAI_API_KEY") as raised:
        load_served(server.url)
    assert "wrong-5678" not in str(raised.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sesame-1234")
    with load_served(server.url) as engine, session(engine, "exact", runs=tmp_path) as active:
        result = active.run(TWO, TASK)
        server.manners.key = "another"
        server.manners.repeats_key = True
        with pytest.raises(ModelError) as raised:
            active.run(TWO, TASK)
    assert "sesame" not in str(raised.value)
    assert result.trace.path is not None
    for file in tmp_path.rglob("*.jsonl"):
        assert "sesame" not in file.read_text("utf-8")


async def test_the_context_is_the_servers(server: FakeServer) -> None:
    server.manners.max_model_len = 400
    with load_served(server.url) as engine:
        assert engine.max_context == 400
        server.manners.max_model_len = 100  # it was restarted
        with pytest.raises(ContextOverflow, match="context length is 100"):
            await answered(engine, prompt(engine, 90), 20)
    server.manners.max_model_len = None
    with load_served(server.url) as engine:
        assert engine.max_context == 8192  # the model's own


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 99), st.integers(0, 99) | st.none()),
            st.tuples(st.just("cut"), st.integers(0, 99), st.none()),
        ),
        max_size=12,
    ),
    st.integers(0, 99) | st.none(),
)
def test_usage_adds_up(steps: list[tuple[str, int, int | None]], cached: int | None) -> None:
    usage, plain = ServedUsage(), list[str]()
    again = 0
    for kind, tokens, held in (*steps, ("add", 100, cached)):
        if kind == "cut":
            again += plain[tokens:].count("computed")
            del plain[tokens:]
            usage.truncate(tokens)
        else:
            held = None if held is None else min(held, tokens)
            again += 0 if held is None else max(min(len(plain), tokens) - held, 0)
            known = ["prefix"] * (held or 0) + ["computed"] * tokens
            plain += known[len(plain) : tokens]
            usage.add(0.0, tokens, held)
    found = list[str]()
    for a in usage.arrivals:
        found += ["prefix"] * (a.tokens - a.computed) + ["computed"] * a.computed
    assert found == plain
    assert len(found) == 100
    assert usage.again == again
