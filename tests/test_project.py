"""What is handed out: the source archive."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_source_archive_has_documents_and_examples(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path / "tree"
    kept = ("agents", "graphs", "tasks", "kvcomm", "docs", "examples")
    for name in kept:
        shutil.copytree(ROOT / name, tree / name, symlinks=True)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, tree)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for folder in ("docs", "examples"):
        there = {f"{folder}/{file.name}" for file in (ROOT / folder).glob("*.*")}
        assert there <= names
    assert {"CHANGELOG.md", "agents/agent.py", "kvcomm/prompt.py"} <= names
