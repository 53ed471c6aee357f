"""The app as a whole: help without torch, errors in one line, exit codes."""

import pytest

from kvcomm import __version__
from kvcomm.errors import KvcommError
from tests.support import python


@pytest.mark.parametrize(
    ("command", "slow"),
    [
        ("run --help", {"torch", "transformers", "networkx"}),
        ("graph show debate", {"torch", "transformers"}),
        ("trace list", {"torch", "transformers"}),
    ],
)
def test_what_needs_no_model_loads_nothing_that_is_slow(command: str, slow: set[str]) -> None:
    code = (
        "import sys\nfrom kvcomm.cli import main\n"
        f"try: main({command.split()})\nexcept SystemExit: pass\n"
        f"sys.exit(f'loaded: {{found}}' if (found := {slow} & set(sys.modules)) else 0)\n"
    )
    assert (done := python(code)).returncode == 0, done.stderr


def test_every_command_has_help_and_the_program_a_version(cli) -> None:
    for command in ("run", "eval", "bench ttft", "graph show", "demo", "trace list"):
        ended = cli(*command.split(), "--help")
        assert ended.code == 0
        assert "Usage: kvcomm " + command in ended.out
        assert "9223372036854775808" not in ended.out  # a range that squeezes its words
    assert "--seed" in cli("run", "x", "--seed", str(2**63)).err
    assert cli("--version").out == f"kvcomm {__version__}\n"


def test_no_command_and_unknown_ones_are_bad_usage(cli) -> None:
    for argv in ("", "dance", "run", "run x --agents many", "run x --no-such-option"):
        assert cli(*argv.split()).code == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KvcommError("first\nsecond"), 1, "error: first second\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line_and_ctrl_c_is_130(cli, monkeypatch, error, code, line) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("kvcomm.cli.topologies.build_graph", fail)
    ended = cli("graph", "show", "chain")
    assert (ended.code, ended.err, ended.out) == (code, line, "")
