"""HTTP to an OpenAI-compatible server: what is asked, tried again, and read as it comes."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from kvcomm.errors import ContextOverflow, ModelError, ServerError

CONNECT_S = 5.0
# Between two pieces of an answer: a server with a long queue says nothing for a while.
READ_S = 300.0
# An idle connection is used again for so long: servers close theirs after five seconds.
IDLE_S = 2.0
# Waits before a request is sent again, and the longest one that a server may ask for.
WAITS = (0.25, 0.5, 1.0, 2.0)
LONGEST_S = 30.0
AGAIN = (408, 425, 429, 500, 502, 503, 504)
# How servers say that a prompt is too long.
TOO_LONG = re.compile(r"context length|max_model_len|maximum context|longer than|too long", re.I)

Json = Mapping[str, Any]


class Busy(ServerError):
    """The server may answer later: `after` seconds from now, if it says so."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after


class Unwanted(ModelError):
    """The server does not take a request as it is; without some of its fields it might."""


def address(base_url: str) -> str:
    """The address that paths are appended to. Raises `ModelError` for what is none."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelError(
            f"--base-url {base_url!r} is no address: write http://HOST:PORT/v1, "
            "such as http://localhost:8000/v1"
        )
    if parts.username or parts.password:
        raise ModelError("--base-url holds a user or a password: put the key in OPENAI_API_KEY")
    return base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


class Client:
    """Talks to one server. `key` is sent with every request, and never told to anybody else.

    All methods belong to one event loop.
    """

    def __init__(self, base_url: str, key: str = "") -> None:
        self.base_url = address(base_url)
        self._key = key
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=64, keepalive_expiry=IDLE_S
            ),
        )

    async def stream(self, body: Json) -> AsyncGenerator[Json, None]:
        """The pieces of a completion as they come.

        Until the first piece, whatever may pass is tried again. Raises `ServerError` for a server
        that fails for good or in the middle, and what `_check` says of other answers.
        """
        for wait in (*WAITS, None):
            begun = False
            try:
                async with self._http.stream("POST", "completions", json=body) as response:
                    await self._check(response)
                    async for line in response.aiter_lines():
                        text = line.removeprefix("data:").strip()
                        if line.startswith("data:") and text != "[DONE]":
                            piece = self._read(text)
                            begun = True
                            yield piece
                return
            except (httpx.TransportError, Busy) as error:
                if begun:
                    raise ServerError(f"{self._what(error)} in the middle of an answer") from None
                if wait is None:
                    tries = f"{len(WAITS) + 1} attempts"
                    raise ServerError(f"{self._what(error)}, after {tries}") from None
                asked = error.after if isinstance(error, Busy) else 0.0
                await asyncio.sleep(min(max(wait * random.uniform(1, 1.5), asked), LONGEST_S))

    async def ask(self, path: str, body: Json | None = None) -> Json:
        """What the server answers in one piece, asked once: GET, or POST of a body."""
        try:
            response = await self._http.request("POST" if body else "GET", path, json=body)
            await self._check(response)
        except (httpx.TransportError, Busy) as error:
            raise ServerError(self._what(error)) from None
        return self._read(response.text)

    async def _check(self, response: httpx.Response) -> None:
        """Raise what a refusal means, in words that say what to do."""
        status = response.status_code
        if status == 200:
            return
        await response.aread()
        told, server = self._told(response.text), f"the server at {self.base_url}"
        if status in AGAIN:
            after = response.headers.get("retry-after", "")
            seconds = float(after) if after.isdecimal() else 0.0  # else a date, or nothing
            raise Busy(f"{server} answered {status}: {told}", seconds)
        if status in (401, 403):  # some servers repeat the key
            refuses = "refuses the key in OPENAI_API_KEY"
            raise ModelError(
                f"{server} {refuses if self._key else 'wants a key: set OPENAI_API_KEY'}"
            )
        if status == 404:
            raise ModelError(
                f"{server} answered 404: {told}; is the address right (it mostly ends in /v1), and "
                "the name of the model (--served-model)?"
            )
        if status in (400, 413, 422) and TOO_LONG.search(told):
            raise ContextOverflow(
                f"{server} says that the prompt and its answer are too long: {told}; "
                "shorten the inputs or lower max_tokens"
            )
        raise Unwanted(f"{server} refused a request ({status}): {told}")

    def _read(self, text: str) -> Json:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServerError(
                f"{self.base_url} does not answer as an OpenAI-compatible server: {text[:80]!r}"
            )
        if found.get("error"):
            raise ServerError(f"the server at {self.base_url} failed: {self._told(text)}")
        return found

    def _told(self, text: str) -> str:
        """The words in an error's body, cut to a line, without the key."""
        try:
            found = json.loads(text)
            for name in ("error", "message", "detail"):
                if isinstance(found, dict) and name in found:
                    found = found[name]
            text = found if isinstance(found, str) else json.dumps(found)
        except ValueError:
            pass
        said = " ".join(text.split())[:300] or "no reason given"
        return said.replace(self._key, "***") if self._key else said

    def _what(self, error: Exception) -> str:
        if isinstance(error, Busy):
            return str(error)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return f"the server at {self.base_url} cannot be reached"
        if isinstance(error, httpx.TimeoutException):
            return f"the server at {self.base_url} said nothing for {READ_S:g} s"
        return f"the connection to {self.base_url} broke ({type(error).__name__})"

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()
