"""Numbers that make no sense end every command with exit code 2 and a message."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from kvcomm.cli.app import app
from kvcomm.errors import UsageError

# What a command needs beside the option that is tried.
NEEDED = {
    "run": ["x"],
    "eval suite": ["math-mini"],
    "models check": ["random:llama-tiny"],
    "graph show": ["debate"],
    "bench fidelity": ["--suite", "math-mini"],
    "bench rag": ["--suite", "rag-mini"],
    "index": ["x"],
}
WRONG = {int: ("-1", "0", str(10**30)), float: ("-1", "nan", "1e30")}
# These take them: any seed, a divergence or a temperature however large, all of fewer tasks.
RIGHT = {
    "-1": {"--seed", "--shuffle"},
    "0": {
        "--seed",
        "--shuffle",
        "--retries",
        "--warmup",
        "--target-divergence",
        "--older-than",
        "--skip",
    },
    str(10**30): {"--limit", "--shuffle"},
    "1e30": {"--target-divergence", "--temperature", "--older-than"},
}


def numeric(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, type]]:
    """Every numeric option of every command: the command, the option, its type."""
    for name, below in getattr(command, "commands", {}).items():
        yield from numeric(below, (*path, name))
    for parameter in command.params:
        kind = parameter.type_descriptor.annotation
        if kind in WRONG:
            yield " ".join(path), parameter.opts[0], kind


OPTIONS = list(numeric(typer.main.get_command(app)))


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong must be said before a model is loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise UsageError("all was accepted")

    monkeypatch.setattr("kvcomm.engine.load.load_engine", load)
    monkeypatch.setattr("kvcomm.engine.load.check_model", load)
    monkeypatch.setattr("kvcomm.bench.memory.run", load)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--max-tokens", value) for value in ("nan", "1.5", "many", "9" * 5000)),
        *(("--temperature", value) for value in ("inf", "1e400", "warm")),
    ],
)
def test_what_is_no_number(cli: Callable, option: str, value: str) -> None:
    ended = cli("run", "x", option, value)
    assert ended.code == 2
    assert "error: " in ended.err or "Invalid value" in ended.err


def test_every_command_with_numbers_is_tried() -> None:
    assert len(OPTIONS) > 40
    assert {path.split()[0] for path, _, _ in OPTIONS} >= {"run", "eval", "bench", "graph", "demo"}


@pytest.mark.parametrize(("path", "option", "kind"), OPTIONS)
def test_a_number_that_makes_no_sense(cli: Callable, path: str, option: str, kind: type) -> None:
    for value in WRONG[kind]:
        words = path.replace("eval suite", "eval").split()
        more = ["--graph", "debate"] if option in ("--rounds", "--agents") else []
        if path in ("graph show", "bench ttft", "bench memory", "models check"):
            more = ["--context", "1"] if path == "models check" and option == "--agents" else []
        ended = cli(*words, *NEEDED.get(path, []), *more, option, value)
        accepted = "all was accepted" in ended.err or ended.code == 0
        assert accepted == (option in RIGHT.get(value, set())), (value, ended.err)
        assert "Traceback" not in ended.err
        if not accepted:
            assert ended.code == 2, ended.err
            assert "error: " in ended.err or "Invalid value" in ended.err
