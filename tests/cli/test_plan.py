"""`kvcomm plan` and `kvcomm bench hardware`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.plan.works import SIMPLE

TINY = ["--model", "random:llama-tiny"]
RUN = ["run", "Why?", *TINY, "--reuse", "exact", "--max-tokens", "8", "--out", "runs/it"]


def described(folder: Path) -> None:
    (folder / "hw.toml").write_text(SIMPLE.to_toml(), encoding="utf-8")


def test_a_run_is_planned(cli, tmp_path: Path) -> None:
    described(tmp_path)
    cli(*RUN)
    ended = cli("plan", "it", "--hardware", "hw.toml", "--replicas", "2", "--concurrent", "4")
    assert ended.code == 0, ended.err
    assert not ended.err
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    assert "16 graphs, 4 in flight" in ended.out
    assert "on 2 replicas of simple (stated)" in ended.out
    names = [line.split()[0] for line in ended.out.split("\n\n")[1].splitlines()]
    assert names == ["mode", "dense", "exact"]
    for said in ("from the trace: lengths", "derived, exact", "texts of its own"):
        assert said in ended.out


def test_json_is_one_object_with_the_documented_keys(cli, tmp_path: Path) -> None:
    described(tmp_path)
    cli(*RUN)
    ended = cli("plan", "it", "--hardware", "hw.toml", "--modes", "dense", "--json")
    found = json.loads(ended.out)
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    section = page.split("## `kvcomm plan")[1].split("\n## ")[0]
    assert list(found["modes"]) == ["dense"]
    for key in (*found, *found["modes"]["dense"]):
        assert f"`{key}`" in section, key
    assert found["graphs"] == 4
    assert found["modes"]["dense"]["prefix_tokens"] == 0


def test_a_gpu_by_name_says_that_it_is_calculated(cli) -> None:
    cli(*RUN)
    sizes = ["--kv-bytes", "1000", "--parameters", "8B"]
    ended = cli("plan", "it", "--hardware", "h100", *sizes)
    assert "NVIDIA H100 SXM (calculated)" in ended.out
    assert "nothing was measured" in " ".join(ended.out.split())
    limit = ["--memory", "1GB", "--json"]
    assert (
        json.loads(cli("plan", "it", "--hardware", "h100", *sizes, *limit).out)["kv_memory"] == 1e9
    )


def test_what_is_wrong_is_said_in_one_line(cli, tmp_path: Path) -> None:
    described(tmp_path)
    cli(*RUN)
    wrong = {
        "no trace at 'nowhere'": ["nowhere", "--hardware", "hw.toml"],
        "no hardware 'nothing'": ["it", "--hardware", "nothing"],
        "--parameters 8B": ["it", "--hardware", "h100"],
        "--reuse auto": ["it", "--hardware", "hw.toml", "--modes", "auto"],
        "--memory 'much'": ["it", "--hardware", "hw.toml", "--memory", "much"],
    }
    for said, argv in wrong.items():
        ended = cli("plan", *argv)
        assert ended.code == 2, argv
        assert said in ended.err
        assert len(ended.err.strip().splitlines()) == 1


def test_this_machine_is_measured_and_planned_with(cli) -> None:
    ended = cli("bench", "hardware", *TINY, "--samples", "1", "--out", "here.toml", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["source"] == "measured"
    assert [rows for rows, _ in found["decode"]] == [1, 2, 4, 8]
    assert found["kv_bytes"] > 0
    cli(*RUN)
    planned = json.loads(cli("plan", "it", "--hardware", "here.toml", "--json").out)
    assert planned["hardware"] == found | planned["hardware"]
    assert planned["modes"]["exact"]["end_to_end_s"]["median"] > 0
    refused = cli("bench", "hardware", *TINY, "--out", "no/where.toml")
    assert refused.code == 2
    assert "no folder no/" in refused.err


def test_planning_loads_no_torch(cli, tmp_path: Path) -> None:
    import subprocess
    import sys

    described(tmp_path)
    cli(*RUN)
    code = (
        "import sys\nfrom kvcomm.cli import main\ntry:\n"
        "    main(['plan', 'it', '--hardware', 'hw.toml'])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
