"""A small OpenAI-compatible server on loopback, over a local engine, that misbehaves on demand."""

import asyncio
import json
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from kvcomm.background import Background
from kvcomm.engine.base import Answer, Token
from kvcomm.engine.local import LocalEngine
from kvcomm.prompt import common_prefix
from kvcomm.sampling import Sampling
from tests.conformance.fake_connector import FakeConnector, answered, logprobs
from tests.engine.support import extend, open_seq

BLOCK = 16


@dataclass
class Manners:
    """What the server does, and what it does to the next completions: one of `faults` each.

    A fault is a status (429, 500), "drop" (the connection ends in the middle of an answer),
    "drop-first" (before its first token), "early" (the answer just ends), "error" (an error in the
    stream).
    """

    token_ids: bool = True
    refuses_ids: bool = False
    salts: bool = True
    counts: bool = True
    max_model_len: int | None = 8192
    key: str = ""
    models: tuple[str, ...] = ("tiny",)
    retry_after: str = ""
    repeats_key: bool = False
    root: str = "random:llama-tiny"
    pause_s: float = 0.0
    fails_ahead: bool = False
    faults: deque[int | str] = field(default_factory=deque)


class FakeServer:
    """Serves `engine`; `requests` are the bodies it got, `busiest` the most at once."""

    def __init__(
        self, engine: LocalEngine, connector: FakeConnector | None = None, **manners: Any
    ) -> None:
        self.engine = engine
        self.connector = connector
        self.manners = Manners(**manners)
        self.requests: list[dict[str, Any]] = []
        self.now = self.busiest = 0
        self._known: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        self._lock = threading.Lock()
        self._background = Background("fake-server")
        handler = type("Bound", (Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    def shut(self) -> None:
        """End the server. Safe to call twice."""
        if not self._background.closed:
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
            self._background.close()

    def real(self) -> list[dict[str, Any]]:
        """The requests for answers, without those that only work ahead or find out."""
        return [body for body in self.requests if body.get("stream")]

    def ahead(self) -> list[dict[str, Any]]:
        """The requests that work ahead, and those that find out what the server can do."""
        return [body for body in self.requests if not body.get("stream")]

    @contextmanager
    def busy(self, body: dict[str, Any]) -> Iterator[None]:
        """Counts a request while it is under way."""
        with self._lock:
            self.requests.append(body)
            self.now += 1
            self.busiest = max(self.busiest, self.now)
        yield
        with self._lock:
            self.now -= 1

    def held(self, ids: tuple[int, ...], salt: str) -> int:
        """Tokens of whole blocks that the prefix cache held; from now on it holds `ids`."""
        with self._lock:
            known = self._known[salt]
            longest = max((common_prefix(ids, other) for other in known), default=0)
            known.append(ids)
        return min(longest, len(ids) - 1) // BLOCK * BLOCK

    def tokens(
        self, ids: tuple[int, ...], body: dict[str, Any], extra: dict[str, Any]
    ) -> Iterator[Token]:
        """The tokens of an answer; `extra` gets what the connector did."""
        sampling = Sampling(
            temperature=body.get("temperature", 1.0),
            top_p=body.get("top_p", 1.0),
            max_tokens=body.get("max_tokens", 16),
            stop_token_ids=tuple(body.get("stop_token_ids", ())),
        )
        found: queue.Queue[Token | BaseException | None] = queue.Queue()

        async def filled() -> None:
            assert self.connector is not None
            asked = Answer(sampling, body.get("seed", 0), record="logprobs" in body)
            try:
                done = await answered(
                    self.connector, ids, body, asked, found.put, self.manners.pause_s
                )
                extra["supplied"], extra["reply"], extra["record"] = done
                found.put(None)
            except BaseException as error:
                found.put(error)
                raise

        async def answer() -> None:
            seq = open_seq(self.engine, len(ids) + sampling.max_tokens)
            try:
                asked = Answer(sampling, body.get("seed", 0))
                await extend(seq, ids, asked)
                async for token in seq.answer():
                    found.put(token)
                    if self.manners.pause_s:
                        await asyncio.sleep(self.manners.pause_s)
                found.put(None)
            except BaseException as error:
                found.put(error)
                raise
            finally:
                await asyncio.shield(seq.close())

        future = self._background.start(filled() if self.connector else answer())
        try:
            while (item := found.get(timeout=200)) is not None:
                if isinstance(item, BaseException):
                    raise RuntimeError("the answer was cut off")
                yield item
        finally:
            future.cancel()


class Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        if self._refuses_key():
            return
        manners = self.fake.manners
        known: dict[str, Any] = {"object": "model", "root": manners.root}
        if manners.max_model_len:
            known["max_model_len"] = manners.max_model_len
        entries = [{"id": name, **known} for name in manners.models]
        self._json(200, {"object": "list", "data": entries})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._refuses_key():
            return
        with self.fake.busy(body):
            try:
                self._complete(body)
            except (BrokenPipeError, ConnectionResetError, RuntimeError):
                self.close_connection = True

    def _refuses_key(self) -> bool:
        wanted = self.fake.manners.key
        sent = self.headers.get("authorization", "")
        if wanted and sent != f"Bearer {wanted}":
            self._error(400 if self.fake.manners.repeats_key else 401, f"bad key {sent}")
            return True
        return False

    def _complete(self, body: dict[str, Any]) -> None:
        fake, manners = self.fake, self.fake.manners
        fault = manners.faults.popleft() if manners.faults and body.get("stream") else None
        if isinstance(fault, int):
            headers = {"retry-after": manners.retry_after} if manners.retry_after else {}
            self._error(fault, "not now", headers)
            return
        prompt, limit = body["prompt"], manners.max_model_len or 8192
        ids = tuple(fake.engine.codec.encode(prompt) if isinstance(prompt, str) else prompt)
        unknown = "Unrecognized request argument supplied: "
        for refused, status, message in (
            (manners.fails_ahead and not body.get("stream"), 500, "not ahead"),
            (body["model"] not in manners.models, 404, "This model does not exist."),
            ("cache_salt" in body and not manners.salts, 400, f"{unknown}cache_salt"),
            ("return_token_ids" in body and manners.refuses_ids, 400, f"{unknown}return_token_ids"),
            (max(ids) >= fake.engine.config.vocab_size, 400, "A token id is out of vocabulary"),
            (
                len(ids) + body.get("max_tokens", 16) > limit,
                400,
                f"This model's maximum context length is {limit} tokens.",
            ),
        ):
            if refused:
                self._error(status, message)
                return
        held = fake.held(ids, body.get("cache_salt", ""))
        usage: dict[str, Any] = {"prompt_tokens": len(ids)}
        if manners.counts:
            usage["prompt_tokens_details"] = {"cached_tokens": held}
        extra: dict[str, Any] = {}
        if body.get("stream"):
            self._stream(fake.tokens(ids, body, extra), body, usage, fault, extra)
        else:
            tokens = list(fake.tokens(ids, body, extra))
            choice = self._choice(tokens, body)
            if body.get("return_token_ids"):
                choice["prompt_token_ids"] = list(ids)
            if extra.get("record"):
                choice["logprobs"] = logprobs(body, extra["record"], tokens)
            self._count(usage, extra)
            params = {"kv_transfer_params": extra["reply"]} if extra.get("reply") else {}
            self._json(200, {"choices": [choice], "usage": usage, **params})

    @staticmethod
    def _count(usage: dict[str, Any], extra: dict[str, Any]) -> None:
        """What was supplied counts as cached, as vLLM has it."""
        details = usage.get("prompt_tokens_details")
        if details is not None and extra.get("supplied"):
            details["cached_tokens"] = max(details["cached_tokens"], extra["supplied"])

    def _choice(self, tokens: list[Token], body: dict[str, Any]) -> dict[str, Any]:
        ids = [token.id for token in tokens]
        shown = [token.id for token in tokens if token.last != "stop"]
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.fake.engine.codec.decode(shown),
            "finish_reason": tokens[-1].last,
        }
        if body.get("return_token_ids") and self.fake.manners.token_ids:
            choice["token_ids"] = ids
        return choice

    def _stream(
        self,
        tokens: Iterator[Token],
        body: dict[str, Any],
        usage: dict[str, Any],
        fault: str | None,
        extra: dict[str, Any],
    ) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, token in enumerate(tokens):
            if (number, fault) in ((0, "drop-first"), (3, "drop")):
                self.close_connection = True
                self.connection.close()
                return
            if number == 3 and fault in ("error", "early"):
                if fault == "error":
                    self._event(json.dumps({"error": {"message": "the GPU is on fire"}}))
                self.wfile.write(b"0\r\n\r\n")
                return
            self._event(json.dumps({"choices": [self._choice([token], body)]}))
        self._count(usage, extra)
        self._event(json.dumps({"choices": [], "usage": usage}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._json(status, {"error": {"message": message, "code": status}}, headers)

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)
