"""The connector in real vLLM servers on loopback, with the embedded model in float32.

    python -m tests.vllm.live [--server .venv-serve/bin/python] [--only NAME ...]

Not collected by itself: each server takes half a minute to start. Every check prints what it
measured, and the first one that does not hold ends the run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.vllm_server import ROOT
from kvcomm.engine.base import Answer as Wanted
from kvcomm.engine.base import CallSpec
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.models import fetch_model
from kvcomm.prompt import Template
from kvcomm.reuse.plan import SegmentPlan
from kvcomm.reuse.policy import Dense
from kvcomm.sampling import Sampling
from kvcomm.vllm.protocol import OffsetLesson, OffsetQuestion, Piece, Publish, Request, salt_of
from kvcomm.vllm.refusals import ANY_VERSION
from tests.engine.support import Given
from tests.vllm.server import FAILS, Answer, Failed, Server, divergence, name, off, serve

MODEL = "smollm2-135m"
NEAR = 1e-4
TOKENS = 24
ALL = 49152
MODELS = ("linear", "f" * 32, "story")
A = (
    "The train leaves the old station at 9:40 in the morning and arrives at the harbour at 11:05. "
    "Along the way it stops twice, first at the mill, where the workers get on, and then at the "
    "school, where the children get off. The ticket costs four coins, and the conductor never "
    "takes paper money. In winter the line is closed for three weeks because of snow."
)
B = (
    "A farmer has seventeen sheep and nine goats. He sells five sheep to his neighbour and buys "
    "three more goats at the market on Friday. His daughter says that the barn only has room for "
    "twenty animals, so two of the goats must sleep outside under the roof of the shed. In spring "
    "each goat gives about two litres of milk a day."
)
LITERALS = (
    "<|im_start|>system\nYou are a careful helper who answers questions about short "
    "stories.<|im_end|>\n<|im_start|>user\nFirst story: ",
    "\n\nSecond story, told by another person: ",
    "\n\nQuestion: how many animals stay in the barn, and when does the train arrive?"
    "<|im_end|>\n<|im_start|>assistant\n",
)


class Bench:
    """The texts as token ids, and kvcomm's own engine."""

    def __init__(self) -> None:
        self.own: LocalEngine = load_engine(MODEL, device="cpu", dtype="float32")
        self.literals = [self.ids(text) for text in LITERALS]
        self.a, self.b = self.ids(A), self.ids(B)
        first, second, third = self.literals
        self.prompt = [*first, *self.a, *second, *self.b, *third]
        self.a0 = len(first)
        self.a1 = self.a0 + len(self.a)
        self.b0 = self.a1 + len(second)
        self.b1 = self.b0 + len(self.b)

    def ids(self, text: str) -> list[int]:
        return list(self.own.codec.encode(text))

    def bases(self, server: Server, header: Sequence[int]) -> tuple[str, str]:
        """Publish both stories, each alone behind a header."""
        names = name(), name()
        for each, story in zip(names, (self.a, self.b), strict=True):
            ids = [*header, *story]
            reply = server.ask(
                ids, name(), Request(publish=(Publish(each, len(header), len(ids)),))
            )
            assert reply.reply is not None
            assert reply.reply.published == (each,)
        return names

    def pieces(
        self, names: tuple[str, str], holes: tuple[int, int], model: Any = None
    ) -> tuple[Piece, ...]:
        """Both stories, but for their first tokens."""
        first, second = holes
        return (
            Piece(self.a0 + first, self.a1, names[0], first, model),
            Piece(self.b0 + second, self.b1, names[1], second, model),
        )

    def grow(self, server: Server, row: str, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
        """Have a row computed up to its last piece; returns what each request was supplied."""
        found = []
        for i, piece in enumerate(pieces):
            ask = Request(row=row, keep=True, pieces=tuple(pieces[:i]))
            reply = server.ask(self.prompt[: piece.start], salt_of(row), ask).reply
            assert reply is not None
            assert not reply.refused
            found.append(reply.supplied)
        return found


def say(what: str, **numbers: Any) -> None:
    said = ", ".join(
        f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in numbers.items()
    )
    print(f"  {what}: {said}", flush=True)


def idle(server: Server) -> dict[str, Any]:
    """What the connector says of itself; nothing is under way but the question."""
    about = server.about()
    assert about["live"] == 0, about
    assert about["rows"] == 0, about
    assert about["pinned_blocks"] == 0, about
    return about


# --- checks: each takes a server ---


def raw(bench: Bench, server: Server) -> None:
    """Its own KV under a row's salt is what it was."""
    ids, told = bench.prompt, name()
    dense = server.ask(ids, name(), Request(publish=(Publish(told, 0, len(ids)),)), logprobs=ALL)
    worst = 0.0
    for length in (64, 100, len(ids) - 1, len(ids)):
        row = name()
        ask = Request(row=row, pieces=(Piece(0, length, told),))
        found = server.ask(ids, salt_of(row), ask, logprobs=ALL)
        assert found.reply is not None
        assert found.reply.supplied == (0, min(length, len(ids) - 1)), found.reply
        assert found.cached == found.reply.supplied[1]
        worst = max(worst, off(dense.logprobs(), found.logprobs()))
    say("raw KV under another salt", worst=worst)
    assert worst <= NEAR
    answer = name()
    server.ask(ids, name(), Request(publish=(Publish(answer, 0, None),)), tokens=TOKENS)
    dense = server.ask(ids, name(), tokens=TOKENS + 1, logprobs=ALL)
    longer, row = [*ids, *dense.ids[:TOKENS]], name()
    ask = Request(row=row, pieces=(Piece(0, len(ids) + TOKENS - 1, answer),))
    found = server.ask(longer, salt_of(row), ask, logprobs=ALL)
    assert found.reply is not None
    assert found.reply.supplied == (0, len(longer) - 1), found.reply
    worst = off(dense.logprobs(TOKENS), found.logprobs())
    say("an answer's KV", worst=worst)
    assert worst <= NEAR
    idle(server)


def own(bench: Bench, server: Server) -> None:
    """A plan with holes, by growth, beside kvcomm's own engine; then the audit."""
    engine, holes = bench.own, (5, 13)
    template = Template(tuple(map(tuple, bench.literals)), ("first", "second"), "live")
    call = CallSpec("n", template, len(bench.prompt) + TOKENS + 8, TOKENS)
    plans = {
        index: SegmentPlan("realign", "test", tuple(range(tokens)), corrected=False)
        for index, tokens in zip((1, 3), holes, strict=True)
    }
    answer = Wanted(Sampling(max_tokens=TOKENS), record=True)

    async def local() -> tuple[list[int], np.ndarray[Any, Any], float, float]:
        segments = template.fill({"first": tuple(bench.a), "second": tuple(bench.b)})
        dense = engine.open(call)
        await dense.extend(segments, Dense("test"), last=answer)
        forced = [token.id async for token in dense.answer()]
        filled = engine.open(replace(call, reuse=Given(plans).options))
        await filled.extend(segments, Given(plans), last=answer)
        [_ async for _ in filled.answer()]
        record = filled.state.answering.record
        first = torch.log_softmax(record[0].float(), 0).numpy()
        again = engine.open(replace(call, reuse=Given(plans).options))
        await again.extend(segments, Given(plans), ends=True)
        audit = await again.compare(dense)
        return forced, first, audit.mean, audit.top1

    forced, wanted, mean, top = asyncio.run(local())
    pieces = bench.pieces(bench.bases(server, list(engine.texts.header)), holes)
    row = name()
    supplied = bench.grow(server, row, pieces)
    assert [stop for _, stop in supplied] == [0, pieces[0].stop], supplied
    about = server.about()
    say("a row between two requests", pinned=about["pinned_blocks"], bytes=about["store_bytes"])
    assert about["rows"] == 1
    assert about["pinned_blocks"] > 0
    found = server.ask(
        bench.prompt,
        salt_of(row),
        Request(row=row, pieces=pieces),
        tokens=TOKENS,
        logprobs=ALL,
        vllm_xargs={"kvcomm_force": forced},
    )
    assert found.reply is not None
    assert found.reply.supplied[1] == pieces[1].stop, found.reply
    assert found.ids == forced
    worst = off(wanted, found.logprobs())
    say("moved text beside kvcomm's own engine", worst=worst, supplied=found.reply.supplied)
    assert worst <= NEAR
    dense = server.ask(bench.prompt, name(), tokens=TOKENS, logprobs=ALL)
    pairs = [(dense.logprobs(i), found.logprobs(i)) for i in range(TOKENS)]
    kls = [divergence(p, q) for p, q in pairs]
    tops = statistics.fmean(float(np.nanargmax(p) == np.nanargmax(q)) for p, q in pairs)
    say("audit", server=statistics.fmean(kls), own=mean, top1=tops, own_top1=top)
    assert abs(statistics.fmean(kls) - mean) < 1e-3
    idle(server)


def dense(bench: Bench, server: Server) -> None:
    """What may not be supplied is computed, and says why."""
    names = bench.bases(server, bench.literals[0])
    pieces = bench.pieces(names, (0, 0))
    ids = bench.prompt
    wanted = server.ask(ids, name(), logprobs=ALL)
    row = name()
    ask = Request(row=row, pieces=pieces)
    for salt, what in ((None, "no salt"), (salt_of(name()), "a foreign salt")):
        found = server.ask(ids, salt, ask, logprobs=ALL)
        assert found.reply is not None
        worst = off(wanted.logprobs(), found.logprobs())
        say(what, worst=worst, refused=found.reply.refused)
        assert worst <= NEAR
        assert found.reply.refused
    gone = name()
    row = name()
    ask = Request(row=row, pieces=(Piece(0, 40, gone), *pieces))
    found = server.ask(ids, salt_of(row), ask, logprobs=ALL)
    assert found.reply is not None
    assert found.reply.missing == (gone,)
    worst = off(wanted.logprobs(), found.logprobs())
    say("an unknown name", worst=worst, supplied=found.reply.supplied)
    assert worst <= NEAR
    row = name()
    wrong = (Piece(1, 41, names[0]),)
    found = server.ask(ids, salt_of(row), Request(row=row, pieces=wrong), logprobs=ALL)
    assert found.reply is not None
    assert found.reply.refused
    say("other tokens", refused=found.reply.refused)
    for more in ({"prompt_logprobs": 1}, {"n": 2, "temperature": 1.0}):
        row = name()
        ask = Request(row=row, pieces=(Piece(0, 40, names[0]),))
        found = server.ask(ids, salt_of(row), ask, tokens=2, **more)
        assert found.reply is not None
        assert found.reply.refused
        say(str(more), refused=found.reply.refused)
    told = name()
    row = name()
    publish = (Publish(told, 0, 50),)
    found = server.ask(ids, salt_of(row), Request(row=row, publish=publish))
    assert found.reply is not None
    assert not found.reply.published
    bad = server.ask(ids, name(), None, kv_transfer_params={"kvcomm": {"version": 1, "row": "x"}})
    assert bad.reply is not None
    say("nonsense", refused=bad.reply.refused)
    assert bad.reply.refused
    idle(server)


def leave(bench: Bench, server: Server) -> None:
    """A client that goes away leaves nothing behind."""
    pieces = bench.pieces(bench.bases(server, bench.literals[0]), (5, 13))
    before = server.about()
    for _ in range(2):
        row = name()
        bench.grow(server, row, pieces)
        server.leave(bench.prompt, salt_of(row), Request(row=row, pieces=pieces), 2000)
    until = time.monotonic() + 60
    while (about := server.about())["live"] and time.monotonic() < until:
        time.sleep(0.5)
    after = idle(server)
    say("after leaving twice", names=after["names"], bytes=after["store_bytes"])
    assert after["store_bytes"] == before["store_bytes"], (before, about)
    row = name()
    bench.grow(server, row, pieces)
    assert server.about()["rows"] == 1
    server.ask([1, 2, 3], name(), Request(ends=(row,), release=tuple(p.name for p in pieces)))
    assert idle(server)["names"] == before["names"] - 2


def teach(bench: Bench, server: Server, lessons: int = 12) -> None:
    """Offset models learn, say so, and predict."""
    first, _, third = bench.literals
    stories = [
        bench.ids(f"{one} met {two} near the {place}, and they talked of {thing} for hours. " * 3)
        for one in ("Anna", "Bert", "Carla", "Dora", "Emil")
        for two, place, thing in (("a dog", "lake", "bread"), ("a fox", "mill", "rain"),
                                  ("her aunt", "harbour", "money"))
    ]  # fmt: skip
    header = bench.ids("<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n")

    def base(story: Sequence[int]) -> str:
        told, ids = name(), [*header, *story]
        server.ask(ids, name(), Request(publish=(Publish(told, len(header), len(ids)),)))
        return told

    def prompt(story: Sequence[int]) -> list[int]:
        return [*first, *story, *third]

    begin = len(first)
    for story in stories[:lessons]:
        stop = begin + len(story)
        lesson = OffsetLesson(MODELS, base(story), begin, stop)
        found = server.ask(prompt(story), name(), Request(lessons=(lesson,)))
        assert found.reply is not None
        assert not found.reply.refused
    key, until = " ".join(MODELS), time.monotonic() + 60
    while (told := server.about()["told"].get(key, (0, "", 0, 1)))[2] < lessons:
        assert time.monotonic() < until, told
        time.sleep(0.2)
    say("taught", told=told)
    gaps: dict[str, list[float]] = {"moved": [], "offsets": []}
    for story in stories[lessons:]:
        ids, stop, told_as = prompt(story), begin + len(story), base(story)
        question = OffsetQuestion(MODELS, told_as, 0, len(story))
        asked = server.ask(header, name(), Request(questions=(question,)), tokens=3).reply
        assert asked is not None
        assert asked.answers[0] is not None
        assert asked.answers[0][0], asked.answers
        wanted = server.ask(ids, name(), logprobs=ALL).logprobs()
        for label, model in (("moved", None), ("offsets", MODELS)):
            row = name()
            piece = Piece(begin + 4, stop, told_as, 4, model)
            server.ask(ids[: piece.start], salt_of(row), Request(row=row, keep=True))
            found = server.ask(ids, salt_of(row), Request(row=row, pieces=(piece,)), logprobs=ALL)
            assert found.reply is not None
            assert found.reply.supplied[1] == stop, found.reply
            gaps[label].append(divergence(wanted, found.logprobs()))
    means = {label: statistics.fmean(kls) for label, kls in gaps.items()}
    say("divergence from dense", **means)
    assert means["offsets"] < means["moved"]
    idle(server)


def speed(bench: Bench, server: Server) -> None:
    """Seconds until the first token of a long prompt, of which nine tenths are supplied."""
    ids = [number % 20000 + 100 for number in range(1500)]
    told, begin = name(), 75
    server.ask(ids, name(), Request(publish=(Publish(told, 0, len(ids)),)))
    shifted = [*range(begin), *ids, *range(begin)]
    seconds: dict[str, list[float]] = {"dense": [], "supplied": []}
    for _ in range(3):
        began = time.perf_counter()
        server.ask(shifted, name())
        seconds["dense"].append(time.perf_counter() - began)
        row, piece = name(), Piece(begin, begin + len(ids), told)
        began = time.perf_counter()
        server.ask(shifted[:begin], salt_of(row), Request(row=row, keep=True))
        reply = server.ask(shifted, salt_of(row), Request(row=row, pieces=(piece,))).reply
        seconds["supplied"].append(time.perf_counter() - began)
        assert reply is not None
        assert reply.supplied[1] == piece.stop
    say("seconds for 1,650 tokens", **{k: statistics.median(v) for k, v in seconds.items()})


def short(bench: Bench, server: Server) -> None:
    """Where blocks are short, rows are preempted, and answers are what they are alone or fail."""
    tokens, holes = 160, (5, 13)
    names = bench.bases(server, bench.literals[0])
    pieces = bench.pieces(names, holes)

    def said(found: Answer) -> list[float]:
        value = found.value["choices"][0]["logprobs"]["token_logprobs"]
        return [float(logprob) for logprob in value]

    def answer(_: int) -> list[float] | str:
        row = name()
        ask = Request(row=row, pieces=pieces)
        try:
            bench.grow(server, row, pieces)
            found = server.ask(bench.prompt, salt_of(row), ask, tokens=tokens, logprobs=1)
        except Failed:
            return "failed"
        assert found.reply is not None
        return said(found) if found.reply.supplied[1] == pieces[1].stop else "more exact"

    alone = answer(0)
    dense = said(server.ask(bench.prompt, name(), tokens=tokens, logprobs=1))
    assert not isinstance(alone, str)

    def gap(other: list[float]) -> float:
        return max(abs(a - b) for a, b in zip(alone, other, strict=True))

    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(answer, range(10)))
    gaps = [gap(one) for one in found if not isinstance(one, str)]
    others = [one for one in found if isinstance(one, str)]
    preempted = server.metric("vllm:num_preemptions_total")
    say("ten rows at once", worst=max(gaps), dense=gap(dense), others=others, preempted=preempted)
    assert max(gaps) < NEAR * 10 < gap(dense)
    idle(server)
    # A prompt that needs what rows have pinned gets it.
    rows = [name() for _ in range(3)]
    for row in rows:
        bench.grow(server, row, pieces)
    about = server.about()
    long = [number % 20000 + 100 for number in range(24 * 32 - 8)]
    server.ask(long, name())
    after = server.about()
    say("blocks that rows had", before=about["pinned_blocks"], after=after["pinned_blocks"])
    assert after["pinned_blocks"] < about["pinned_blocks"]
    for row in rows:
        found_ = server.ask(bench.prompt, salt_of(row), Request(row=row, pieces=pieces))
        assert found_.reply is not None
        assert found_.reply.supplied[1] == pieces[1].stop
    idle(server)


def kept(bench: Bench, server: Server) -> None:
    """What was learned before is there at once."""
    about = server.about()
    say("after a restart", told=about["told"], unread=about["unread"] or "nothing")
    assert about["told"].get(" ".join(MODELS), (0, "", 0, 1))[2] >= 12


def full(bench: Bench, server: Server) -> None:
    """A full store lets go of what was used longest ago, and says so."""
    names = [name() for _ in range(6)]
    ids = bench.prompt
    for number, each in enumerate(names):
        text = [*ids[:200], number + 100]
        server.ask(text, name(), Request(publish=(Publish(each, 0, 200),)))
    about = server.about()
    say("store", **{key: about[key] for key in ("names", "store_bytes", "store_budget")})
    assert about["store_bytes"] <= about["store_budget"]
    wanted = server.ask(ids, name(), logprobs=ALL)
    row = name()
    found = server.ask(
        ids, salt_of(row), Request(row=row, pieces=(Piece(0, 200, names[0]),)), logprobs=ALL
    )
    assert found.reply is not None
    assert found.reply.missing == (names[0],)
    assert off(wanted.logprobs(), found.logprobs()) <= NEAR
    row = name()
    found = server.ask(ids, salt_of(row), Request(row=row, pieces=(Piece(0, 200, names[-1]),)))
    assert found.reply is not None
    assert found.reply.supplied == (0, 200)
    idle(server)


def fails(bench: Bench, server: Server, half: str, path: Path) -> None:
    """A worker that fails turns the connector off; the server goes on, dense."""
    pieces = bench.pieces(bench.bases(server, bench.literals[0]), (0, 0))
    wanted = server.ask(bench.prompt, name(), logprobs=ALL)
    row = name()
    bench.grow(server, row, pieces)
    path.write_text(half)
    ask = Request(row=row, pieces=pieces)
    try:
        server.ask(bench.prompt, salt_of(row), ask)
        error = "none"
    except Failed as failed:
        error = str(failed)
    path.unlink()
    say(f"failing in `{half}`", error=error)
    assert (error == "none") == (half == "end"), error
    row = name()
    ask = Request(row=row, pieces=pieces)
    found = server.ask(bench.prompt, salt_of(row), ask, logprobs=ALL)
    assert found.reply is not None
    worst = off(wanted.logprobs(), found.logprobs())
    say("after that", worst=worst, refused=found.reply.refused)
    assert worst <= NEAR
    assert "as the test wants it" in found.reply.refused
    about = idle(server)
    assert about["names"] == 0
    assert about["disabled"]


def refuses(bench: Bench, server: Server) -> None:
    """A server of which nothing is known is let alone."""
    about = server.about()
    say("refused", why=about["disabled"])
    assert about["disabled"]
    found = server.ask(bench.prompt, name(), Request(publish=(Publish(name(), 0, 40),)))
    assert found.reply is not None
    assert found.reply.refused
    assert not found.reply.published


def main() -> None:
    """See the module."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--server", type=Path, default=ROOT / ".venv-serve/bin/python")
    options.add_argument("--only", nargs="*", help="servers to start")
    options.add_argument("--vllm", help="a folder with another vLLM, which is used all the same")
    given = options.parse_args()
    bench, folder = Bench(), fetch_model(MODEL)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        state, file = place / "state", place / "fails"
        failing = ("FailingConnector", "tests.vllm.failing")
        hurt = {"connector": failing, "environment": {FAILS: str(file)}}
        servers: dict[str, tuple[list[Callable[..., None]], dict[str, Any], list[str]]] = {
            "plain": ([raw, own, dense, leave, teach, speed], {"extra": {"state": str(state)}}, []),
            "again": ([kept, full], {"extra": {"state": str(state), "store_gb": 0.04}}, []),
            "begin": ([lambda b, s: fails(b, s, "begin", file)], hurt, []),
            "end": ([lambda b, s: fails(b, s, "end", file)], hurt, []),
            "off": ([refuses], {"extra": {"stor_gb": 1}}, []),
            "short": ([short], {},
                      ["--num-gpu-blocks-override", "28", "--max-model-len", "864"]),
            # The model has 3 KV heads, so 3 is the least that divides them.
            "ranks": ([raw, own, teach], {"environment": {"VLLM_CPU_OMP_THREADS_BIND": "0|1|0"}},
                      ["--tensor-parallel-size", "3", "--distributed-executor-backend", "mp"]),
        }  # fmt: skip
        for title, (checks, settings, more) in servers.items():
            if given.only and title not in given.only:
                continue
            if given.vllm:
                settings = {**settings, "environment": {
                    **settings.get("environment", {}),
                    "PYTHONPATH": f"{ROOT}:{given.vllm}", ANY_VERSION: "1",
                }}  # fmt: skip
            log = Path(tempfile.gettempdir()) / f"kvcomm-live-{title}-{os.getpid()}.log"
            print(f"{title}: {log}", flush=True)
            with serve(given.server, folder, log, *more, **settings) as server:
                for check in checks:
                    check(bench, server)
    print("all of it holds")


if __name__ == "__main__":
    main()
