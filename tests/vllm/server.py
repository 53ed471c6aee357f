"""A vLLM server with kvcomm's connector on loopback, and what is asked of it."""

from __future__ import annotations

import http.client
import json
import secrets
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vllm_server import CONNECTOR, vllm
from kvcomm.vllm.protocol import Reply, Request

# The variable that says where `tests.vllm.failing` looks.
FAILS = "KVCOMM_TEST_FAILS"


def name() -> str:
    """A name, a row or a salt."""
    return secrets.token_hex(16)


@contextmanager
def serve(
    python: Path,
    model: Path,
    log: Path,
    *more: str,
    connector: tuple[str, str] = CONNECTOR,
    extra: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Server]:
    """A server, once it is healthy; it is ended whatever happens."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **(environment or {})}
    named = ("--max-logprobs", "-1", *more)
    options = {"connector": connector, "extra": extra, "environment": environment}
    with vllm(python, model, "m", log, *named, **options) as port:  # type: ignore[arg-type]
        yield Server(port)


class Failed(RuntimeError):
    """The server answered with an error."""


class Server:
    """Asks a server on a port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def post(self, body: dict[str, Any], path: str = "/v1/completions") -> Any:
        """The answer to a request. Raises `Failed`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        if response.status != 200:
            raise Failed(f"{response.status} {data[:500].decode()}")
        return json.loads(data) if data else None

    @staticmethod
    def body(
        ids: Sequence[int], salt: str | None, ask: Request | None, tokens: int, **more: Any
    ) -> dict[str, Any]:
        """The body of a completion."""
        body: dict[str, Any] = {"model": "m", "prompt": list(ids), "max_tokens": tokens}
        body |= {"temperature": 0, "ignore_eos": True, **more}
        body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
        if salt is not None:
            body["cache_salt"] = salt
        if ask is not None:
            body["kv_transfer_params"] = ask.to_json()
        return body

    def ask(
        self,
        ids: Sequence[int],
        salt: str | None = None,
        ask: Request | None = None,
        tokens: int = 1,
        **more: Any,
    ) -> Answer:
        """A completion that is not streamed."""
        return Answer(self.post(self.body(ids, salt, ask, tokens, **more)))

    def about(self, ids: Sequence[int] = (1, 2, 3)) -> dict[str, Any]:
        """What the connector says that it is, with its models under `models`."""
        reply = self.ask(ids, name(), Request(query=True)).reply
        assert reply is not None
        return {**(reply.about or {}), "told": dict(reply.models or {}), "refused": reply.refused}

    def metric(self, name: str) -> float:
        """The sum of what the server counts under a name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def leave(self, ids: Sequence[int], salt: str, ask: Request, tokens: int) -> None:
        """Begin a streamed completion and go away after its first words."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = json.dumps({**self.body(ids, salt, ask, tokens), "stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        for line in response:
            if line.startswith(b"data: "):
                break
        if connection.sock is not None:
            connection.sock.close()
        response.close()
        connection.close()


class Answer:
    """What a completion says."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.reply = Reply.from_json(value.get("kv_transfer_params"))
        self.ids = value["choices"][0]["token_ids"]
        details = value["usage"].get("prompt_tokens_details") or {}
        self.cached = details.get("cached_tokens", 0)

    def logprobs(self, at: int = 0, vocabulary: int = 49152) -> np.ndarray[Any, Any]:
        """Those of the token `at`, `[vocabulary]`; nan where nothing was said."""
        found = np.full(vocabulary, np.nan)
        for token, value in self.value["choices"][0]["logprobs"]["top_logprobs"][at].items():
            found[int(token.split(":")[1])] = value
        return found


def off(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The largest difference."""
    return float(np.nanmax(np.abs(one - other)))


def divergence(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """KL(one || other) of logprobs, over what both say."""
    said = ~np.isnan(one) & ~np.isnan(other)
    return float((np.exp(one[said]) * (one[said] - other[said])).sum())
