"""Tests of one check with random input: a few examples each time, and many now and then."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings


def fuzzed(
    check: Callable, few: int = 30, many: int = 4000, timeout: int = 900, **arguments: Any
) -> tuple[Callable, Callable]:
    """Two tests of a check: with a few examples, and with many where `slow` tests run."""
    known = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

    def of(examples: int) -> Callable:
        quiet = settings(max_examples=examples, suppress_health_check=known)
        return quiet(given(**arguments)(check))

    return of(few), pytest.mark.slow(pytest.mark.timeout(timeout)(of(many)))
