"""What was learned is written behind the answers, seldom, and never lost without a word."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import StateError
from kvcomm.runtime import saving
from kvcomm.runtime.saving import Saver
from kvcomm.session import Session
from tests.runtime.support import GRAPH, TASK, TASKS, session
from tests.support import python


class Engine:
    """As much of one as a saver knows."""

    before_close: ClassVar[set[Callable[[], object]]] = set()


def saver_of(written: Written) -> Saver:
    return Saver(written, Engine())


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


def test_changes_are_written_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SAVE_S", 0.01)
    written = Written()
    saver = saver_of(written)
    saver.changed()
    assert written.done.wait(30)
    saver.flush()
    assert written.threads == ["kvcomm-saver"]


def test_a_change_waits_for_company() -> None:
    written = Written()
    saver = saver_of(written)
    for _ in range(100):
        saver.changed()
    assert not written.threads
    for _ in range(2):  # then there is nothing more to write
        saver.flush()
        assert written.threads == ["MainThread"]
    assert not saver._pending
    assert saver._timer is None


def test_a_write_that_fails_is_told_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    written = Written()
    written.fails = "the disk is full"
    saver = saver_of(written)
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


async def test_it_is_written_when_the_session_closes(tiny: LocalEngine, tmp_path: Path) -> None:
    """Also in an event loop."""
    others = set(tiny.before_close)
    with session(tiny, "kvcomm", state=tmp_path) as active:
        await active.arun(GRAPH, TASK)
        assert not list(tmp_path.iterdir()), "not before the answer, nor right behind it"
    assert list(tmp_path.glob("*.safetensors"))
    assert tiny.before_close == others


def test_a_request_writes_nothing_of_other_tenants(tiny: LocalEngine, tmp_path: Path) -> None:
    found: list[dict[str, int]] = []

    def save(active: Session, task: str) -> None:
        active.run(GRAPH, task)
        asyncio.run(active.save())
        files = tmp_path.glob("*.safetensors")
        found.append({path.name: path.stat().st_mtime_ns for path in files})

    with (
        session(tiny, "kvcomm", state=tmp_path, namespace="one") as one,
        session(tiny, "kvcomm", state=tmp_path, namespace="two") as two,
    ):
        save(one, TASK)
        save(two, TASK)
        save(two, TASKS[1])
    first, both, later = found
    assert {} != first.items() < both.items()
    changed = {name for name, when in later.items() if both[name] != when}
    assert changed == both.keys() - first.keys()


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
    done = python(f"import os; os.environ['KVCOMM_CACHE'] = {str(tmp_path)!r}\n{code}")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("state/*/*/*.safetensors")), done.stderr
