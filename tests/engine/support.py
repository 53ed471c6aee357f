"""What the engine tests share: random ids, plain references, short ways to open and extend."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from kvcomm.engine.base import Answer, CallSpec, Extended, Token
from kvcomm.engine.local import LocalEngine
from kvcomm.engine.local.attention import NAME
from kvcomm.engine.local.core import Core
from kvcomm.engine.local.sequence import LocalSequence
from kvcomm.errors import KvcommError
from kvcomm.message import Handle, Outgoing, Span
from kvcomm.prompt import Segment, Template
from kvcomm.reuse.plan import Plan, SegmentFacts, SegmentPlan
from kvcomm.reuse.policy import Dense, Policy, ReuseOptions
from kvcomm.sampling import Sampling

DENSE = Dense("test")
PLAIN = Template(((),), (), "plain")
# A prompt with an input and a message.
TEMPLATE = Template(
    literals=(tuple(range(20, 45)), tuple(range(60, 69)), tuple(range(80, 86))),
    names=("task", "critic"),
    fingerprint="template-of-the-tests",
)
_names = itertools.count()
_opened: list[LocalSequence] = []


class Given:
    """A policy that plans what it is told to, by the index of a segment, and computes the rest.

    `facts` are those that it saw last.
    """

    name = "given"

    def __init__(
        self,
        plans: Mapping[int, SegmentPlan] | None = None,
        *,
        learn: Sequence[int] = (),
        **options: Any,
    ) -> None:
        self.plans = plans or {}
        self.learn = tuple(learn)
        self.options = ReuseOptions(**{"bases": "alone", **options})
        self.facts: Sequence[SegmentFacts] = ()

    def leading(self, tokens: int, most: int) -> int:
        """Nothing."""
        return 0

    def plan(self, facts: Sequence[SegmentFacts]) -> Plan:
        """As told."""
        self.facts = list(facts)
        steps = tuple(
            self.plans.get(n, SegmentPlan("compute", "test")) for n in range(len(self.facts))
        )
        return Plan(steps, "given", dense=not self.plans, learn=self.learn)


def rotated(*positions: int) -> SegmentPlan:
    """Base KV moved to its place, but for the positions that are computed."""
    return SegmentPlan("realign", "test", positions, corrected=False)


def corrected(*positions: int) -> SegmentPlan:
    """Base KV moved to its place, and corrected by offsets."""
    return SegmentPlan("realign", "test", positions)


def random_ids(engine: LocalEngine, count: int, seed: int = 0) -> list[int]:
    """Ids without the special ones at the start of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, engine.config.vocab_size, (count,), generator=generator).tolist()


@contextmanager
def plain(engine: Any) -> Iterator[Any]:
    """The engine's model with its own attention."""
    model = engine.network
    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa" if ours == NAME else ours)
    try:
        yield model
    finally:
        model.set_attn_implementation(ours)


def generate(engine: Any, ids: Sequence[int], count: int) -> list[int]:
    """Greedy tokens of transformers' own `generate`, without a final stop token."""
    tensor = torch.tensor([list(ids)])
    with plain(engine) as model:
        out = model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=sorted(engine.stop),
            pad_token_id=0,
        )
    new: list[int] = out[0, len(ids) :].tolist()
    return new[:-1] if new[-1] in engine.stop else new


def plain_logits(engine: LocalEngine, ids: Sequence[int]) -> torch.Tensor:
    """Logits `[tokens, vocabulary]` of the model's own forward."""
    with plain(engine) as model, torch.inference_mode():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def spec(capacity: int = 200, *, prefix: bool = False, **changes: Any) -> CallSpec:
    """A call of the plain template that uses the prefix cache, or not."""
    options = ReuseOptions(reads_prefix=prefix, feeds_prefix=prefix)
    made = {"node": f"n{next(_names)}", "template": PLAIN, "capacity": capacity, "reuse": options}
    return CallSpec(**{**made, **changes})


async def fill(
    engine: LocalEngine,
    segments: Sequence[Segment],
    policy: Policy,
    last: Answer | None = None,
    **changes: Any,
) -> tuple[LocalSequence, Extended]:
    """A sequence for a prompt of `TEMPLATE`, with its message in `critic`, filled by a policy."""
    made = {"template": TEMPLATE, "messages": frozenset({"critic"}), "reuse": policy.options}
    seq = opened(engine, spec(**{**made, **changes}))
    return seq, await seq.extend(segments, policy, last=last)


def first_logits(seq: LocalSequence) -> torch.Tensor:
    """The logits behind the prompt of a sequence whose answer is recorded."""
    return seq.state.answering.record[0]


def close(found: torch.Tensor, truth: torch.Tensor, tolerance: float = 1e-6) -> bool:
    """Whether logits are those of `truth`, relative to the largest of them."""
    return torch.allclose(found, truth, rtol=0, atol=tolerance * float(truth.abs().max()))


def opened(engine: LocalEngine, call: CallSpec) -> LocalSequence:
    """A sequence that is closed when the test is over."""
    _opened.append(engine.open(call))
    return _opened[-1]


def close_all() -> None:
    """Close what tests have opened, also where they failed."""
    for seq in _opened:
        with suppress(KvcommError):  # its engine is closed
            core: Core = seq._engine.core
            core.call(partial(core.end, seq.state)).result()
    _opened.clear()


def open_seq(engine: LocalEngine, capacity: int, **changes: Any) -> LocalSequence:
    """A sequence without a template."""
    return opened(engine, spec(capacity, **changes))


def segment(ids: Sequence[int], name: str = "literal 0") -> Segment:
    """A literal of these ids."""
    return Segment("literal", name, tuple(ids))


def whole(segments: Sequence[Segment]) -> list[int]:
    """The ids of a prompt."""
    return [i for item in segments for i in item.ids]


def answer(count: int, *, seed: int = 0, record: bool = False, **sampling: Any) -> Answer:
    """An answer of up to `count` tokens."""
    return Answer(Sampling(max_tokens=count, **sampling), seed, record)


async def extend(
    seq: LocalSequence, ids: Sequence[int], last: Answer | None = None, **options: Any
) -> Extended:
    """Extend by ids that are computed."""
    return await seq.extend([segment(ids)], DENSE, last=last, **options)


async def answered(seq: LocalSequence) -> list[Token]:
    """All tokens of the answer."""
    return [token async for token in seq.answer()]


def ids_of(tokens: Sequence[Token]) -> list[int]:
    """The ids, a final stop token left out."""
    return [token.id for token in tokens if token.last != "stop"]


async def said(seq: LocalSequence) -> list[int]:
    """The ids of the answer; the sequence is closed behind it."""
    tokens = ids_of(await answered(seq))
    await seq.close()
    return tokens


def answers_together(engine: LocalEngine, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy answers of sequences that answer at the same time."""

    async def one(ids: list[int]) -> list[int]:
        seq = open_seq(engine, len(ids) + tokens)
        await extend(seq, ids, answer(tokens))
        return await said(seq)

    async def go() -> list[list[int]]:
        return await asyncio.gather(*map(one, prompts))

    return asyncio.run(go())


def outgoing(ids: Sequence[int]) -> Outgoing:
    """A message of these generated ids."""
    return Outgoing("text", tuple(ids), (Span(0, 0, len(ids)),))


async def message(
    engine: LocalEngine, count: int = 14, readers: int = 1
) -> tuple[tuple[int, ...], Handle]:
    """A message of another sequence, now closed: its ids and handle; its last token has no KV."""
    seq = open_seq(engine, 100)
    await extend(seq, random_ids(engine, 30, seed=8), answer(count))
    ids = ids_of(await answered(seq))
    handle = await seq.publish(outgoing(ids), readers)
    await seq.close()
    return tuple(ids), handle


async def prompt_of(engine: LocalEngine, seed: int = 9) -> list[Segment]:
    """A prompt of `TEMPLATE`, its message with a handle."""
    ids, handle = await message(engine)
    task = tuple(random_ids(engine, 17, seed=seed))
    return TEMPLATE.fill({"task": task, "critic": ids}, {"critic": handle})


async def on_thread(engine: LocalEngine, task: Callable[[], Any] = lambda: None) -> Any:
    """What `task` returns on the engine's thread, behind everything that was asked before."""
    return await asyncio.wrap_future(engine.core.call(task))


async def at_once(engine: LocalEngine, *starts: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Start all of these, in this order, before the engine looks at any; errors are returned."""
    begun, busy = threading.Event(), threading.Event()
    held = engine.core.call(lambda: (begun.set(), busy.wait()))
    await asyncio.to_thread(begun.wait)
    tasks = []
    for start in starts:
        tasks.append(asyncio.ensure_future(start()))
        await asyncio.sleep(0)
    busy.set()
    await asyncio.wrap_future(held)
    return await asyncio.gather(*tasks, return_exceptions=True)


class Forwards:
    """Stands before the runner's forward; `sizes` are the tokens of every one.

    `before` is called with them and may raise; `after` may change the logits.
    """

    def __init__(self, monkeypatch: Any) -> None:
        from kvcomm.engine.local import runner

        self.sizes: list[int] = []
        self.before: Callable[[list[int]], object] = lambda ids: None
        self.after: Callable[[list[int], torch.Tensor], object] = lambda ids, logits: None
        self._real = runner.packed_forward
        monkeypatch.setattr(runner, "packed_forward", self)

    async def during(
        self, first: Callable[[], Awaitable[Any]], *others: Callable[[], Awaitable[Any]]
    ) -> list[Any]:
        """Start the others while the first forward of `first` is computed."""
        begun, go = threading.Event(), threading.Event()
        self.before = lambda ids: (begun.set(), go.wait())
        tasks = [asyncio.ensure_future(first())]
        await asyncio.to_thread(begun.wait)
        for start in others:
            tasks.append(asyncio.ensure_future(start()))
            await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def __call__(self, model: object, ids: list[int], *rest: Any) -> torch.Tensor:
        self.sizes.append(len(ids))
        self.before(ids)
        logits = self._real(model, ids, *rest)
        self.after(ids, logits)
        return logits
