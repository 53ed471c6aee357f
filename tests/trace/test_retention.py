"""Retention: old run folders go, and nothing else does."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from kvcomm.errors import UsageError
from kvcomm.graphs import chain
from kvcomm.session import Session
from kvcomm.trace.retention import DEAD_S, Retention
from tests.runtime.support import TASK, agent
from tests.trace.traces import Written


def run(root: Path, number: int, name: str = "", *, automatic: bool = True) -> Path:
    """The folder of a run that has ended, the newer the higher its number."""
    folder = root / (name or f"20250102-03{number:04d}-chain")
    Written(folder, automatic=automatic).end()
    return folder


def unended(root: Path, number: int) -> Path:
    """One that is under way, or was killed."""
    trace = run(root, number) / "trace.jsonl"
    trace.write_bytes(trace.read_bytes().splitlines(keepends=True)[0])
    return trace.parent


def test_the_newest_are_kept(tmp_path: Path) -> None:
    folders = [run(tmp_path, number) for number in range(7)]
    assert Retention(tmp_path, None).tidy() == []  # all are kept where that is asked for
    retention = Retention(tmp_path, 4)
    assert sorted(retention.tidy()) == folders[:4]  # the fourth is the one that is about to begin
    assert sorted(tmp_path.iterdir()) == folders[4:]
    assert retention.tidy() == []
    # A run without an end goes when it has been dead for a month.
    old, young = (unended(tmp_path / "open", number) for number in (1, 2))
    at = (old / "trace.jsonl").stat().st_mtime - DEAD_S - 60
    os.utime(old / "trace.jsonl", (at, at))
    assert Retention(tmp_path / "open", 1).tidy() == [old]
    assert young.exists()
    for keep in (0, -1):
        with pytest.raises(UsageError, match="keep_runs"):
            Retention(tmp_path, keep)


def test_nothing_goes_that_is_not_clearly_a_finished_run_of_ours(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    kept = [
        run(root, 1, automatic=False),  # named by `out=`, under such a name
        run(root, 2, "my-best-run"),  # renamed
        unended(root, 3),  # under way
        run(root, 4),  # with a file of the user's
        run(root, 5),  # with a folder of the user's
        run(root, 6, "20250102-030006-demo/dense"),  # a demo holds runs
    ]
    (kept[3] / "notes.txt").write_text("mine")
    (kept[4] / "plots").mkdir()
    # Links to folders and to traces, which look like runs.
    outside = run(elsewhere, 7)
    (root / "20250102-030007-chain").symlink_to(outside, target_is_directory=True)
    linked = root / "20250102-030008-chain"
    linked.mkdir()
    (linked / "trace.jsonl").symlink_to(outside / "trace.jsonl")
    # What is no run at all.
    (root / "20250102-030009-chain").write_text("a file")
    empty, other, piped, folder = (root / f"20250102-03001{n}-chain" for n in range(4))
    for path in (empty, other, piped, folder / "trace.jsonl"):
        path.mkdir(parents=True)
    (other / "trace.jsonl").write_text("not a trace\n")
    os.mkfifo(piped / "trace.jsonl")
    before = sorted(tmp_path.rglob("*"))
    gone = run(root, 0)
    run(root, 99)
    assert Retention(root, 1).tidy() == [root / "20250102-030099-chain", gone]
    assert sorted(tmp_path.rglob("*")) == before
    assert all(path.exists() for path in kept)


def test_what_cannot_go_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(tmp_path, 1), run(tmp_path, 2)
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.parent == second:
            raise PermissionError
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert Retention(tmp_path, 1).tidy() == [first]
    assert second.exists()
    assert Retention(tmp_path / "none", 1).tidy() == []


def test_several_processes_may_tidy_at_once(tmp_path: Path) -> None:
    folders = [run(tmp_path, number) for number in range(60)]
    mine = run(tmp_path, 7, "20250102-030007-mine")
    (mine / "notes.txt").write_text("mine")
    code = (
        "import sys\nfrom pathlib import Path\nfrom kvcomm.trace.retention import Retention\n"
        "sys.stdin.readline()\nprint(len(Retention(Path(sys.argv[1]), 11).tidy()))"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    # None begins before it gets a line; each folder is deleted by one of them.
    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda process: process.communicate("\n", timeout=60), processes))
    assert [err for _, err in ended] == ["", "", ""]
    assert sum(int(out) for out, _ in ended) == 50
    assert sorted(tmp_path.iterdir()) == sorted([mine, *folders[50:]])


def test_a_session_keeps_its_newest_and_named_runs(tiny: LocalEngine, tmp_path: Path) -> None:
    graph = chain(agent("a", 2))
    with Session(tiny, reuse="exact", state=None, runs=tmp_path, keep_runs=2) as active:
        named = [tmp_path / f"20200101-00000{n}-chain" for n in range(3)]
        for folder in named:
            active.run(graph, TASK, out=folder)
        made = [active.run(graph, TASK).trace.path for _ in range(4)]
    assert sorted(tmp_path.iterdir()) == sorted([*named, *filter(None, made[2:])])
