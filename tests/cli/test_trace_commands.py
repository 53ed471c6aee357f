"""`kvcomm trace` on traces of real runs."""

import csv
import json
import random
from pathlib import Path

import pytest

MODEL = ("--model", "random:llama-tiny", "--state", "none", "--max-tokens", "6")


@pytest.fixture
def run(cli) -> Path:
    assert cli("run", "What is 6 * 7?", *MODEL, "--out", "runs/one").code == 0
    return Path("runs/one")


def test_show_by_folder_by_name_and_by_file(cli, run: Path) -> None:
    names = ("one", str(run), f"{run}/trace.jsonl")
    texts = {cli("trace", "show", name, "--segments").out for name in names}
    assert len(texts) == 1
    text = texts.pop()
    assert "critic  hears solver" in text
    assert "{solver}" in text
    assert max(map(len, text.split("\n"))) <= 80


def test_show_json_is_one_object(cli, run: Path) -> None:
    value = json.loads(cli("trace", "show", "one", "--json").out)
    known = {"status": "ok", "inputs": {"task": "What is 6 * 7?"}, "skipped_lines": 0}
    assert known.items() <= value.items()
    assert [call["node"] for call in value["calls"]] == ["solver", "critic", "editor"]
    assert all(call["finished"] and call["segments"] for call in value["calls"])
    assert value["calls"][-1]["message"] == value["answer"]
    critic = "".join(segment["text"] for segment in value["calls"][1]["segments"])
    assert critic.startswith("<|im_start|>system")
    assert "What is 6 * 7?" in critic
    one = cli("trace", "show", "one", "--node", "critic", "--json")
    assert [call["node"] for call in json.loads(one.out)["calls"]] == ["critic"]
    Path("notes.txt").write_text("hello\n")
    for argv, says in {
        "show one --node judge": "no node `judge`",
        "show nowhere": "no trace at 'nowhere'",
        "show notes.txt": "is not a trace",
        "diff one three": "no trace at 'three'",
    }.items():
        ended = cli("trace", *argv.split())
        assert (ended.code, says in ended.err) == (2, True)


def test_list(cli) -> None:
    ended = cli("trace", "list")
    assert (ended.code, ended.out) == (0, "no runs in runs/ (`kvcomm run` writes one)\n")
    assert json.loads(cli("trace", "list", "--json").out) == {"runs": []}
    assert cli("run", "What is 6 * 7?", *MODEL, "--out", "runs/one").code == 0
    (one,) = json.loads(cli("trace", "list", "--json").out)["runs"]
    assert (one["run"], one["status"], one["calls_finished"]) == ("one", "ok", 3)
    assert "random:llama-tiny" in cli("trace", "list").out


def test_a_trace_cut_anywhere_is_shown_as_far_as_it_goes(cli, run: Path) -> None:
    """Whenever one whole line is left: 200 cuts at random bytes."""
    path = run / "trace.jsonl"
    whole = path.read_bytes()
    draw = random.Random(0)
    first = whole.index(b"\n") + 1
    for cut in [first, len(whole) - 1, *(draw.randrange(first, len(whole)) for _ in range(198))]:
        path.write_bytes(whole[:cut])
        ended = cli("trace", "show", "one", *draw.choice(([], ["--segments"], ["--text"])))
        assert ended.code == 0, ended.err
        assert "random:llama-tiny" in ended.out
        assert "cut off" in ended.out or "ok in" in ended.out
    at = whole.index(b"\n", whole.index(b'"kind":"call"')) + 1
    path.write_bytes(whole[:at] + b'{"kind": "ca')
    assert "cut off: 1 call finished" in cli("trace", "show", "one").out
    value = json.loads(cli("trace", "show", "one", "--json").out)
    assert (value["status"], value["totals"], value["skipped_lines"]) == ("cut off", None, 1)
    path.write_bytes(whole[: first // 2])
    ended = cli("trace", "show", "one")
    assert ended.code == 2
    assert "is not a trace" in ended.err


def test_diff_of_two_modes_and_tail_of_a_run_that_ended(cli, run: Path) -> None:
    args = ("--reuse", "dense", "--out", "runs/two")
    assert cli("run", "What is 6 * 7?", *MODEL, *args).code == 0
    lines = cli("trace", "diff", "two", "one").out.splitlines()
    assert lines[0] == "two (dense)  →  one (auto)"
    assert max(map(len, lines)) <= 80
    value = json.loads(cli("trace", "diff", "two", "one", "--json").out)
    assert [call["node"] for call in value["calls"]] == ["solver", "critic", "editor"]
    assert {call["first"]["mode"] for call in value["calls"]} == {"dense"}
    lines = cli("trace", "tail", "one").out.splitlines()
    assert lines[0].split(maxsplit=1)[1].startswith("chain on random:llama-tiny, auto: 3 nodes")
    assert "ok in" in lines[-1]
    assert sum(" done: " in line for line in lines) == 3


def test_export_writes_a_file_once(cli, run: Path) -> None:
    ended = cli("trace", "export", "one", "--to", "csv")
    assert ended.out == "runs/one/calls.csv\n"
    with (run / "calls.csv").open(newline="") as file:
        assert [row["node"] for row in csv.DictReader(file)] == ["solver", "critic", "editor"]
    before = (run / "trace.jsonl").read_bytes()
    for message, words in {
        "replace it with --force": ["--to", "csv"],
        "'xml' is unknown: choose one of perfetto, csv": ["--to", "xml"],
        "the trace itself": ["--to", "csv", "--out", f"{run}/trace.jsonl", "--force"],
        "cannot write": ["--to", "csv", "--out", "none/calls.csv"],
        "--endpoint takes --to otel": ["--to", "csv", "--endpoint", "http://x"],
    }.items():
        refused = cli("trace", "export", "one", *words)
        assert refused.code == 2
        assert message in refused.err
    assert (run / "trace.jsonl").read_bytes() == before
    assert cli("trace", "export", "one", "--to", "csv", "--force").code == 0
