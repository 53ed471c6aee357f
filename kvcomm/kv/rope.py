"""The rotary embedding of a model, as something that can be put on and taken off.

`K_rot(p) = s · R(p) · K` with s the attention scaling (1 except for YaRN). Angles are those of the
model, in float32; the products are float32 (float64 for float64 keys), then rounded to the dtype of
the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Rope:
    """Rotates and unrotates keys `[layers, kv_heads, tokens, head_dim]` of a whole model at once.

    `inv_freq` is `[layers or 1, rotary_dim / 2]`; a layer without rotary embedding has zeros, and
    dimensions beyond `rotary_dim` pass through. `scaling` is `[layers or 1]`. `interleaved` pairs
    dimensions (2i, 2i+1) instead of (i, i + rotary_dim/2).
    """

    inv_freq: torch.Tensor
    scaling: torch.Tensor
    interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        """How many leading dimensions of a head are rotated."""
        return 2 * self.inv_freq.shape[-1]

    def rotate(self, keys: torch.Tensor, positions: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Position-free keys put at `positions` (one a token)."""
        return self._turn(keys, positions, forward=True)

    def unrotate(self, keys: torch.Tensor, positions: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Keys at `positions` made position-free: the inverse of `rotate`."""
        return self._turn(keys, positions, forward=False)

    def _turn(
        self, keys: torch.Tensor, positions: Sequence[int] | torch.Tensor, *, forward: bool
    ) -> torch.Tensor:
        work = torch.promote_types(keys.dtype, torch.float32)
        at = torch.as_tensor(positions, device=keys.device, dtype=torch.float32)
        # [layers or 1, 1, tokens, rotary_dim / 2]
        angle = at[None, None, :, None] * self.inv_freq[:, None, None, :]
        scaling = self.scaling[:, None, None, None].to(work)
        cos, sin = angle.cos().to(work), angle.sin().to(work)
        if forward:
            cos, sin = cos * scaling, sin * scaling
        else:
            cos, sin = cos / scaling, -sin / scaling
        rotary = self.rotary_dim
        out = torch.empty_like(keys)
        if rotary < keys.shape[-1]:
            out[..., rotary:] = keys[..., rotary:]
        if self.interleaved:
            first, second = slice(0, rotary, 2), slice(1, rotary, 2)
        else:
            first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
        left, right = keys[..., first].to(work), keys[..., second].to(work)
        out[..., first] = (left * cos - right * sin).to(keys.dtype)
        out[..., second] = (right * cos + left * sin).to(keys.dtype)
        return out

    @classmethod
    def from_model(cls, model: Any) -> Rope:
        """Read frequencies and scaling off a transformers model.

        Layers may have rotary types of their own (Gemma 3) or none (SmolLM3). Which dimensions
        pair up is not in the config: the self-check at load measures it. Raises `ValueError` for
        a model without rotary embedding.
        """
        config = model.config.get_text_config()
        module = getattr(model.get_decoder(), "rotary_emb", None)
        layers = config.num_hidden_layers
        if module is None:
            raise ValueError("it has no rotary embedding, so its keys cannot be moved")
        if hasattr(module, "inv_freq"):
            freqs = [module.inv_freq] * layers
            scales = [float(module.attention_scaling)] * layers
        else:
            types = config.layer_types
            freqs = [getattr(module, f"{kind}_inv_freq") for kind in types]
            scales = [float(getattr(module, f"{kind}_attention_scaling")) for kind in types]
        rotary = getattr(config, "no_rope_layers", None)
        for layer in range(layers):
            if rotary and not rotary[layer]:
                freqs[layer], scales[layer] = torch.zeros_like(freqs[layer]), 1.0
        inv_freq, scaling = torch.stack(freqs).float(), torch.tensor(scales)
        if (inv_freq == inv_freq[:1]).all() and (scaling == scaling[:1]).all():
            inv_freq, scaling = inv_freq[:1], scaling[:1]  # all layers share them
        return cls(inv_freq, scaling)

    def to(self, device: torch.device) -> Rope:
        """The same on another device."""
        return Rope(self.inv_freq.to(device), self.scaling.to(device), self.interleaved)
