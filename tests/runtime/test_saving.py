"""What was learned is written behind the answers, seldom, and never lost without a word."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from kvcomm.engine.base import Engine
from kvcomm.engine.load import load_engine
from kvcomm.engine.local import LocalEngine
from kvcomm.errors import StateError
from kvcomm.runtime import saving
from kvcomm.runtime.saving import Saver

from .support import GRAPH, TASK, TASKS, session


class Stub:
    """As much of an engine as a saver knows."""

    def __init__(self) -> None:
        self.before_close: set[Callable[[], object]] = set()


class Written:
    """Counts writes; fails while `fails` says why."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.fails = ""
        self.done = threading.Event()

    async def __call__(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.done.set()
        if self.fails:
            raise StateError(self.fails)


def test_changes_are_written_together_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SAVE_S", 0.01)
    written = Written()
    saver = Saver(written, cast(Engine, Stub()))
    for _ in range(3):
        saver.changed()
    assert written.done.wait(30)
    saver.flush()
    assert set(written.threads) <= {"kvcomm-saver", "MainThread"}
    assert 1 <= len(written.threads) <= 3
    count = len(written.threads)
    saver.flush()
    assert len(written.threads) == count, "there is nothing more to write"


def test_a_change_waits_for_company() -> None:
    written = Written()
    saver = Saver(written, cast(Engine, Stub()))
    for _ in range(100):
        saver.changed()
    assert not written.threads
    saver.flush()
    assert written.threads == ["MainThread"]
    assert not saver._pending
    assert saver._timer is None


def test_a_write_that_fails_is_told_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    written = Written()
    written.fails = "the disk is full"
    saver = Saver(written, cast(Engine, Stub()))
    saver.changed()
    saver.flush_or_log()
    saver.flush_or_log()
    assert caplog.messages == ["the disk is full"], "once, while nothing changes"
    assert saver.failed == "the disk is full"
    with pytest.raises(StateError, match="the disk is full"):
        saver.flush()
    written.fails = ""
    saver.flush()
    assert saver.failed == ""
    assert len(written.threads) == 4


async def test_what_was_learned_is_written_when_the_session_closes(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    """Also in an event loop."""
    others = set(tiny.before_close)
    with session(tiny, "kvcomm", state=tmp_path) as active:
        await active.arun(GRAPH, TASK)
        assert not list(tmp_path.iterdir()), "not before the answer, nor right behind it"
    assert list(tmp_path.glob("*.safetensors"))
    assert tiny.before_close == others


def test_an_engine_that_is_closed_saves_what_it_learned(tmp_path: Path) -> None:
    with load_engine("random:llama-tiny", device="cpu") as engine:
        session(engine, "kvcomm", state=tmp_path).run(GRAPH, TASK)
    assert list(tmp_path.glob("*.safetensors"))


def test_a_request_writes_what_it_taught_and_nothing_of_other_tenants(
    tiny: LocalEngine, tmp_path: Path
) -> None:
    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}

    with (
        session(tiny, "kvcomm", state=tmp_path, namespace="one") as one,
        session(tiny, "kvcomm", state=tmp_path, namespace="two") as two,
    ):
        one.run(GRAPH, TASK)
        two.run(GRAPH, TASK)
        asyncio.run(one.save())
        first = files()
        assert first
        asyncio.run(two.save())
        both = files()
        assert first.items() < both.items()
        two.run(GRAPH, TASKS[1])
        asyncio.run(two.save())
        changed = {name for name, when in files().items() if both.get(name) != when}
        assert changed
        assert not changed & first.keys()


def test_a_program_that_closes_nothing_saves_at_its_end(tmp_path: Path) -> None:
    code = (
        "from kvcomm import Session, load_engine\n"
        "from kvcomm.agents import Agent, Sampling\n"
        "from kvcomm.graphs import chain\n"
        "engine = load_engine('random:llama-tiny', device='cpu')\n"
        "short = Sampling(max_tokens=4)\n"
        "pair = chain(Agent('a', prompt='{task}', sampling=short),\n"
        "             Agent('b', prompt='{task} {a}', sampling=short))\n"
        "Session(engine, reuse='kvcomm', runs=None).run(pair, task='What is 6 * 7?')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KVCOMM_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("state/*/*/*.safetensors")), done.stderr
