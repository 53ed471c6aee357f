"""What a stream yields while a run goes on: texts as they are written, and what happens beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvcomm.message import TextCodec
from kvcomm.runtime.message_stream import Detokenizer
from kvcomm.trace.events import Event


@dataclass(frozen=True)
class RunStart:
    """The run has begun. `run` names it in logs; `folder` holds its trace, None for no trace."""

    run: str
    folder: Path | None


@dataclass(frozen=True)
class NodeStart:
    """An agent's prompt begins to be filled, or it begins again: what it wrote before is void."""

    node: str
    attempt: int


@dataclass(frozen=True)
class Delta:
    """A piece of text that a node has just written."""

    node: str
    text: str


@dataclass(frozen=True)
class NodeEnd:
    """An agent has answered: `text` is its message, as its readers get it."""

    node: str
    text: str


@dataclass(frozen=True)
class ToolCall:
    """A tool is called."""

    node: str
    attempt: int


@dataclass(frozen=True)
class ToolResult:
    """A tool has returned: its texts by name."""

    node: str
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Retry:
    """An attempt failed, and is made again `wait_s` later. What the node wrote is void."""

    node: str
    attempt: int
    error: str
    wait_s: float


@dataclass(frozen=True)
class NodeError:
    """A node failed for good. Its readers get the text `instead`; None: the run fails."""

    node: str
    error: str
    instead: str | None


StreamEvent = RunStart | NodeStart | Delta | NodeEnd | ToolCall | ToolResult | Retry | NodeError


class Streamer:
    """Listens to one run, token by token and event by event, and hands `put` what a stream yields.

    `tools` are the names of the nodes that are tools.
    """

    def __init__(
        self, codec: TextCodec, tools: Iterable[str], put: Callable[[StreamEvent], None]
    ) -> None:
        self._codec = codec
        self._tools = frozenset(tools)
        self._put = put
        self._texts: dict[str, Detokenizer] = {}

    def token(self, node: str, token: int) -> None:
        """A node has written a token."""
        if node not in self._texts:
            self._texts[node] = Detokenizer(self._codec)
        if text := self._texts[node].feed(token):
            self._put(Delta(node, text))

    def __call__(self, event: Event) -> None:
        """Something was written to the trace."""
        if event.kind == "node":
            self._texts.pop(event.node, None)
            start = ToolCall if event.node in self._tools else NodeStart
            self._put(start(event.node, event.attempt))
        elif event.kind == "message":
            self._put(NodeEnd(event.node, event.text))
        elif event.kind == "tool":
            self._put(ToolResult(event.node, event.texts))
        elif event.kind == "retry":
            self._put(Retry(event.node, event.attempt, event.error, event.wait_s))
        elif event.kind == "error" and event.node is not None:
            self._put(NodeError(event.node, event.error, event.instead))
