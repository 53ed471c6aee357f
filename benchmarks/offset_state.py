"""What a placeholder kind costs to learn: linear offsets beside an anchor pool.

    python benchmarks/offset_state.py

Bytes and seconds, on random KV of the shapes of real models. Nothing is measured of quality here:
that is `kvcomm bench fidelity`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from kvcomm.kv import KV
from kvcomm.reuse.offsets import AnchorPool, LinearOffsets

# Layers, KV heads, head dimension, bytes of a number: float32 and bfloat16.
SHAPES = {
    "SmolLM2-135M": (30, 3, 64, 4),
    "Llama-3.1-8B": (32, 8, 128, 2),
}
TOKENS = 1024
ANCHORS = 20


def random_kv(layers: int, heads: int, dim: int, tokens: int) -> KV:
    """Normal keys and values."""
    return KV(*(torch.randn(layers, heads, tokens, dim) for _ in range(2)))


def seconds(task: Callable[[], object]) -> float:
    """The faster of two runs."""
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        task()
        best = min(best, time.perf_counter() - began)
    return best


def measure(shape: tuple[int, int, int, int]) -> tuple[int, list[float]]:
    """Bytes, and seconds to learn 256 tokens and to predict 1,024, of one layer times layers."""
    layers, heads, dim, _ = shape
    model = LinearOffsets()
    lesson = [random_kv(2, heads, dim, 256) for _ in range(2)]
    literal = random_kv(2, heads, dim, 0)
    model.observe(*lesson, literal)  # the first time includes making the sums
    model._solved_at = 10**9

    def learn() -> None:
        model.observe(*lesson, literal)

    text = random_kv(2, heads, dim, TOKENS)
    times = (learn, model._solve, lambda: model.predict(text))
    each = layers - 1
    return model.nbytes * each, [seconds(task) * each for task in times]


def pool(shape: tuple[int, int, int, int]) -> int:
    """Bytes of a full pool of texts of 1,024 tokens; one anchor is made and counted."""
    layers, heads, dim, size = shape
    anchors = AnchorPool()
    empty = random_kv(layers, heads, dim, 0)
    anchors.observe(random_kv(layers, heads, dim, 8), random_kv(layers, heads, dim, 8), empty)
    return anchors.nbytes // 8 * TOKENS * ANCHORS // 4 * size


def main() -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "form"):
        table.add_column(name, no_wrap=True)
    for name in ("state", "of pool", "learn", "solve", "predict"):
        table.add_column(name, no_wrap=True, justify="right")
    for model, shape in SHAPES.items():
        whole = pool(shape)
        table.add_row(model, f"{ANCHORS} anchors", f"{whole / 1e6:,.0f} MB", "", "", "", "")
        state, times = measure(shape)
        took = [f"{seconds_:.2f} s" for seconds_ in times]
        size = f"{state / 1e6:,.0f} MB"
        table.add_row("", "linear offsets", size, f"1/{whole / state:.0f}", *took)
    Console().print(table)


if __name__ == "__main__":
    main()
