"""HTTP to an OpenAI-compatible server: what is asked, tried again, and read as it comes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from kvcomm.engine.served.refusal import Busy, refused
from kvcomm.errors import ModelError, ServerError

CONNECT_S = 5.0
# Between two pieces of an answer: a server with a long queue says nothing for a while.
READ_S = 300.0
# Waits before a request is sent again, and the longest one that a server may ask for.
WAITS = (0.25, 0.5, 1.0, 2.0)
LONGEST_S = 30.0

Json = Mapping[str, Any]


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
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def models(self) -> list[Json]:
        """What the server says of its models."""
        found = await self._once("GET", "models", None)
        return [entry for entry in found.get("data") or () if isinstance(entry, dict)]

    async def complete(self, body: Json) -> Json:
        """A completion in one piece, asked for once."""
        return await self._once("POST", "completions", body)

    async def stream(self, body: Json) -> AsyncGenerator[Json, None]:
        """The pieces of a completion as they come.

        Until the first piece, whatever may pass is tried again. Raises `ServerError` for a server
        that fails for good or in the middle, and what `refused` says of other answers.
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

    async def _once(self, method: str, path: str, body: Json | None) -> Json:
        try:
            response = await self._http.request(method, path, json=body)
            await self._check(response)
        except (httpx.TransportError, Busy) as error:
            raise ServerError(self._what(error)) from None
        return self._read(response.text)

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            await response.aread()
            raise refused(response, self.base_url, self._key)

    def _read(self, text: str) -> Json:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServerError(
                f"{self.base_url} does not answer as an OpenAI-compatible server: {text[:80]!r}"
            )
        if error := found.get("error"):
            told = str(error.get("message", error) if isinstance(error, dict) else error)
            if self._key:
                told = told.replace(self._key, "***")
            raise ServerError(f"the server at {self.base_url} failed: {told[:300]}")
        return found

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
