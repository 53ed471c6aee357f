"""Traces written by hand: what a scheduler would record, without a model."""

from __future__ import annotations

from pathlib import Path

from kvcomm.trace import Recorder, TraceRun, read_trace
from kvcomm.trace.events import (
    CallFinished,
    Failed,
    MessageSent,
    NodeInfo,
    NodeStarted,
    Retried,
    RunFinished,
    RunStarted,
    SegmentStep,
    StateRead,
    Totals,
)

TASK = "A baker makes 7 trays of 12 rolls [each] and sells 59 of them. How many rolls are left?"
SAID = "7 * 12 = 84.\n\n84 - 59 = 25, so \x1b[31m25 rolls are left. [bold]"
TEXTS = {("solver", "task"): TASK, ("critic", "solver"): SAID}
NODES = [
    NodeInfo(name="solver", agent="solver"),
    NodeInfo(name="critic", agent="critic", senders=["solver"]),
    NodeInfo(name="editor", agent="editor", senders=["critic"], exact=True),
]


def begin(recorder: Recorder, mode: str = "kvcomm") -> None:
    """The first lines of every trace."""
    recorder.write(
        RunStarted,
        kvcomm="0.1.0",
        started="2025-01-02T03:04:05",
        model="random:llama-tiny",
        device="cpu",
        dtype="float32",
        mode=mode,
        seed=0,
        graph="chain",
        nodes=NODES,
        answer_node="editor",
        inputs={"task": TASK},
    )
    recorder.write(StateRead, path=None, reason="nothing was learned before")


def step(
    recorder: Recorder,
    node: str,
    index: int,
    name: str,
    counts: str,
    reason: str,
    text: str | None = None,
) -> None:
    """One segment; `counts` are `computed prefix realigned ahead`."""
    computed, prefix, realigned, ahead = map(int, counts.split())
    text = TEXTS.get((node, name), f"[{name} of {node}]\n") if text is None else text
    recorder.write(
        SegmentStep,
        node=node,
        attempt=1,
        index=index,
        segment="literal" if " " in name else "placeholder",
        name=name,
        tokens=computed + prefix + realigned,
        way="realign" if realigned else "prefix" if prefix else "compute",
        computed=computed,
        prefix=prefix,
        realigned=realigned,
        ahead=ahead,
        reason=reason,
        text=recorder.text(text, lambda: text),
    )


def call(
    recorder: Recorder,
    node: str,
    prompt: int,
    *,
    dense: bool,
    gate: str,
    text: str,
    attempt: int = 1,
) -> None:
    """A message and the call that made it."""
    recorder.write(
        MessageSent,
        node=node,
        attempt=attempt,
        text=text,
        tokens=24,
        handle="kv-1",
        covered=23,
        exact=dense,
        reason="",
        ids=list(text.encode()),
    )
    recorder.write(
        CallFinished,
        node=node,
        agent=node,
        round=1,
        attempt=attempt,
        mode="kvcomm",
        gate=gate,
        dense=dense,
        exact=dense,
        prompt_tokens=prompt,
        output_tokens=24,
        opened_at=0.01,
        ready_at=0.9,
        first_token_at=1.1,
        finished_at=2.2,
        ttft_s=0.2,
        decode_s=1.1,
        stop="length",
        base_tokens=40,
        phases={"fill": 0.01, "forward": 1.2},
    )


def solver(recorder: Recorder) -> None:
    """A first call that is dense, because nothing is known yet."""
    recorder.write(NodeStarted, node="solver", attempt=1, prompt_capacity=90)
    step(recorder, "solver", 0, "literal 0", "24 0 0 24", "literal before the first placeholder")
    step(recorder, "solver", 1, "task", "31 0 0 31", "no anchor of this length")
    step(
        recorder, "solver", 2, "literal 1", "9 0 0 0", "closing literal, its last token is computed"
    )
    call(
        recorder,
        "solver",
        64,
        dense=True,
        gate="dense: {task}: no anchors yet, needs 2",
        text=SAID,
    )


def critic(recorder: Recorder) -> None:
    """A call that reuses KV."""
    recorder.write(NodeStarted, node="critic", attempt=1, prompt_capacity=140)
    step(recorder, "critic", 0, "literal 0", "0 26 0 26", "exact prefix")
    step(
        recorder,
        "critic",
        1,
        "solver",
        "1 0 23 0",
        "entropy 0.31 of 4 anchors is at most 0.42: offset predicted, last token computed",
    )
    step(recorder, "critic", 2, "literal 1", "1 0 14 0", "offset of the literal after `solver`")
    call(recorder, "critic", 65, dense=False, gate="realigned", text="Right.")


def finish(recorder: Recorder, status: str = "ok") -> None:
    """The last line."""
    recorder.write(
        RunFinished,
        status=status,
        answer="25 rolls are left." if status == "ok" else None,
        totals=Totals(
            prompt_tokens=129,
            computed_tokens=66,
            reused_tokens=63,
            extra={"base": 40, "pilot": 0},
            wall_s=4.25,
        ),
    )


def whole(folder: Path) -> TraceRun:
    """A run of three calls, one of them on its second attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder)
    begin(recorder)
    solver(recorder)
    critic(recorder)
    recorder.write(NodeStarted, node="editor", attempt=1, prompt_capacity=140)
    recorder.write(
        Retried, node="editor", attempt=1, error="took longer than its timeout of 2 s", wait_s=0.5
    )
    recorder.write(NodeStarted, node="editor", attempt=2, prompt_capacity=140)
    call(recorder, "editor", 60, dense=False, gate="", text="25 rolls are left.", attempt=2)
    finish(recorder)
    recorder.close()
    return read_trace(folder / "trace.jsonl")


def cut_off(folder: Path) -> TraceRun:
    """A run that was killed while its second call was under way, in the middle of a line."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder)
    begin(recorder)
    solver(recorder)
    recorder.write(NodeStarted, node="critic", attempt=1, prompt_capacity=140)
    step(recorder, "critic", 0, "literal 0", "0 26 0 26", "exact prefix")
    recorder.close()
    path = folder / "trace.jsonl"
    path.write_text(path.read_text() + '{"kind": "step", "node": "cri')
    return read_trace(path)


def failed(folder: Path) -> TraceRun:
    """A run whose second node failed."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder)
    begin(recorder)
    solver(recorder)
    recorder.write(NodeStarted, node="critic", attempt=1, prompt_capacity=140)
    recorder.write(Failed, node="critic", error="the sampler met a NaN")
    finish(recorder, "failed")
    recorder.close()
    return read_trace(folder / "trace.jsonl")
