"""The tokenizer as prompts need it: plain text, structured text, and the chat template."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from itertools import cycle, pairwise
from typing import Any, Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from kvcomm.errors import TemplateError
from kvcomm.message import well_formed
from kvcomm.prompt import Turns

Turn = dict[str, str]
# The function that chat templates ask for the day.
CLOCK = "strftime_now"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Texts that tokens of a text behind them do not reach into, tried in this order.
LEADS = ("\ue000", "\n", "a")
# Texts that stand for those of the turns, to see what becomes of them.
SYSTEM, USER, ASKED, ANSWERED = "\ue001", "\ue002", "\ue003", "\ue004"
# What templates are named by does not change from day to day.
ANY_DAY = datetime(2000, 1, 1)
# No model's context is longer, unless its engine says so.
MOST = 1 << 20


class TokenizerCodec:
    """A `kvcomm.prompt.Codec` over a fast transformers tokenizer. Thread-safe.

    `now` is what its chat template takes for the present, by default when the codec was made.
    """

    def __init__(self, tokenizer: Any, now: datetime | None = None) -> None:
        self.tokenizer = tokenizer
        self.now = now or datetime.now()
        self.most = MOST
        # Whether special tokens are split is a switch on the tokenizer, not on a call.
        self._lock = threading.Lock()
        self.special_ids = frozenset(tokenizer.all_special_ids) | frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        spelled = sorted(
            map(str, tokenizer.convert_ids_to_tokens(sorted(self.special_ids))), key=len
        )
        # Of two tokens that begin alike the longer one is meant.
        self.control = re.compile("|".join(map(re.escape, reversed(spelled))) or "(?!)")
        # SentencePiece tokenizers put a space before a text: right at the start of a prompt only.
        self._adds_space = self._encode("a", plain=True)[0] != self._behind(LEADS[0], "a")
        start = tokenizer("a")["input_ids"][:1]
        self._begin = tokenizer.bos_token if start == [tokenizer.bos_token_id] else ""

    def at(self, now: datetime) -> Self:
        """The same codec with another present."""
        other = copy.copy(self)
        other.now = now
        return other

    @property
    def undated(self) -> Self:
        """The codec as of a day that is always the same; itself if no prompt depends on the day."""
        if self.now == ANY_DAY or not self.tells_time:
            return self
        return self.at(ANY_DAY)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: special tokens spelled in it stay text, nothing is added.

        Of a text that fits no context its beginning is enough to say so: what is longer than
        `most` tokens is encoded up to somewhere behind that many.
        """
        text, size = well_formed(text), 4 * self.most
        while size < len(text):
            ids = self._unbounded(text[:size])
            if len(ids) > self.most:
                return ids
            size *= 4
        return self._unbounded(text)

    def _unbounded(self, text: str) -> list[int]:
        if self._adds_space and text:
            for lead in LEADS:
                ids = self._behind(lead, text)
                if ids is not None:
                    return ids
        return self._encode(text, plain=True)[0]

    def _behind(self, lead: str, text: str) -> list[int] | None:
        """Ids of `text` where it follows `lead`; None when a token covers both."""
        ids, offsets = self._encode(lead + text, plain=True)
        if any(start < len(lead) < end for start, end in offsets):
            return None
        return [i for i, (start, _) in zip(ids, offsets, strict=True) if start >= len(lead)]

    def encode_structured(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of text whose special tokens are structure."""
        return self._encode(text, plain=False)

    def _encode(self, text: str, *, plain: bool) -> tuple[list[int], list[tuple[int, int]]]:
        with self._lock:
            encoded = self.tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=plain,
                return_offsets_mapping=True,
                verbose=False,
            )
        return encoded["input_ids"], encoded["offset_mapping"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens spelled out."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def chat(self, system: str, user: str, earlier: Sequence[Turns] = ()) -> str:
        """The chat template around a system turn, `earlier` turns, and the user's.

        Templates that know no system turn, or put its text behind earlier ones, get it at the head
        of the first user turn; a model without a chat template gets the texts and lines to answer
        on. Raises `TemplateError` for a template that cannot be rendered.
        """
        if not self.tokenizer.chat_template:
            return self._begin + _written(system, user, earlier, "\n\nAnswer:")
        if system and self._keeps_system[bool(earlier)]:
            with suppress(TemplateError):
                text = self._apply([_turn("system", system), *_turns(user, earlier)])
                if system.strip() in text:
                    return text
        return self._no_system(_turns(*_headed(system, user, earlier)))

    def completion(self, system: str, user: str, earlier: Sequence[Turns] = ()) -> str:
        """The texts as they are, behind the token with which the model's texts begin."""
        return self._begin + _written(system, user, earlier, "")

    @cached_property
    def _keeps_system(self) -> tuple[bool, bool]:
        """Whether a system turn has its text before the user's, also where there are earlier turns.

        Others raise on it, drop it, or keep it for the last turn. Not asked of the texts
        themselves: the user's may hold the system's.
        """
        chats = (_turns(USER, []), _turns(USER, [(ASKED, ANSWERED)]))
        return tuple(map(self._in_order, chats))  # type: ignore[return-value]

    def _in_order(self, turns: Sequence[Turn]) -> bool:
        signs = [SYSTEM, *(turn["content"] for turn in turns)]
        try:
            text = self._apply([_turn("system", SYSTEM), *turns])
        except TemplateError:
            return False
        return [sign for sign in text if sign in signs] == signs

    def _no_system(self, turns: Sequence[Turn]) -> str:
        """The turns alone; behind an empty system turn where a template insists on one."""
        try:
            return self._apply(turns)
        except TemplateError:
            with suppress(TemplateError):
                return self._apply([_turn("system", ""), *turns])
            raise

    @property
    def tells_time(self) -> bool:
        """Whether the chat template may write the day or the time."""
        return CLOCK in str(self.tokenizer.chat_template)

    def _apply(self, turns: Sequence[Turn]) -> str:
        """The text of a chat that ends with the header of the assistant's turn.

        Templates that write the day ask a function for it that transformers gives them and no
        option replaces: these are rendered here, with a clock that stands still. Raises
        `TemplateError` for one that cannot be rendered, whatever it raises.
        """
        options = {"add_generation_prompt": True, "tools": None, "documents": None}
        try:
            if not self.tells_time:
                return str(
                    self.tokenizer.apply_chat_template(list(turns), tokenize=False, **options)
                )
            template = _compile_jinja_template(self.tokenizer.get_chat_template())
            names = {**self.tokenizer.special_tokens_map, CLOCK: self.now.strftime}
            return str(template.render(messages=list(turns), **options, **names))
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise TemplateError(
                f"the model's chat template cannot be rendered ({what:.300}): use another "
                "--model, or correct the chat_template in the folder of this one"
            ) from None


def _headed(system: str, user: str, earlier: Sequence[Turns]) -> tuple[str, list[Turns]]:
    """The user's text and the earlier ones, with the system's at the head of the first."""
    texts = [text for turns in earlier for text in turns] + [user]
    texts[0] = "\n\n".join(filter(None, (system, texts[0])))
    return texts[-1], list(pairwise(texts))[::2]


def _written(system: str, user: str, earlier: Sequence[Turns], answer: str) -> str:
    """A conversation without a chat template; `answer` is the line that asks for one."""
    user, earlier = _headed(system, user, earlier)
    return "\n\n".join([*(f"{asked}{answer}{said}" for asked, said in earlier), f"{user}{answer}"])


def _turns(user: str, earlier: Sequence[Turns]) -> list[Turn]:
    """The turns of a chat, the user's last."""
    texts = [text for turns in earlier for text in turns] + [user]
    return [_turn(role, text) for role, text in zip(cycle(("user", "assistant")), texts)]


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def byte_tokenizer() -> Any:
    """A tokenizer of single bytes with ChatML turns, for models with random weights."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    fast.chat_template = CHATML
    return fast
