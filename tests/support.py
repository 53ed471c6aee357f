"""What tests in several folders need."""

import subprocess
import sys
from typing import Any

import pytest

TINY = (
    "llama-tiny",
    "llama3-tiny",
    "yarn-tiny",
    "mistral-tiny",
    "qwen2-tiny",
    "qwen3-tiny",
    "gemma3-tiny",
    "smollm3-tiny",
    "phi-tiny",
    "glm-tiny",
)
# One for each way to tell positions: plain, in a window, by two kinds of frequencies, not in every
# layer, by a part of the dimensions.
POSITIONS = ("llama-tiny", "mistral-tiny", "gemma3-tiny", "smollm3-tiny", "glm-tiny")


def shapes(*fast: str) -> list[Any]:
    """All architectures; those that are not `fast` run in `make test-full` only."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in TINY]


def python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own; what it printed, and how it ended."""
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
