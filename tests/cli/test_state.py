"""`kvcomm state`: what was learned, shown and removed, and nothing else touched."""

import json
import os
from pathlib import Path

import pytest

from kvcomm.reuse.state_files import FORMAT, LIBRARY


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which one model learned two templates, and an earlier version one."""
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    now = folder(tmp_path / "state" / "now" / "0011", "tiny", LIBRARY)
    aged(now / "aa.safetensors", 0, 3_000_000)
    aged(now / "aa.audits.json", 0, 10)
    aged(now / "bb.safetensors", 9 * 24, 2_000_000)
    old = folder(tmp_path / "state" / "before" / "0011", "tiny", "kvcomm 0.0")
    aged(old / "cc.safetensors", 0, 1_000_000)
    return tmp_path


def folder(path: Path, model: str, library: str) -> Path:
    path.mkdir(parents=True)
    manifest = {"format": FORMAT, "library": library, "model": model, "fingerprint": "0011"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def left(cache: Path) -> list[str]:
    state = cache / "state"
    return sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())


def aged(path: Path, hours: float, size: int = 1) -> None:
    """A file of so many bytes that was written so long ago."""
    path.write_bytes(bytes(size))
    when = path.stat().st_mtime - hours * 3600
    os.utime(path, (when, when))


def test_what_was_learned_is_listed(cli, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = cli("state", "list").out
    for words in ("tiny", "5.0 MB", "0.0, unused", "6.0 MB in", "kvcomm state prune"):
        assert words in out
    found = json.loads(cli("state", "list", "--json").out)
    assert found["bytes"] == 6_000_010
    old, now = found["folders"]
    assert (old["usable"], now["usable"]) == (False, True)
    assert [t["template"] for t in now["templates"]] == ["aa", "bb"]
    assert now["templates"][0]["bytes"] == 3_000_010
    own = str(cache / "state" / "now" / "0011")
    found = json.loads(cli("state", "list", "--state", own, "--json").out)
    assert [f["path"] for f in found["folders"]] == [own]
    for argv, message in (
        (("list", "--state", str(cache / "nowhere")), "there is no such folder"),
        (("prune", "--keep", "much"), "--keep 'much' is no size"),
    ):
        refused = cli("state", *argv)
        assert (refused.code, message in refused.err) == (2, True)
    monkeypatch.setenv("KVCOMM_CACHE", str(cache / "empty"))
    assert "Nothing was learned yet" in cli("state", "list").out
    assert "Nothing to remove" in cli("state", "prune").out


def test_prune_removes_what_no_one_can_use(cli, cache: Path) -> None:
    now = cache / "state" / "now" / "0011"
    aged(now / "dd.safetensors.damaged", 0)
    aged(now / ".ee.safetensors.abc", 2)
    aged(now / ".ff.safetensors.abc", 0)
    before = left(cache)
    assert "3 files would go" in cli("state", "prune", "--dry-run").out
    assert left(cache) == before
    assert "3 files gone: 1.0 MB" in cli("state", "prune").out
    kept = (".ff.safetensors.abc", "aa.audits.json", "aa.safetensors", "bb.safetensors")
    assert left(cache) == [f"now/0011/{name}" for name in (*kept, "manifest.json")]
    assert not (cache / "state" / "before").exists()


def test_prune_by_age_and_size(cli, cache: Path) -> None:
    cli("state", "prune", "--older-than", "10")
    assert "now/0011/bb.safetensors" in left(cache)
    found = json.loads(cli("state", "prune", "--older-than", "8", "--json").out)
    assert [Path(name).name for name in found["files"]] == ["bb.safetensors"]
    assert found["bytes"] == 2_000_000
    assert "Nothing to remove" in cli("state", "prune", "--keep", "4MB").out
    cli("state", "prune", "--keep", "2MB")
    assert left(cache) == []


def test_prune_all_leaves_what_is_not_ours(cli, cache: Path, tmp_path: Path) -> None:
    now = cache / "state" / "now" / "0011"
    (now / "notes.txt").write_text("mine")
    other = cache / "state" / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"x")
    elsewhere = folder(tmp_path / "elsewhere", "tiny", LIBRARY)
    (elsewhere / "aa.safetensors").write_bytes(b"x")
    (cache / "state" / "link").symlink_to(elsewhere)
    cli("state", "prune", "--all")
    kept = ["now/0011/manifest.json", "now/0011/notes.txt", "other/model.safetensors"]
    assert left(cache) == kept
    assert (elsewhere / "aa.safetensors").exists()
