"""The table of evaluations: what differs has a column, and 80 columns are enough."""

from pathlib import Path
from typing import Any

import pytest

from kvcomm.cli.eval_table import labels_of, show, times_in_words, to_latex
from kvcomm.cli.output import console
from kvcomm.tasks.summary import whole_summary
from tests.tasks.test_record import config
from tests.tasks.test_summary import call, sample


def value(**fields: Any) -> dict[str, Any]:
    modes = ("kvcomm", "dense")
    samples = [sample("a", mode == "dense", mode, calls=[call("judge2")]) for mode in modes]
    made = config(modes=modes, tasks=1, agent_count=2, **fields)
    return whole_summary(made, samples, Path("out"))


def printed(values: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], **how: Any) -> str:
    console().print(show(values, **how))
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_what_differs_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    values = [value(), value(gamma=0.9, warmup=1)]
    lines = printed(values, capsys).splitlines()
    assert lines[0] == "mine; graph chain; 2 agents; m; V 20"
    assert lines[3].split()[:3] == ["γ", "warm-up", "mode"]
    assert lines[6].split()[:3] == ["0.9", "1", "kvcomm"]
    assert "γ 0.9, 1 task of warm-up:" in lines
    assert labels_of(values) == ["γ 0.3", "γ 0.9, 1 task of warm-up"]
    assert labels_of(values[:1]) == [""]
    tex = to_latex(values)
    assert r"\begin{tabular}{llrllllrrrrr}" in tex
    assert r"Model & $\gamma$ & Warm-up & Mode & $n$" in tex
    assert "m & 0.9 & 1 & kvcomm & 1 & " in tex
    assert r"Model & Mode & $n$" in to_latex([value()])
    for names in (["one", "two"], ["s0/one", "s1/one"]):  # alike but for their folders
        assert labels_of([{**value(), "out": f"runs/{name}"} for name in names]) == names


def test_what_is_not_finished_says_so_and_has_no_score(capsys) -> None:
    assert "not finished" not in printed([value()], capsys)
    begun = whole_summary(config(modes=("dense",), tasks=1), [], Path("out"))
    out = printed([begun], capsys)
    assert "not finished" in out
    assert [line.split() for line in out.splitlines() if line.startswith("dense")] == [
        ["dense", "0", "–", "0%–100%", "–", "–", "–"]
    ]
    assert r" & dense & 0 & -- & -- & -- & -- \\" in to_latex([begun])


def test_long_names_are_wrapped_and_numbers_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    values = [
        value(model="meta-llama/Llama-3.1-8B-Instruct", graph="debate", suite="humaneval"),
        value(model="Qwen/Qwen2.5-Coder-7B-Instruct", graph="full", suite="code-mini"),
    ]
    out = printed(values, capsys, by_agent=True)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.count("60.0%") == 8  # tokens not computed, and realigned, of every mode
    assert out.count("0.500") == 8
    assert "…" not in out
    for whole in ("kvcomm", "judge2", "TTFT s"):
        assert out.count(whole) >= 2


@pytest.mark.parametrize(
    ("ratio", "interval", "words"),
    [
        (1.44, (1.2, 1.8), "1.4× shorter (95 % 1.2–1.8×)"),
        (0.625, (0.5, 0.8), "1.6× longer (95 % 1.2–2.0×)"),
        (1.1, (0.8, 1.3), "1.1× shorter (95 % 1.2× longer to 1.3× shorter)"),
        (0.8, (0.5, 1.25), "1.2× longer (95 % 1.2× shorter to 2.0× longer)"),
        (2.0, None, "2.0× shorter"),
    ],
)
def test_no_time_is_below_once(
    ratio: float, interval: tuple[float, float] | None, words: str
) -> None:
    assert times_in_words(ratio, interval) == words
