"""Measure the priors of models, and keep them in the file that comes with kvcomm.

    python benchmarks/priors.py smollm2-135m

To be run again when the levels of `auto` or the exchanges have changed: a test says so.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from kvcomm import load_engine
from kvcomm.reuse.auto import LEVELS
from kvcomm.runtime.priors import key_of, measured


def main(names: list[str]) -> None:
    """Measure every model named, in float32 on a CPU."""
    models = {}
    for name in names:
        engine = load_engine(name, device="cpu", dtype="float32")
        priors = asyncio.run(measured(engine, LEVELS))
        models[engine.weights] = {level: round(value, 6) for level, value in priors.items()}
        print(name, models[engine.weights])
        engine.close()
    path = Path("kvcomm/runtime/priors.json")
    path.write_text(json.dumps({"key": key_of(LEVELS), "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ["smollm2-135m"])
