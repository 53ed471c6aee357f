"""What a server's refusal means, in words that say what to do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from kvcomm.errors import ContextOverflow, KvcommError, ModelError, ServerError

if TYPE_CHECKING:
    import httpx

# How servers say that a prompt is too long.
TOO_LONG = re.compile(r"context length|max_model_len|maximum context|longer than|too long", re.I)
AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Busy(ServerError):
    """The server may answer later: `after` seconds from now, if it says so."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after


class Unwanted(ModelError):
    """The server does not take a request as it is; without some of its fields it might."""


def refused(response: httpx.Response, where: str, key: str) -> KvcommError:
    """The error for a response that is no success and has been read."""
    status, told = response.status_code, _message(response.text)
    if key:
        told = told.replace(key, "***")
    if status in AGAIN:
        busy = f"the server at {where} answered {status}: {told}"
        return Busy(busy, _seconds(response.headers.get("retry-after", "")))
    if status in (401, 403):  # some servers repeat the key
        what = "refuses the key in OPENAI_API_KEY" if key else "wants a key: set OPENAI_API_KEY"
        return ModelError(f"the server at {where} {what}")
    if status == 404:
        return ModelError(
            f"the server at {where} answered 404: {told}; is the address right (it mostly ends in "
            "/v1), and the name of the model (--served-model)?"
        )
    if status in (400, 413, 422) and TOO_LONG.search(told):
        return ContextOverflow(
            f"the server at {where} says that the prompt and its answer are too long: {told}; "
            "shorten the inputs or lower max_tokens"
        )
    return Unwanted(f"the server at {where} refused a request ({status}): {told}")


def _message(text: str) -> str:
    """The words in an error's body, cut to a line."""
    try:
        found = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        text = found if isinstance(found, str) else json.dumps(found)
    except ValueError:
        pass
    return " ".join(text.split())[:300] or "no reason given"


def _seconds(header: str) -> float:
    try:
        return max(float(header), 0.0)
    except ValueError:  # a date, or nothing
        return 0.0
