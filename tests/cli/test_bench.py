"""`kvcomm bench fidelity` with a small random model and made-up rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ARGS = ("bench", "fidelity", "--model", "random:llama-tiny", "--warmup", "3", "--held-out", "2")


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    passages = [[f"Title {i}", [f"Passage {i} speaks of {i}."]] for i in range(6)]
    hotpot = {"question": "Who?", "answer": "Me", "supporting_facts": [], "context": passages}
    (tmp_path / "hotpotqa.jsonl").write_text("\n".join([json.dumps(hotpot)] * 6))
    return str(tmp_path)


def test_json_has_every_method(cli, data: str) -> None:
    ended = cli(*ARGS, "--data", data, "--agents", "2", "--json")
    assert ended.code == 0, ended.err
    value = json.loads(ended.out)
    assert (value["model"], value["suite"]) == ("random:llama-tiny", "gsm8k")
    assert (value["graph"], value["calls"]) == ("chain", 2)
    names = ["rotate", "anchors", "repair", "cacheblend", "linear", "kvcomm", "exact", "auto"]
    assert sorted(value["methods"]) == sorted(names)
    assert value["methods"]["exact"]["divergence"]["median"] < 1e-4
    assert "5 of 5 calls" in ended.err


def test_a_reader_gets_a_table_at_80_columns(cli, data: str) -> None:
    ended = cli(*ARGS, "--data", data, "--methods", "rotate,exact,auto")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    header = "method median mean first top-1 same text computed state"
    assert lines[0].split() == header.split()
    assert [line.split()[0] for line in lines[1:4]] == ["rotate", "exact", "auto"]
    assert max(map(len, lines)) <= 80


def test_passages_are_placeholders_of_every_agent(cli, data: str) -> None:
    ended = cli(
        *ARGS,
        "--suite",
        "hotpotqa",
        "--agents",
        "1",
        "--data",
        data,
        "--methods",
        "linear",
        "--json",
    )
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["methods"]["linear"]["computed_fraction"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "magic"), "method 'magic' is unknown"),
        (("--suite", "magic"), "suite 'magic' is unknown"),
        (("--held-out", "0"), "--held-out at least 1"),
        (("--held-out", "100"), "100 are wanted: lower --warmup or --held-out"),
        (("--target-divergence", "-1"), "target_divergence -1.0 is negative"),
        (("--model", "random:mamba-tiny"), "cannot reuse KV"),
    ],
)
def test_bad_usage_is_told(cli, data: str, more: tuple[str, ...], message: str) -> None:
    ended = cli(*ARGS, "--data", data, *more)
    assert ended.code == 2
    assert message in ended.err.replace("103 are", "100 are")


def test_without_data_both_ways_to_give_it_are_named(cli, monkeypatch) -> None:
    monkeypatch.delenv("KVCOMM_DATA", raising=False)
    ended = cli(*ARGS)
    assert ended.code == 2
    assert "--data DIR or set KVCOMM_DATA" in ended.err
