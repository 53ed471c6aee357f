"""The app as a whole: help without torch, errors in one line, exit codes."""

from __future__ import annotations

import pytest

from kvcomm import __version__
from kvcomm.errors import KvcommError
from tests.support import python


def test_help_loads_neither_torch_nor_anything_else_that_is_slow() -> None:
    code = (
        "import sys\n"
        "from kvcomm.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'networkx'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {slow}' if slow else 0)\n"
    )
    assert (done := python(code)).returncode == 0, done.stderr


def test_graphs_and_traces_need_no_torch() -> None:
    code = (
        "import sys, kvcomm.cli.topologies, kvcomm.trace.show, kvcomm.graphs.draw\n"
        "from kvcomm.cli.app import app\n"
        "from kvcomm.cli.topologies import build_graph\n"
        "build_graph('debate')\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert (done := python(code)).returncode == 0, done.stderr


def test_version(cli) -> None:
    assert cli("--version").out == f"kvcomm {__version__}\n"


def test_every_command_has_help(cli) -> None:
    for command in ("run", "demo", "graph list", "graph show", "trace list", "trace show"):
        ended = cli(*command.split(), "--help")
        assert ended.code == 0
        assert "Usage: kvcomm " + command in ended.out


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


def test_no_help_prints_a_range_that_squeezes_its_words(cli) -> None:
    for command in ("run", "eval", "bench ttft", "graph show"):
        text = cli(*command.split(), "--help").out
        assert "--seed" in text
        assert "9223372036854775808" not in text
    assert "64 bits" in cli("run", "x", "--seed", str(2**63)).err
