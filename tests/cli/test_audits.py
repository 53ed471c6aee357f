"""Audits behind a printed result: a command finishes them, says so, and Ctrl-C gives them up."""

import asyncio
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvcomm.cli import audits
from kvcomm.cli.demo_team import Question
from kvcomm.engine.local import LocalEngine
from kvcomm.session import Session

# Nearly everything is realigned, and so measured.
AUTO = ("--model", "random:llama-tiny", "--max-tokens", "64", "--target-divergence", "100")
RUN = ("run", "What is 6 * 7?", *AUTO, "--state", "learned")


@pytest.fixture
def hangs(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*RUN).code == 0  # measures the model: only then are there audits

    async def evaluate(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(LocalEngine, "evaluate", evaluate)


def on_notice(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something as soon as a command says what it waits for."""
    real = audits.complain

    def complain(line: str) -> None:
        real(line)
        if line.startswith("finishing"):
            act()

    monkeypatch.setattr(audits, "LONG_S", 0)
    monkeypatch.setattr(audits, "complain", complain)


@pytest.mark.usefixtures("hangs")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_behind_the_result_gives_up_audits_and_loses_nothing(
    cli, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    main = threading.main_thread().ident
    assert main is not None
    on_notice(monkeypatch, lambda: signal.pthread_kill(main, number))
    ended = cli(*RUN, "--json")
    assert ended.code == 0
    value = json.loads(ended.out)
    assert [call["node"] for call in value["calls"]] == ["solver", "critic", "editor"]
    assert value["audits"] == []
    *_, waits, given_up = ended.err.strip().split("\n")
    assert waits.startswith("finishing ")
    assert given_up == "the other audits were given up"
    assert ended.err.count("finishing") == 1


@pytest.mark.usefixtures("hangs")
def test_ctrl_c_before_the_result_waits_for_no_audit(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvcomm.cli.run.print_json", interrupted)
    assert cli(*RUN, "--json").code == 130


@pytest.mark.parametrize(
    "argv",
    [
        ("demo", "--model", "random:llama-tiny", "--limit", "1"),
        ("eval", "gsm8k", "--model", "random:llama-tiny", "--max-tokens", "6", "--limit", "1"),
    ],
)
def test_a_table_with_audits_in_it_waits_for_them(
    cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    said = threading.Event()
    on_notice(monkeypatch, said.set)

    async def adrain(session: Session) -> None:
        await asyncio.to_thread(said.wait)

    monkeypatch.setattr(Session, "adrain", adrain)
    monkeypatch.setattr(Session, "auditing", 3)
    whole = Question.passage.fget
    monkeypatch.setattr(Question, "passage", property(lambda question: whole(question)[:1000]))
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}')
    monkeypatch.setenv("KVCOMM_DATA", str(tmp_path))
    ended = cli(*argv)
    assert ended.code == 0, ended.err
    assert "finishing 3 audits\n" in ended.err
    assert "auto" in ended.out


def test_nothing_is_said_of_audits_that_are_done_in_time(capsys, monkeypatch) -> None:
    monkeypatch.setattr(audits, "LONG_S", 3600)
    with audits.noticed(SimpleNamespace(auditing=3)):  # type: ignore[arg-type]
        pass
    assert capsys.readouterr().err == ""
