"""`kvcomm bench fidelity` with a small random model and made-up rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcomm.bench.ttft import MODES

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
    known = {"model": "random:llama-tiny", "suite": "gsm8k", "graph": "chain", "calls": 2}
    assert known.items() <= value.items()
    names = ["rotate", "anchors", "repair", "cacheblend", "linear", "kvcomm", "exact", "auto"]
    assert sorted(value["methods"]) == sorted(names)
    assert value["methods"]["exact"]["divergence"]["median"] < 1e-4
    assert "5 of 5 calls" in ended.err
    # The passages of a suite are placeholders of every agent.
    more = ("--suite", "hotpotqa", "--agents", "1", "--methods", "linear", "--json")
    ended = cli(*ARGS, "--data", data, *more)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["methods"]["linear"]["computed_fraction"] > 0


def test_a_reader_gets_a_table_at_80_columns(cli, data: str) -> None:
    ended = cli(*ARGS, "--data", data, "--methods", "rotate,exact,auto")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    header = "method median mean first top-1 same text computed state"
    assert lines[0].split() == header.split()
    assert [line.split()[0] for line in lines[1:4]] == ["rotate", "exact", "auto"]
    assert max(map(len, lines)) <= 80


SPEED = ("--model", "random:llama-tiny", "--agents", "2", "--prefix", "30", "--input", "40")


def test_ttft_json_has_every_mode_and_agent(cli) -> None:
    ended = cli("bench", "ttft", *SPEED, "--output", "20", "--json")
    assert ended.code == 0, ended.err
    value = json.loads(ended.out)
    assert list(value["modes"]) == list(MODES)
    assert {"model", "hardware", "workload", "peak_bytes"} <= set(value)
    for mode in value["modes"].values():
        assert {"agents", "end_to_end_s", "state_bytes"} <= set(mode)
        keys = {"agent", "prompt_tokens", "computed_tokens", "ahead_s", "decode_budget_s", "ttft_s"}
        assert all(keys <= set(agent) for agent in mode["agents"])


def test_ttft_prints_a_table_and_draws_a_plot(cli, tmp_path: Path) -> None:
    plot = tmp_path / "times.png"
    more = ("--output", "20", "--modes", "dense,exact", "--plot", str(plot))
    ended = cli("bench", "ttft", *SPEED, *more)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[1].startswith("dense")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_throughput_and_memory(cli) -> None:
    args = ("--rows", "1,2", "--graphs", "1", "--prompt", "30", "--tokens", "6", "--samples", "1")
    ended = cli("bench", "throughput", "--model", "random:llama-tiny", *args)
    assert ended.code == 0, ended.err
    assert "2 rows" in ended.out
    assert "1 graph in flight" in ended.out
    ended = cli("bench", "memory", *SPEED, "--output", "10", "--modes", "exact", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["peak_bytes"]["exact"] > 1e8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("fidelity --methods magic", "method 'magic' is unknown"),
        ("fidelity --suite magic", "suite 'magic' is unknown"),
        ("fidelity --held-out 0", "--held-out 0: write 1 at least"),
        ("fidelity --held-out 100", "120 are wanted: lower --warmup or --held-out"),
        ("fidelity --target-divergence -1", "target_divergence -1.0 is negative"),
        ("fidelity --model random:mamba-tiny", "cannot reuse KV"),
        ("ttft --modes magic", "mode 'magic' is unknown"),
        ("ttft --graph star", "the workload is full or debate"),
        ("ttft --output 1", "--output 1: write 2 at least"),
        ("ttft --preset magic", "there is `paper`"),
        ("ttft --model random:mamba-tiny", "cannot reuse KV"),
        ("throughput --rows 1,x", "write a number, or several: 1,2,4"),
        ("memory --model no-such-model", "model 'no-such-model' is unknown"),
    ],
)
def test_bad_usage_is_told(cli, data: str, monkeypatch, argv: str, message: str) -> None:
    monkeypatch.setenv("KVCOMM_DATA", data)
    command, *options = argv.split()
    model = () if "--model" in options or command != "fidelity" else ARGS[2:4]
    ended = cli("bench", command, *model, *options)
    assert ended.code == 2
    assert message in ended.err


def test_without_data_both_ways_to_give_it_are_named(cli, monkeypatch) -> None:
    monkeypatch.delenv("KVCOMM_DATA", raising=False)
    ended = cli(*ARGS)
    assert ended.code == 2
    assert "pass --data DIR with DIR/gsm8k.jsonl" in ended.err
    assert 'pip install "kvcomm[hf]"' in ended.err
