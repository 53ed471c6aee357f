"""`kvcomm run` with a small random model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcomm.engine.local import LocalEngine
from tests.conformance.fake_server import FakeServer

MODEL = ("--model", "random:llama-tiny", "--state", "none", "--max-tokens", "6")
SERVED = ("--engine", "openai", "--base-url")


def test_json_is_one_object_on_stdout_and_nothing_else(cli) -> None:
    ended = cli("run", "What is 6 * 7?", *MODEL, "--reuse", "exact", "--json")
    assert ended.code == 0
    value = json.loads(ended.out)
    keys = "answer model mode calls tools audits totals usage trace warnings"
    assert set(value) == set(keys.split())
    assert value["mode"] == "exact"
    assert [call["node"] for call in value["calls"]] == ["solver", "critic", "editor"]
    for call in value["calls"]:
        assert call["prompt_tokens"] == sum(segment["tokens"] for segment in call["segments"])
        assert call["output_tokens"] <= 6
        assert call["stop"] == ("length" if call["output_tokens"] == 6 else "stop")
        for segment in call["segments"]:
            parts = segment["computed"] + segment["prefix"] + segment["realigned"]
            assert parts == segment["tokens"]
    assert value["calls"][-1]["text"].strip() == value["answer"]
    assert value["totals"]["output_tokens"] == sum(c["output_tokens"] for c in value["calls"])
    assert Path(value["trace"], "trace.jsonl").is_file()
    assert "critic done: 6 tokens in" in ended.err
    ahead = sum(segment["ahead"] for call in value["calls"] for segment in call["segments"])
    assert ahead
    text = cli("run", "What is 6 * 7?", *MODEL, "--reuse", "exact", "--out", "here").out
    assert text.startswith(value["answer"].split("\n")[0][:10])
    assert "TTFT s" in text
    assert " of them ahead), 0 reused" in text
    assert text.rstrip().endswith("trace: kvcomm trace show here")
    assert " of them ahead" not in cli("run", "x", *MODEL, "--reuse", "dense").out
    again = cli("run", "x", *MODEL, "--out", "here")
    assert again.code == 2
    assert "already holds a trace" in again.err


@pytest.mark.parametrize("mode", ["auto", "kvcomm", "dense"])
def test_every_mode_runs_a_debate(cli, mode: str) -> None:
    ended = cli("run", "Hello?", *MODEL, "--graph", "debate", "--reuse", mode, "--json")
    value = json.loads(ended.out)
    assert (len(value["calls"]), value["mode"]) == (5, mode)
    assert mode != "dense" or value["totals"]["reused_tokens"] == 0


def test_a_graph_file_with_another_input(cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kvcomm.agents import Agent\nfrom kvcomm.graphs import AgentGraph\n"
        "reader = Agent('reader', prompt='{passage}\\n\\n{task}')\n"
        "graph = AgentGraph([reader], inputs=('task', 'passage'))\n"
    )
    given = ("--input", "passage=Water boils at 100 degrees.")
    ended = cli("run", "At what?", *MODEL, "--graph", "mine.py:graph", *given, "--json")
    names = [segment["name"] for segment in json.loads(ended.out)["calls"][0]["segments"]]
    assert names.index("passage") < names.index("task")
    missing = cli("run", "At what?", *MODEL, "--graph", "mine.py")
    assert missing.code == 2
    assert missing.err == "error: the graph has an input `passage`: add --input passage=TEXT\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((" \n",), "the task is empty"),
        (("x", "--graph", "ring"), "graph 'ring' is unknown"),
        (("x", "--agents", "0"), "at least 1 agent"),
        (("x", "--reuse", "magic"), "reuse mode 'magic' is unknown: choose one of auto, exact"),
        (("x", "--model", "no-such-model"), "no-such-model"),
        (("x", "--model", "random:none"), "random shape 'none' is unknown"),
        (("x", "--input", "text"), "write NAME=TEXT"),
        (("x", "--input", "place=here"), "the graph has no input `place`"),
        (("x", "--engine", "openai"), "--base-url http://HOST:PORT/v1"),
        (("x", "--engine", "cloud"), "choose one of local, openai"),
        (("x", "--base-url", "http://x"), "--base-url belongs to --engine openai"),
        (("x", "--replicas", "2"), "--replicas belongs to --engine ray"),
        (("x", *SERVED, "http://x", "--dtype", "float32"), "--dtype belongs to --engine local"),
        (("x", *SERVED, "http://127.0.0.1:9"), "cannot be reached"),
        (("x", *SERVED, "nowhere"), "is no address"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    cli, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("KVCOMM_BASE_URL", raising=False)
    ended = cli("run", *argv)
    assert ended.code == 2
    assert ended.out == ""
    last = ended.err.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_served_model_answers(cli, engine_of: Callable[..., LocalEngine], monkeypatch) -> None:
    with FakeServer(engine_of("random:llama-tiny", "float64")) as server:
        monkeypatch.setenv("KVCOMM_BASE_URL", server.url)
        asked = ("run", "Hello?", "--max-tokens", "6", "--engine", "openai", "--json")
        value = json.loads(cli(*asked, "--reuse", "exact").out)
        assert value["model"] == "tiny"
        assert json.loads(cli(*asked, "--reuse", "dense").out)["answer"] == value["answer"]
        refused = cli(*asked, "--reuse", "kvcomm")
    assert refused.code == 2
    assert "use --reuse exact or dense (or auto)" in refused.err


@pytest.mark.parametrize("question", ["-5 + 3 = ?", "--why is it so"])
def test_a_question_that_begins_with_a_dash_gets_a_hint(cli, question: str) -> None:
    ended = cli("run", question, *MODEL)
    assert ended.code == 2
    said = " ".join(ended.err.replace("│", " ").split())
    assert "use -- before a question that begins with -" in said
    assert f'kvcomm run -- "{question}"' in said
    # An option that is misspelled gets none.
    assert "use --" not in cli("run", "Hello?", "--grahp", "full").err
    assert cli("run", *MODEL, "--", question).code == 0


OWN = """
from kvcomm.agents import Agent
from kvcomm.graphs import chain
left = [1]
def post(text):
    if left:
        left.pop()
        raise ValueError('no luck')
    return text
graph = chain(Agent('a', prompt='{task}', post=post, retries=RETRIES, backoff_s=0))
"""


def test_a_failed_run_says_where_its_trace_is_and_a_retry_is_a_warning(cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN.replace("RETRIES", "0"))
    ended = cli("run", "Hello?", *MODEL, "--graph", "mine.py", "--out", "here")
    assert ended.code == 1
    *_, trace, error = ended.err.strip().split("\n")
    assert trace == "its trace: kvcomm trace show here"
    assert error.startswith("error: node `a` failed")
    (tmp_path / "mine.py").write_text(OWN.replace("RETRIES", "1"))
    ended = cli("run", "Hello?", *MODEL, "--graph", "mine.py")
    assert ended.code == 0
    (line,) = [line for line in ended.err.split("\n") if line.startswith("warning: ")]
    assert line == "warning: `a` failed and was tried again: ValueError: no luck"
