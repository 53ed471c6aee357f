"""`kvcomm bench fidelity` with a small random model and made-up rows."""

import json
from pathlib import Path
from typing import Any

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


def test_fidelity_has_every_method(cli, data: str) -> None:
    ended = cli(*ARGS, "--data", data, "--agents", "2", "--json")
    value = json.loads(done(ended))
    known = {"model": "random:llama-tiny", "suite": "gsm8k", "graph": "chain", "calls": 2}
    assert known.items() <= value.items()
    names = ["rotate", "anchors", "repair", "cacheblend", "linear", "kvcomm", "exact", "auto"]
    assert sorted(value["methods"]) == sorted(names)
    assert value["methods"]["exact"]["divergence"]["median"] < 1e-4
    assert "5 of 5 calls" in ended.err
    # The passages of a suite are placeholders of every agent.
    more = ("--suite", "hotpotqa", "--agents", "1", "--methods", "linear", "--json")
    value = json.loads(done(cli(*ARGS, "--data", data, *more)))
    assert value["methods"]["linear"]["computed_fraction"] > 0
    lines = done(cli(*ARGS, "--data", data, "--methods", "rotate,exact,auto")).splitlines()
    header = "method median mean first top-1 same text computed state"
    assert lines[0].split() == header.split()
    assert [line.split()[0] for line in lines[1:4]] == ["rotate", "exact", "auto"]


SPEED = ("--model", "random:llama-tiny", "--agents", "2", "--prefix", "30", "--input", "40")


def done(ended: Any) -> str:
    """What a command that ended well has printed, in 80 columns."""
    assert ended.code == 0, ended.err
    assert ended.out.startswith("{") or max(map(len, ended.out.splitlines())) <= 80
    return ended.out


def test_ttft_has_every_mode_and_agent(cli) -> None:
    value = json.loads(done(cli("bench", "ttft", *SPEED, "--output", "20", "--json")))
    assert list(value["modes"]) == list(MODES)
    assert {"model", "hardware", "workload", "peak_bytes"} <= set(value)
    for mode in value["modes"].values():
        assert {"agents", "end_to_end_s", "state_bytes"} <= set(mode)
        keys = {"agent", "prompt_tokens", "computed_tokens", "ahead_s", "decode_budget_s", "ttft_s"}
        assert all(keys <= set(agent) for agent in mode["agents"])
    more = ("--output", "20", "--modes", "dense,exact", "--plot", "times.png")
    assert done(cli("bench", "ttft", *SPEED, *more)).splitlines()[1].startswith("dense")
    assert Path("times.png").read_bytes().startswith(b"\x89PNG")


def test_throughput_and_memory(cli) -> None:
    args = ("--rows", "1,2", "--graphs", "1", "--prompt", "30", "--tokens", "6", "--samples", "1")
    out = done(cli("bench", "throughput", "--model", "random:llama-tiny", *args))
    assert "2 rows" in out
    assert "1 graph in flight" in out
    more = ("--output", "10", "--modes", "exact", "--json")
    assert json.loads(done(cli("bench", "memory", *SPEED, *more)))["peak_bytes"]["exact"] > 1e8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("fidelity --methods magic", "method 'magic' is unknown"),
        ("fidelity --suite magic", "suite 'magic' is unknown"),
        ("fidelity --held-out 0", "--held-out 0: write 1 at least"),
        (
            "fidelity --held-out 100 --methods rotate",
            "120 are wanted: lower --warmup or --held-out",
        ),
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
