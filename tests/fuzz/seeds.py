"""Writes inputs for the fuzz target to begin with: a trace, learned state, audits, a manifest."""

import sys
import tempfile
from pathlib import Path

from kvcomm.reuse.auto import Auto
from kvcomm.reuse.state import save_audits
from tests.reuse.kvs import save_all
from tests.robust.test_hostile_state import learned
from tests.trace.traces import failed, whole


def write(corpus: Path) -> None:
    """One file for each of the target's kinds, behind the byte that chooses it."""
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        save_all(place, "tiny", "0123", learned("aa"))
        auto = Auto()
        auto.record("aa", {"light": 0.01}, 3, "light")
        save_audits(place, auto)
        files = [
            (0, whole(place / "whole").path),
            (0, failed(place / "failed").path),
            (1, place / "aa.safetensors"),
            (2, place / "aa.audits.json"),
            (3, place / "manifest.json"),
        ]
        for number, (kind, path) in enumerate(files):
            (corpus / f"seed-{number}").write_bytes(bytes([kind]) + path.read_bytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
