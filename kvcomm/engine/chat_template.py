"""The model's own chat template, rendered as of one moment.

Many templates write the day into the prompt. They ask a function for it that transformers gives
them and that no option replaces, so these are rendered here, with a clock that stands still.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

from kvcomm.errors import TemplateError

CLOCK = "strftime_now"
Turn = dict[str, str]


def tells_time(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template may write the day or the time."""
    return CLOCK in str(tokenizer.chat_template)


def rendered(tokenizer: Any, turns: Sequence[Turn], now: datetime) -> str:
    """The text of a chat that ends with the header of the assistant's turn, written at `now`.

    Raises `TemplateError` for a template that cannot be rendered, whatever it raises.
    """
    try:
        if not tells_time(tokenizer):
            text: str = tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=True
            )
            return text
        template = _compile_jinja_template(tokenizer.get_chat_template())
        clock = {CLOCK: lambda format: now.strftime(format)}
        return str(
            template.render(
                messages=list(turns),
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **{**tokenizer.special_tokens_map, **clock},
            )
        )
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise TemplateError(
            f"the model's chat template cannot be rendered ({what:.300}): use another --model, or "
            "correct the chat_template in the folder of this one"
        ) from None
