"""Tokenizers of the kinds that models come with, small enough to build in a test."""

import string
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kvcomm.engine.models import fetch_model
from kvcomm.engine.tokens import CHATML, TokenizerCodec, byte_tokenizer
from kvcomm.prompt import MARK

# As Gemma's: a system turn is an error.
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>model\n' }}"
)
DROPS_SYSTEM = (
    "{% for m in messages if m['role'] == 'user' %}"
    "{{ '<|im_start|>user\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
# As Llama 3.2's, in one turn more words on some days than on others.
DATED = (
    "{{ '<|im_start|>system\n' }}{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '\nToday is ' + strftime_now('%A, %d %B %Y') + '.<|im_end|>\n' }}"
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
TWICE = "{% for m in messages %}{{ m['content'] + ' ' + m['content'] }}{% endfor %}"
LLAMA2 = (
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '[SYS]' + m['content'] + '[/SYS]' }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)


@cache
def byte_codec(template: str | None = CHATML) -> TokenizerCodec:
    """One token a byte; `template` is the chat template, None for a model without one."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return TokenizerCodec(tokenizer)


@cache
def smol_codec() -> TokenizerCodec:
    return TokenizerCodec(AutoTokenizer.from_pretrained(fetch_model("smollm2-135m")))


@cache
def straddling_codec() -> TokenizerCodec:
    """Byte-level BPE whose merges reach over both edges of a hole, and into a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first, _, last = _bytes(MARK)
    space, b, accent = _bytes(" ")[0], "b", _bytes("é")[0]
    merges = [(space, first), (last, b), (last, accent)]
    vocabulary = ["<|im_start|>", "<|im_end|>", *alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _codec(tokenizer, CHATML, additional_special_tokens=["<|im_start|>", "<|im_end|>"])


@cache
def space_codec(
    scheme: str = "first", template: str | None = LLAMA2, *, fallback: bool = True
) -> TokenizerCodec:
    """As SentencePiece: a text gets a leading space.

    Bytes stand for unknown characters; without `fallback` one token stands for a run of them.
    `scheme` "first" adds the space at the start of a prompt, "always" also behind special tokens,
    "prepend" does the latter in the normalizer, as older Llama tokenizers do.
    """
    letters = [c for c in string.printable if c.isprintable() and c != " "]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    vocabulary += letters
    merges = []
    for word in ("▁the", "▁a", "and", "▁Answer", "INST"):
        for end in range(1, len(word)):
            merge = word[:end], word[end]
            if merge not in merges:
                merges.append(merge)
                vocabulary.append("".join(merge))
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(vocabulary)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=fallback,
        )
    )
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return _codec(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _codec(tokenizer: Tokenizer, template: str | None, **special: Any) -> TokenizerCodec:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return TokenizerCodec(fast)


def _bytes(text: str) -> list[str]:
    """A text as the characters that stand for its bytes in a byte-level vocabulary."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return list(level.pre_tokenize_str(text)[0][0])
