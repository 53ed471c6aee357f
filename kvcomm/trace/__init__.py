"""Traces: what happened in a run, event by event."""

from kvcomm.trace.read import CallView, TraceRun, find_run, read_trace
from kvcomm.trace.record import Recorder, new_run_folder

__all__ = ["CallView", "Recorder", "TraceRun", "find_run", "new_run_folder", "read_trace"]
