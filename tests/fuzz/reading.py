"""A coverage-guided fuzz target: bytes as a trace, or as what was learned (`make fuzz`)."""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kvcomm.trace", "kvcomm.reuse"]):
    from kvcomm.reuse.auto import Auto
    from kvcomm.reuse.offsets import ANCHORS, AnchorPool, Offsets
    from kvcomm.reuse.offsets.linear import LinearOffsets
    from kvcomm.reuse.state import AUDITS, check_folder, load_audits, load_state
    from kvcomm.trace.read import read_trace
    from kvcomm.trace.show import show_run

import torch

from kvcomm.cli.output import console
from kvcomm.errors import KvcommError

PLACE = Path(tempfile.mkdtemp(prefix="kvcomm-fuzz-"))
FAMILIES = {ANCHORS: AnchorPool, "linear": LinearOffsets}


def trace(data: bytes) -> None:
    path = PLACE / "trace.jsonl"
    path.write_bytes(data)
    out = console()
    out.file = io.StringIO()
    out.print(show_run(read_trace(path), segments=True))


def state(data: bytes) -> None:
    """A damaged file is named, and never an exception."""
    path = PLACE / "aa.safetensors"
    path.write_bytes(data)
    loaded = load_state(PLACE, Offsets(FAMILIES), torch.device("cpu"))
    assert loaded.templates + len(loaded.refused) == 1


def audits(data: bytes) -> None:
    """Why they were left alone, and never an exception."""
    (PLACE / ("aa" + AUDITS)).write_bytes(data)
    load_audits(PLACE, Auto())


def manifest(data: bytes) -> None:
    """Of this model, or a `StateError`."""
    path = PLACE / "manifest.json"
    path.write_bytes(data)
    try:
        check_folder(PLACE, "tiny", "0123")
    finally:
        path.unlink()


TARGETS = (trace, state, audits, manifest)


def one_input(data: bytes) -> None:
    """The first byte chooses what the others are read as."""
    if data:
        with contextlib.suppress(KvcommError):
            TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
