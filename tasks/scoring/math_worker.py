"""The process that compares mathematical expressions: one JSON object a line in, one out.

Run as `python -m kvcomm.tasks.scoring.math_worker`. It may hang on a hostile expression; who
started it kills it then.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify


def equal(gold: str, answer: str) -> dict[str, Any]:
    """Whether two expressions are equal, the gold one parsed first."""
    known = _parsed(gold)
    # What math-verify cannot read it returns as a bare text.
    if all(isinstance(reading, str) for reading in known):
        return {"parsed": False}
    return {"parsed": True, "equal": bool(verify(known, _parsed(answer), timeout_seconds=None))}


def _parsed(text: str) -> Any:
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    # Limits that rest on signals are off: this process is what is killed.
    return parse(f"${text}$", extraction_config=configs, parsing_timeout=None)


def main() -> None:
    """Answer every request until the input ends."""
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            reply = equal(request["gold"], request["answer"])
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
