"""Running commands in-process, in an empty folder, at 80 columns."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from kvcomm.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*argv: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(argv)
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run
