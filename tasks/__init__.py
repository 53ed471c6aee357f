"""Tasks for agent graphs."""

from kvcomm.tasks.suite import SUITES, Suite, load_suite
from kvcomm.tasks.task import DATA, Task, load_jsonl

__all__ = ["DATA", "SUITES", "Suite", "Task", "load_jsonl", "load_suite"]
