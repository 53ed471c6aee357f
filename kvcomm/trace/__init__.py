"""Traces: what happened in a run, event by event."""

from kvcomm.trace.read import find_run, read_trace
from kvcomm.trace.record import Recorder, new_run_folder
from kvcomm.trace.run import CallView, TraceRun

__all__ = ["CallView", "Recorder", "TraceRun", "find_run", "new_run_folder", "read_trace"]
