"""Tasks for agent graphs, how answers are scored, and evaluations."""

from kvcomm.tasks.graders import Graders
from kvcomm.tasks.rows import Hub
from kvcomm.tasks.scoring import Score
from kvcomm.tasks.suite import Suite
from kvcomm.tasks.suites import SUITES, find_suite, load_suite
from kvcomm.tasks.task import DATA, Task

__all__ = ["DATA", "SUITES", "Graders", "Hub", "Score", "Suite", "Task", "find_suite", "load_suite"]
