"""Tasks for agent graphs."""

from kvcomm.tasks.task import DATA, Task, load_jsonl

__all__ = ["DATA", "Task", "load_jsonl"]
