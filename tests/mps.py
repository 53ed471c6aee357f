"""A stand-in for the device of a Mac: it computes on the CPU, and refuses what MPS refuses."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

MPS = torch.device("mps", 0)
MIXING = {torch.Tensor.copy_, torch.Tensor.__setitem__, torch.Tensor.__getitem__}


class OnMps(torch.Tensor):
    """A tensor that says it is on `mps`."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class Mps(TorchFunctionMode):
    """Has factories know the device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """`func` on the CPU; results are on `mps` if an argument is, unless they were to move."""
    with torch._C.DisableTorchFunctionSubclass():
        given = list(tree_iter((args, kwargs)))
        ours = [leaf for leaf in given if isinstance(leaf, OnMps)]
        if ours and func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return MPS
        if func is torch.device:
            return func(*args, **kwargs)
        if ours and func is torch.hash_tensor:
            raise NotImplementedError("The operator 'aten::hash_tensor' is not implemented for MPS")
        others = [t for t in given if isinstance(t, torch.Tensor) and not isinstance(t, OnMps)]
        if ours and func not in MIXING and any(t.dim() for t in others):
            raise RuntimeError("Expected all tensors to be on the same device")
        asked = [leaf for leaf in given if isinstance(leaf, torch.device) or _names(leaf)]
        there = torch.device(asked[-1]).type == "mps" if asked else bool(ours)
        args, kwargs = tree_map(_here, (args, kwargs))
        out = func(*args, **kwargs)
        return out if func is torch.Tensor.cpu or not there else tree_map(on_mps, out)


def _names(leaf: object) -> bool:
    return isinstance(leaf, str) and leaf in ("mps", "cpu")


def _here(leaf: Any) -> Any:
    if isinstance(leaf, torch.device) or _names(leaf):
        return torch.device("cpu")
    return leaf.as_subclass(torch.Tensor) if isinstance(leaf, OnMps) else leaf


def on_mps(leaf: Any) -> Any:
    """A tensor, moved there. Raises as MPS does for float64."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    with torch._C.DisableTorchFunctionSubclass():
        return leaf.as_subclass(OnMps)


def move(model: torch.nn.Module) -> None:
    """`model.to("mps")`, which would keep plain parameters."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = on_mps(tensor.detach())  # type: ignore[assignment]
