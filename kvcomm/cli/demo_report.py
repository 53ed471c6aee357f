"""What the demo shows: its plan, each question as it is done, and per mode times and tokens."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvcomm.cli.demo_team import Question
from kvcomm.graphs import AgentGraph
from kvcomm.runtime.result import Call, Result
from kvcomm.trace.text import plural, seconds, share, shorten

INDENT = (0, 0, 0, 2)
# Divergences below are not told apart.
LEAST = 0.0001
LEGEND = (
    "First token: of the agent that answers, from the moment when its last input is complete; "
    "median. End to end: from the question to the answer, all questions together. Computed: "
    "prompt tokens that were computed; the others were copied from an equal prefix or realigned. "
    "Beside: tokens computed beside the prompts, to prepare KV and for audits (after the answers). "
    "Divergence: from dense, in nats, mean of the audited calls. As dense: answers that are those "
    "of dense word by word. Right: answers that name the fact."
)


@dataclass(frozen=True)
class Played:
    """The results of the demo's graph: for every mode one result a question."""

    graph: AgentGraph
    questions: tuple[Question, ...]
    results: dict[str, list[Result]]


@dataclass(frozen=True)
class Summary:
    """One mode over all questions.

    Times are seconds, those of the last agent and `end_to_end_s` medians, `total_s` a sum.
    `same_as_dense` is a share of the answers, `right` their number. `divergence` is the mean of
    `audits` realigned calls, in nats; None where none was audited.
    """

    runs: int
    calls: int
    ttft_last_agent_s: float
    ttft_mean_s: float
    end_to_end_s: float
    total_s: float
    prompt_tokens: int
    computed_tokens: int
    reused_tokens: int
    extra_tokens: int
    same_as_dense: float
    right: int
    realigned_calls: int
    audits: int
    divergence: float | None
    dense_calls: int
    dense_reasons: dict[str, int]


def summarise(played: Played, mode: str) -> Summary:
    """The figures of one mode."""
    results = played.results[mode]
    calls = [call for result in results for call in result.calls]
    dense = [result.answer for result in played.results["dense"]]
    audits = [
        audit.divergence
        for result in results
        for audit in result.audits
        if audit.used and audit.divergence is not None
    ]
    return Summary(
        runs=len(results),
        calls=len(calls),
        ttft_last_agent_s=median(r.call(played.graph.answer).ttft_s for r in results),
        ttft_mean_s=fmean(call.ttft_s for call in calls),
        end_to_end_s=median(result.totals.wall_s for result in results),
        total_s=sum(result.totals.wall_s for result in results),
        prompt_tokens=sum(result.totals.prompt_tokens for result in results),
        computed_tokens=sum(result.totals.computed_tokens for result in results),
        reused_tokens=sum(result.totals.reused_tokens for result in results),
        extra_tokens=sum(sum(result.totals.extra.values()) for result in results),
        same_as_dense=fmean(
            result.answer == answer for result, answer in zip(results, dense, strict=True)
        ),
        right=sum(
            question.right(result.answer)
            for question, result in zip(played.questions, results, strict=True)
        ),
        realigned_calls=sum(call.total("realigned") > 0 for call in calls),
        audits=len(audits),
        divergence=fmean(audits) if audits else None,
        dense_calls=sum(call.report.dense for call in calls),
        dense_reasons=count_reasons([call for call in calls if call.report.dense]),
    )


def count_reasons(calls: list[Call]) -> dict[str, int]:
    """For how many of these dense calls each kind of reason was given.

    Reasons that differ in figures only are one kind, under the first of them.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for call in calls:
        gate = call.report.gate.removeprefix("dense: ")
        reasons = [re.sub(r"^\{[^}]*\}: ", "", part) for part in gate.split("; ")]
        kinds = {re.sub(r"\d+|(?<=\w)s\b", "", reason): reason for reason in reversed(reasons)}
        for kind, reason in kinds.items():
            first.setdefault(kind, reason)
        counts.update(kinds.keys())
    return {first[kind]: count for kind, count in counts.most_common()}


def to_json(played: Played) -> dict[str, Any]:
    """The object of one graph in `kvcomm demo --json`."""
    return {
        "questions": len(played.questions),
        "modes": {mode: asdict(summarise(played, mode)) for mode in played.results},
        "facts": {question.id: question.fact for question in played.questions},
        "answers": {
            question.id: {mode: results[index].answer for mode, results in played.results.items()}
            for index, question in enumerate(played.questions)
        },
    }


def show_plan(played: Played, model: str, machine: str, tokens: dict[str, int]) -> RenderableType:
    """What is about to be done, and where; `tokens` are the lengths of the texts."""
    *first, last = played.graph.nodes
    texts = " and ".join(f"{name} ({count:,} tokens)" for name, count in tokens.items())
    return Text(
        f"Agents: {', '.join(first)} and {last}. Each reads the whole text, the question, and what "
        f"was written before it.\nTexts: {texts}\nModel: {model} on {machine}"
    )


def show_question(played: Played, index: int) -> RenderableType:
    """One question: what each agent wrote in dense, and what every mode made of it."""
    question = played.questions[index]
    dense = played.results["dense"][index]
    before = sum(other.source == question.source for other in played.questions[:index])
    place = f"\nquestion {index + 1} of {len(played.questions)}: {question.text}"
    again = "read before" if before else "new to all modes"
    parts: list[RenderableType] = [
        Text(place, style="bold"),
        Text(f"text: {question.source}, {again}; the fact to find: {question.fact}\n"),
    ]
    said = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    said.add_column(no_wrap=True)
    said.add_column()
    for node in played.graph.order:
        said.add_row(Text(node, style="bold"), shorten(dense.call(node).text, 400) or "(empty)")
    parts += [Padding(said, INDENT, expand=False), Text()]
    table = _table("mode", "first token", "end to end", "computed", "share")
    table.add_column("answer", no_wrap=True)
    differ: list[RenderableType] = []
    for mode, results in played.results.items():
        result = results[index]
        last = result.call(played.graph.answer)
        same = result.answer == dense.answer
        verdict = "right" if question.right(result.answer) else "wrong"
        if mode != "dense":
            verdict += ", as dense" if same else ", other words"
        totals = result.totals
        table.add_row(
            mode,
            seconds(last.ttft_s),
            seconds(totals.wall_s),
            f"{totals.computed_tokens:,} of {totals.prompt_tokens:,}",
            share(totals.computed_tokens, totals.prompt_tokens),
            verdict,
        )
        if not same:
            differ.append(Text(f"{mode}: {shorten(result.answer, 400) or '(empty)'}"))
    parts.append(Padding(table, INDENT, expand=False))
    parts += [Padding(line, INDENT, expand=False) for line in differ]
    return Group(*parts)


def show_table(played: Played) -> RenderableType:
    """One line a mode, what its columns are, and why `kvcomm` calls were dense."""
    columns = ("first\ntoken", "end to\nend", "tokens\ncomputed", "\nshare", "\nbeside")
    table = _table("\nmode", *columns, "diver-\ngence", "\nas dense", "\nright")
    table.box, table.show_edge, table.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    notes: list[RenderableType] = []
    for mode in played.results:
        summary = summarise(played, mode)
        table.add_row(
            mode,
            seconds(summary.ttft_last_agent_s),
            seconds(summary.total_s),
            f"{summary.computed_tokens:,}",
            share(summary.computed_tokens, summary.prompt_tokens),
            f"{summary.extra_tokens:,}",
            _nats(summary.divergence),
            f"{round(summary.same_as_dense * summary.runs)} of {summary.runs}",
            f"{summary.right} of {summary.runs}",
        )
        if mode == "kvcomm":
            notes += _why_dense(summary)
    nodes, questions = len(played.graph.nodes), len(played.questions)
    title = f"\n{plural(questions, 'question')}, {plural(nodes, 'call')} each"
    return Group(Text(title, style="bold"), table, Text(f"\n{LEGEND}"), *notes)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True, min_width=6)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _nats(divergence: float | None) -> str:
    if divergence is None:
        return ""
    return f"{divergence:.4f}" if divergence >= LEAST else f"<{LEAST}"


def _why_dense(summary: Summary) -> list[RenderableType]:
    if not summary.dense_calls:
        return []
    head = (
        f"\nkvcomm: {summary.dense_calls} of {plural(summary.calls, 'call')} were dense: too few "
        "earlier texts to go by (anchors)."
    )
    reasons = [
        Text(f"  {plural(count, 'call')}, such as: {reason}")
        for reason, count in summary.dense_reasons.items()
    ]
    return [Text(head), *reasons]
