"""Traces written by hand: what a scheduler would record, without a model."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

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
STARTED: dict[str, Any] = {
    "kvcomm": "0.1.0",
    "started": "2025-01-02T03:04:05",
    "mode": "kvcomm",
    "seed": 0,
    "model": "random:llama-tiny",
    "device": "cpu",
    "dtype": "float32",
    "graph": "chain",
    "nodes": NODES,
    "answer_node": "editor",
    "inputs": {"task": TASK},
}


def shown(renderable: RenderableType, width: int = 80) -> str:
    """What a terminal of so many columns shows; nothing of it is wider."""
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, markup=False).print(renderable)
    lines = [line.rstrip() for line in file.getvalue().split("\n")]
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


def call(node: str, times: str = "0.01 0.9 1.1 2.2", **fields: Any) -> CallFinished:
    """A finished call; `times` are `opened ready first_token finished`."""
    opened, ready, first, finished = map(float, times.split())
    known: dict[str, Any] = {
        "node": node,
        "agent": node,
        "round": 1,
        "attempt": 1,
        "mode": "kvcomm",
        "gate": "",
        "dense": False,
        "exact": False,
        "prompt_tokens": 50,
        "output_tokens": 24,
        "opened_at": opened,
        "ready_at": ready,
        "first_token_at": first,
        "stop": "length",
        "finished_at": finished,
        "ttft_s": round(first - ready, 6),
        "decode_s": round(finished - first, 6),
    }
    return CallFinished(**known | fields)


def message(node: str, text: str = "t", **fields: Any) -> MessageSent:
    """A message whose KV is behind all tokens but the last."""
    known = {"attempt": 1, "tokens": 24, "handle": "kv-1", "covered": 23, "exact": False}
    return MessageSent(**{"node": node, "text": text, "reason": ""} | known | fields)


def step(node: str, name: str, counts: str, reason: str = "", **fields: Any) -> SegmentStep:
    """One segment; `counts` are `computed prefix realigned ahead`."""
    computed, prefix, realigned, ahead = map(int, counts.split())
    known: dict[str, Any] = {
        "node": node,
        "attempt": 1,
        "index": 0,
        "name": name,
        "reason": reason,
        "computed": computed,
        "prefix": prefix,
        "realigned": realigned,
        "ahead": ahead,
        "segment": "literal" if " " in name else "placeholder",
        "tokens": computed + prefix + realigned,
        "way": "realign" if realigned else "prefix" if prefix else "compute",
    }
    return SegmentStep(**known | fields)


class Written:
    def __init__(self, folder: Path, **started: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "trace.jsonl"
        self.recorder = Recorder(folder)
        self.write = self.recorder.write
        self.write(RunStarted, **STARTED | started)

    def add(self, *events: Any) -> None:
        """Write events as they are, but for the moment."""
        for event in events:
            self.write(type(event), **event.model_dump(exclude={"t", "kind"}))

    def prompt(self, node: str, *segments: tuple[str, str, str]) -> None:
        """The node begins, and reads `name counts reason` with their texts."""
        self.write(NodeStarted, node=node, attempt=1, prompt_capacity=140)
        for index, (name, counts, reason) in enumerate(segments):
            text = TEXTS.get((node, name), f"[{name} of {node}]\n")
            known = self.recorder.text(text, lambda text=text: text)  # type: ignore[misc]
            self.add(step(node, name, counts, reason, index=index, text=known))

    def solver(self) -> None:
        """A first call that is dense, because nothing is known yet."""
        self.write(StateRead, path=None, reason="nothing was learned before")
        self.prompt(
            "solver",
            ("literal 0", "24 0 0 24", "literal before the first placeholder"),
            ("task", "31 0 0 31", "no anchor of this length"),
            ("literal 1", "9 0 0 0", "closing literal, its last token is computed"),
        )
        self.answer("solver", 64, SAID, gate="dense: {task}: no anchors yet, needs 2", dense=True)

    def answer(self, node: str, prompt: int, text: str, **fields: Any) -> None:
        """A message, and the call that made it."""
        exact, attempt = fields.get("dense", False), fields.get("attempt", 1)
        self.add(message(node, text, attempt=attempt, exact=exact, ids=list(text.encode())))
        more = {"base_tokens": 40, "phases": {"fill": 0.01, "forward": 1.2}, "exact": exact}
        self.add(call(node, prompt_tokens=prompt, **more | fields))

    def end(self, status: str = "ok", wall_s: float = 4.25) -> TraceRun:
        """The last line; the trace is read."""
        counted = {"prompt_tokens": 129, "computed_tokens": 66, "reused_tokens": 63}
        totals = Totals(**counted, extra={"base": 40, "pilot": 0}, wall_s=wall_s)
        answer = "25 rolls are left." if status == "ok" else None
        self.write(RunFinished, status=status, answer=answer, totals=totals)
        return self.read()

    def read(self) -> TraceRun:
        """The trace as far as it goes."""
        self.recorder.release()
        return read_trace(self.path)


def whole(folder: Path) -> TraceRun:
    """A run of three calls, one of them on its second attempt."""
    written = Written(folder)
    written.solver()
    written.prompt(
        "critic",
        ("literal 0", "0 26 0 26", "exact prefix"),
        (
            "solver",
            "1 0 23 0",
            "entropy 0.31 of 4 anchors is at most 0.42: offset predicted, last token computed",
        ),
        ("literal 1", "1 0 14 0", "offset of the literal after `solver`"),
    )
    written.answer("critic", 65, "Right.", gate="realigned")
    written.prompt("editor")
    error = "took longer than its timeout of 2 s"
    written.write(Retried, node="editor", attempt=1, error=error, wait_s=0.5)
    written.write(NodeStarted, node="editor", attempt=2, prompt_capacity=140)
    written.answer("editor", 60, "25 rolls are left.", attempt=2)
    return written.end()


def cut_off(folder: Path) -> TraceRun:
    """A run that was killed while its second call was under way, in the middle of a line."""
    written = Written(folder)
    written.solver()
    written.prompt("critic", ("literal 0", "0 26 0 26", "exact prefix"))
    with written.path.open("a") as file:
        file.write('{"kind": "step", "node": "cri')
    return written.read()


def failed(folder: Path) -> TraceRun:
    written = Written(folder)
    written.solver()
    written.prompt("critic")
    written.write(Failed, node="critic", error="the sampler met a NaN")
    return written.end("failed")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for event in events:
        change(event)
    path.write_text("\n".join(map(json.dumps, events)) + "\n", encoding="utf-8")


class Quiet(BaseHTTPRequestHandler):
    """Says nothing of the requests it gets."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(handler: type[Quiet]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
