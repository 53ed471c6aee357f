"""`kvcomm eval` and `kvcomm tasks` with a small random model and made-up rows."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcomm.reuse.offsets import FAMILIES
from kvcomm.tasks.record import SAMPLES, Sample, read_samples
from tests.tasks.test_record import CONFIGURED

MODEL = ("--model", "random:llama-tiny", "--dtype", "float64", "--max-tokens", "8")
GRAPH = ("--graph", "chain", "--agents", "2")


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path)


@pytest.fixture
def done(cli, data: str) -> Callable[..., str]:
    """What an evaluation that ended well has printed."""

    def run(*args: str) -> str:
        ended = cli("eval", "gsm8k", *MODEL, "--data", data, *args)
        assert ended.code == 0, ended.err
        return ended.out

    return run


def test_a_table_and_a_folder(cli, data: str) -> None:
    assert "Usage: kvcomm eval SUITE [OPTIONS]" in (out := cli("eval", "--help").out)
    assert "kvcomm eval report RUN" in out
    listed = json.loads(cli("tasks", "list", "--data", data, "--json").out)["suites"]
    rows = {suite["name"]: suite["rows"] for suite in listed}
    assert (rows["gsm8k"], rows["math-mini"], len(rows)) == ("the folder", "kvcomm", 11)
    text = cli("tasks", "list", "--data", data).out
    assert all(name in text for name in rows)
    assert all(len(line) <= 80 for line in text.splitlines())
    ended = cli("eval", "gsm8k", *GRAPH, *MODEL, "--data", data, "--limit", "3", "--out", "o")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "gsm8k; graph chain; 2 agents; random:llama-tiny"
    assert lines[1].startswith("on cpu, float64, torch ")
    assert "4 tasks at once" in ended.out
    header = next(place for place, line in enumerate(lines) if line.startswith("mode"))
    assert " ".join(lines[header].split()) == "mode n score 95 % tokens calls TTFT s"
    assert lines[header + 1].startswith("auto  3")
    assert all(len(line) <= 80 for line in lines)
    assert "compare times at --concurrent 1 only" in " ".join(ended.out.split())
    assert "kept in o: kvcomm eval report o" in ended.out
    assert "3 of 3: auto" in ended.err
    written = {"config.json", "samples.jsonl", "state", "summary.json", "traces"}
    assert {path.name for path in Path("o").iterdir()} == written


def test_json_has_the_documented_keys_and_a_report_several_runs(cli, done) -> None:
    args = ("--reuse", "exact", "--compare", "dense", "--limit", "2")
    value = json.loads(done(*GRAPH, *args, "--json", "--out", "one"))
    documented = "suite graph mode samples score compare token_reuse call_reuse ttft_s errors out"
    assert set(documented.split()) <= set(value)
    compare = {"mode", "score", "difference", "ci95", "p_value", "consistency"}
    assert compare <= set(value["compare"])
    assert value["compare"]["consistency"]["answer"] == 1.0
    assert json.loads(Path("one", "summary.json").read_text()) == value
    words = " ".join(done(*GRAPH, *args).split())  # in another folder
    assert "exact against dense: +0.0% (-65.8% to +65.8%, McNemar p = 1.00); same answer" in words
    assert "shorter" in words or "longer" in words
    assert words.rpartition(" ")[2].startswith("runs/")
    done(*GRAPH, "--reuse", "dense", "--limit", "2", "--out", "two")
    ended = cli("eval", "report", "one", "two", "--plot", "plot.png", "--by-agent")
    assert ended.code == 0, ended.err
    assert re.search("^one  exact  2 .*^two  dense  2 ", ended.out, re.M | re.S)
    assert re.search("^one  exact  solver .*^            editor ", ended.out, re.M | re.S)
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    assert Path("plot.png").read_bytes()[:4] == b"\x89PNG"
    value = json.loads(cli("eval", "report", "one", "--json").out)
    assert [run["mode"] for run in value["runs"]] == ["exact"]
    assert "holds no evaluation" in cli("eval", "report", "three").err


def test_several_numbers_of_agents_and_numbers_for_other_programs(cli, data: str) -> None:
    args = ("--agents", "1,2,1", "--reuse", "exact,dense", "--compare", "dense", "--limit", "2")
    command = ("eval", "gsm8k", *MODEL, "--data", data, *args, "--out")
    ended = cli(*command, "o", "--json")
    assert ended.code == 0, ended.err
    runs = json.loads(ended.out)["runs"]
    assert [(run["out"], run["graph"]) for run in runs] == [
        (f"o/agents-{count}", "full") for count in (1, 2)
    ]
    assert json.loads(Path("o", "summary.json").read_text()) == {"runs": runs}
    logs = [Path(run["out"], SAMPLES).read_bytes() for run in runs]
    assert json.loads(cli(*command, "o", "--json").out)["runs"] == runs  # nothing is done twice
    assert [Path(run["out"], SAMPLES).read_bytes() for run in runs] == logs
    assert json.loads(cli("eval", "report", "o", "--json").out)["runs"] == runs
    one = cli(*command, "o/agents-1")
    assert (one.code, "holds one evaluation" in one.err) == (2, True)
    table = cli("eval", "report", "o").out
    assert re.search("^agents +mode .*^1 +exact .*^2 +exact .*^ +dense ", table, re.M | re.S)
    assert "2 agents:\nexact against dense" in table
    ended = cli("eval", "report", "o", "--to", "csv")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    of_rows = [(row["agent_count"], row["mode"]) for row in rows]
    assert of_rows == [("1", "exact"), ("1", "dense"), ("2", "exact"), ("2", "dense")]
    assert {row["samples"] for row in rows} == {"2"}
    assert float(rows[0]["ci95_high"]) == runs[0]["ci95"][1]
    assert float(rows[0]["against.dense.difference"]) == runs[0]["compare"]["difference"]
    assert rows[1]["against.dense.difference"] == ""
    assert float(rows[2]["by_agent.editor.prompt_tokens"]) > 0
    assert rows[0]["by_agent.editor.prompt_tokens"] == ""
    assert cli("eval", "report", "o", "--to", "latex", "--out", "t.tex").out == ""
    tex = Path("t.tex").read_text()
    assert tex.count(r"\\") == 5
    assert "gsm8k & full & 2 & random:llama-tiny & dense & 2 & " in tex


def test_bad_usage_of_the_report(cli) -> None:
    Path("one").mkdir()  # an evaluation of an earlier version, without samples
    Path("one", "config.json").write_text(json.dumps({**CONFIGURED, "modes": ["kvcomm"]}))
    ended = cli("eval", "report", "one", "--plot", "r.pdf")
    assert ended.code == 0, ended.err
    assert "kvcomm  0      –  0%–100%" in ended.out
    assert Path("r.pdf").read_bytes()[:4] == b"%PDF"
    for args, message in {
        "--to word": "--to 'word' is unknown: choose csv or latex",
        "--to csv --json": "choose one",
        "--out x": "--out belongs to --to",
        "--plot r.txt": "--plot r.txt: matplotlib writes ",
        "--to csv --out no/x": "cannot write no/x",
        "--plot no/r.png": "--plot no/r.png: there is no folder no",
    }.items():
        ended = cli("eval", "report", "one", *args.split())
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert message in ended.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--reuse x", "reuse mode 'x' is unknown"),
        ("--compare auto", "is the mode of --reuse"),
        ("--limit 0", "--limit 0: write 1 at least"),
        ("--ids gsm8k-99", "there is no task 'gsm8k-99'"),
        ("--agents 2,x", "--agents '2,x': write a number, or several"),
        ("--agents 2,,3", "write a number, or several"),
        ("--agents 2,3 --graph mine.py", "do not apply to a graph file"),
        ("--rounds 3", "--rounds belongs to a ready-made graph"),
        ("--rounds 3 --folder .", "--rounds belongs to a ready-made graph"),
        ("--reuse exact,x", "reuse mode 'x' is unknown"),
        ("--reuse none.py:mine", "policy file 'none.py' does not exist"),
        ("--gamma 0.1", "--gamma belongs to the mode kvcomm"),
        ("--reuse kvcomm --gamma 2", "gamma 2.0: use 0 to 1"),
        ("--reuse kvcomm --anchors 1", "a pool needs at least 2"),
        ("--limit 10 --warmup 3", "beside the 10 tasks that count there are 2"),
        ("--repeats 0", "--repeats 0: write 1 at least"),
        ("--folder .", "holds no text"),
        ("--folder . --graph chain", "leave --graph out"),
        ("--graph nothing", "graph 'nothing' is unknown"),
    ],
)
def test_bad_usage(cli, data: str, args: str, message: str) -> None:
    ended = cli("eval", "gsm8k", *args.split(), "--data", data)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    assert not Path("runs").exists()
    assert "suite 'nothing' is unknown" in cli("eval", "nothing").err


def test_tasks_that_warm_up_are_others_and_do_not_count(cli, data: str, done) -> None:
    text = "--agents 2 --reuse kvcomm --limit 2 --warmup 3 --gamma 1 --out o --json"
    args = text.split()
    value = json.loads(done(*args))
    assert (value["samples"], value["warmup"], value["complete"]) == (2, 3, True)
    assert value["call_reuse"] > 0  # two anchors of the length are there from the first task on
    samples = read_samples(Path("o", SAMPLES))
    warm = {sample.task for sample in samples if sample.warmup}
    assert warm == {"gsm8k-3", "gsm8k-4", "gsm8k-5"}
    assert {s.task for s in samples if not s.warmup} == {"gsm8k-1", "gsm8k-2"}
    assert json.loads(done(*args)) == value
    changed = cli("eval", "gsm8k", *MODEL, "--data", data, *args, "--anchors", "7")
    assert (changed.code, "anchors was 20, is 7" in changed.err) == (2, True)


OWN = """
from kvcomm.reuse.offsets import FAMILIES, LinearOffsets
from kvcomm.reuse.recipe import Realign, Recipe

FAMILIES["last"] = LinearOffsets
policy = Realign(Recipe("mine", offsets="last", first=4))
"""


def test_a_policy_of_the_users_own(cli, data: str, done, monkeypatch) -> None:
    monkeypatch.setattr("kvcomm.reuse.offsets.FAMILIES", dict(FAMILIES))
    Path("mine.py").write_text(OWN)
    args = (*GRAPH, "--reuse", "mine.py,exact", "--limit", "1", "--out", "o")
    assert list(json.loads(done(*args, "--json"))["modes"]) == ["mine", "exact"]
    Path("mine.py").write_text(OWN.replace("first=4", "first=5"))
    ended = cli("eval", "gsm8k", *MODEL, "--data", data, *args)
    assert (ended.code, "policies was" in ended.err) == (2, True)


def test_chosen_tasks_and_files_to_retrieve_from(tmp_path: Path, done) -> None:
    def samples(*args: str) -> list[Sample]:
        out = "-".join(args)
        done(*args, "--out", out)
        return read_samples(Path(out, SAMPLES))

    asked = samples(*GRAPH, "--ids", "gsm8k-7,gsm8k-2")
    assert sorted(sample.task for sample in asked) == ["gsm8k-2", "gsm8k-7"]
    shuffled = samples(*GRAPH, "--shuffle", "3", "--limit", "4")
    assert {sample.task for sample in shuffled} != {f"gsm8k-{n}" for n in range(1, 5)}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "sums.txt").write_text("Two plus two is four.\n\nSix is even.")
    (sample,) = samples("--folder", "texts", "--limit", "1", "--reuse", "exact")
    assert [call.node for call in sample.calls] == ["reader1", "reader2", "judge"]


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(cli, data: str) -> None:
    how = ("--data", data, "--reuse", "exact", "--concurrent", "2")
    args = ("eval", "gsm8k", *GRAPH, *MODEL, *how)
    assert cli(*args, "--out", "whole").code == 0
    code = f"from kvcomm.cli import main; main({[*args, '--out', 'cut']!r})"
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    path = Path("cut", SAMPLES)
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < 2:
            assert running.poll() is None
            time.sleep(0.005)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    cut = len(read_samples(path))
    assert cli(*args, "--out", "cut").code == 0
    whole, again = (read_samples(Path(name, SAMPLES)) for name in ("whole", "cut"))
    assert 2 <= cut <= len(again) == len(whole) == 12
    read = [{s.key: (s.answer, s.correct) for s in samples} for samples in (whole, again)]
    assert read[0] == read[1]
    summaries = [json.loads(Path(name, "summary.json").read_text()) for name in ("whole", "cut")]
    assert summaries[0]["score"] == summaries[1]["score"]
    assert summaries[0]["samples"] == summaries[1]["samples"]
