"""The self-check at load: is reusing this model's KV right, by name and by measurement?

First the config: what cannot be right is refused with its reason. Then two measurements against
the model's own forward. Keys: the same ids at positions p and p + Δ must have the same
position-free keys in every layer. Composition: a prompt longer than the attention window, put
together from computed chunks and a piece of moved KV, must give the plain logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from operator import itemgetter
from typing import Any

import torch
from transformers import DynamicCache

from kvcomm.engine.local import flash
from kvcomm.engine.local.attention import NAME, Pack, Part, packed_forward
from kvcomm.kv import KVBuffer, Rope
from kvcomm.kv.precision import wide

# Models compute rotary angles in float32 whatever their dtype, so float64 gains nothing here.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
SHIFT = 37
LENGTH = 48


@dataclass(frozen=True)
class SelfCheck:
    """Whether KV may be reused, why not, and the measured relative errors.

    `rope` moves its keys, None where it is refused. `flash`: neighbouring tokens are computed by
    `flash_attention`, and the errors are its.
    """

    reason: str
    key_error: float | None = None
    compose_error: float | None = None
    rope: Rope | None = None
    flash: bool = False

    @property
    def ok(self) -> bool:
        """Whether KV may be reused."""
        return self.rope is not None


def refusal(config: Any, model_class: Any) -> str | None:
    """Why a model of this config cannot reuse KV, or None."""
    text = config.get_text_config()
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {
        value.get("rope_type") for value in rope.values() if isinstance(value, dict)
    }
    layers = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    if getattr(text, "kv_lora_rank", None):
        return "its KV is compressed (multi-head latent attention)"
    if layers or getattr(model_class, "_is_stateful", False):
        kind = ", ".join(sorted(layers)) or "recurrent"
        return f"some of its layers keep a state, or attend in chunks ({kind})"
    if moving := kinds & {"dynamic", "longrope"}:
        return f"its rotary frequencies change with the prompt's length ({moving.pop()})"
    if getattr(text, "num_kv_shared_layers", 0):
        return "some of its layers share KV"
    if getattr(text, "attn_logit_softcapping", None):
        return "its attention caps logits"
    if not getattr(model_class, "_supports_attention_backend", False):
        return "its transformers class takes no attention function"
    return None


@torch.inference_mode()
def self_check(model: Any) -> SelfCheck:
    """Judge a loaded model; on success its attention is set to the packed one.

    A refused model keeps the attention it came with.
    """
    if reason := refusal(model.config, type(model)):
        return SelfCheck(reason)
    plain = model.config._attn_implementation
    try:
        verdict = _measure(model, Rope.from_model(model).to(model.device))
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        verdict = SelfCheck(f"the self-check failed: {error}")
    if not verdict.ok:
        model.set_attn_implementation(plain)
    return verdict


def _measure(model: Any, rope: Rope) -> SelfCheck:
    text = model.config.get_text_config()
    window = _window(text)
    length = LENGTH if window is None else window + LENGTH // 2
    words, generator = text.vocab_size, torch.Generator().manual_seed(0)
    ids = torch.randint(min(10, words // 2), words, (length,), generator=generator)
    tolerance = TOLERANCE[model.dtype]

    head = ids[:LENGTH]
    near, far = _keys(model, head, 0), _keys(model, head, SHIFT)
    at = torch.arange(len(head))
    measured = []
    for interleaved in (False, True):
        found = replace(rope, interleaved=interleaved)
        error = _relative(found.unrotate(far, at + SHIFT), found.unrotate(near, at))
        measured.append((error, found))
    key_error, rope = min(measured, key=itemgetter(0))
    if not key_error <= tolerance:
        reason = f"its keys do not move with their position (relative error {key_error:.1e})"
        return SelfCheck(reason, key_error)

    plain = model(input_ids=ids[None].to(model.device), logits_to_keep=8, use_cache=False).logits[0]
    model.set_attn_implementation(NAME)
    for fast in (True, False) if flash.usable(model.device, model.dtype) else (False,):
        try:
            compose_error = _relative(_compose(model, rope, ids.tolist(), fast), plain)
        except RuntimeError:
            if not fast:
                raise
            continue  # the kernel does not take these heads
        if compose_error <= tolerance:
            reason = "keys move exactly and a composed prompt equals a plain one"
            return SelfCheck(reason, key_error, compose_error, rope, fast)
    reason = f"a composed prompt differs from a plain one (relative error {compose_error:.1e})"
    return SelfCheck(reason, key_error, compose_error)


def _keys(model: Any, ids: torch.Tensor, shift: int) -> torch.Tensor:
    """Rotated keys `[layers, kv_heads, tokens, head_dim]` of `ids` at positions from `shift`."""
    cache = DynamicCache()
    positions = torch.arange(shift, shift + len(ids), device=model.device)[None]
    named = {cache_name(model): cache}
    model(input_ids=ids[None].to(model.device), position_ids=positions, **named)
    return torch.stack([layer.keys[0] for layer in cache.layers])


def cache_name(model: Any) -> str:
    """What the model's forward calls the KV it is given: `cache` since transformers 5.24."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def _compose(model: Any, rope: Rope, ids: list[int], fast: bool) -> torch.Tensor:
    """Logits of the last 8 of `ids`, from chunks and a piece that was moved away and back."""
    buffer = KVBuffer(*kv_shape(model.config, len(ids)), model.dtype, model.device)
    third = len(ids) // 3

    def compute(start: int, stop: int) -> torch.Tensor:
        slots = range(start, stop)
        pack = Pack([Part(buffer, 0, slots)], fast)
        return packed_forward(model, ids[start:stop], slots, range(len(slots)), pack)

    compute(0, third)
    compute(third, 2 * third)
    piece = torch.arange(third, 2 * third, device=model.device)
    keys = rope.unrotate(buffer.keys[:, :, piece], piece)
    buffer.keys[:, :, piece] = rope.rotate(keys, piece)
    compute(2 * third, len(ids) - 8)
    return compute(len(ids) - 8, len(ids))


def kv_shape(config: Any, capacity: int) -> tuple[int, int, int, int]:
    """`(layers, kv_heads, capacity, head_dim)` of a model's KV."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return text.num_hidden_layers, kv_heads, capacity, head_dim


def slot_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's KV. Raises `AttributeError` for a model without attention heads."""
    layers, heads, _, dim = kv_shape(config, 0)
    return int(2 * layers * heads * dim * dtype.itemsize)


def _window(text: Any) -> int | None:
    """The smallest attention window that a layer really uses."""
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return None
    if kinds is None and getattr(text, "use_sliding_window", True) is False:
        return None
    return int(window)


def _relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference over the largest reference value."""
    value, reference = wide(value), wide(reference)
    return float((value - reference).abs().max() / reference.abs().max())
