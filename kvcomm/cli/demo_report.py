"""What the demo found: per mode times, tokens and agreement with dense."""

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

from kvcomm.graphs import AgentGraph
from kvcomm.runtime.result import Call, Result
from kvcomm.tasks import Task
from kvcomm.trace.text import number, plural, seconds, share, shorten

INDENT = (0, 0, 0, 2)
LEGEND = (
    "TTFT last: time to first token of the agent that answers, median over the questions. TTFT "
    "mean: over all calls. End to end: median time of a question. Computed and reused: tokens of "
    "all prompts. Extra: tokens computed beside the prompts, for base KV. = dense: answers that "
    "are word for word those of the dense mode."
)


@dataclass(frozen=True)
class Played:
    """The results of one graph: for every mode one result a task."""

    graph: AgentGraph
    tasks: list[Task]
    results: dict[str, list[Result]]


@dataclass(frozen=True)
class Summary:
    """One mode over all tasks. Times are seconds; `same_as_dense` is a share of the answers."""

    runs: int
    calls: int
    ttft_last_agent_s: float
    ttft_mean_s: float
    end_to_end_s: float
    prompt_tokens: int
    computed_tokens: int
    reused_tokens: int
    extra_tokens: int
    same_as_dense: float
    dense_calls: int
    dense_reasons: dict[str, int]


def summarise(played: Played, mode: str) -> Summary:
    """The figures of one mode: medians for the last agent and for the whole, means over calls."""
    results = played.results[mode]
    calls = [call for result in results for call in result.calls]
    dense = [result.answer for result in played.results["dense"]]
    return Summary(
        runs=len(results),
        calls=len(calls),
        ttft_last_agent_s=median(r.call(played.graph.answer).ttft_s for r in results),
        ttft_mean_s=fmean(call.ttft_s for call in calls),
        end_to_end_s=median(result.totals.wall_s for result in results),
        prompt_tokens=sum(result.totals.prompt_tokens for result in results),
        computed_tokens=sum(result.totals.computed_tokens for result in results),
        reused_tokens=sum(result.totals.reused_tokens for result in results),
        extra_tokens=sum(sum(result.totals.extra.values()) for result in results),
        same_as_dense=fmean(
            result.answer == answer for result, answer in zip(results, dense, strict=True)
        ),
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
        "questions": len(played.tasks),
        "modes": {mode: asdict(summarise(played, mode)) for mode in played.results},
        "answers": {
            task.id: {mode: results[index].answer for mode, results in played.results.items()}
            for index, task in enumerate(played.tasks)
        },
    }


def show_question(played: Played, index: int) -> RenderableType:
    """One question: what each agent said, and per mode how its prompt was obtained."""
    task = played.tasks[index]
    place = f"{played.graph.name}, question {index + 1} of {len(played.tasks)}"
    title = Text.assemble("\n", (place, "bold"))
    parts: list[RenderableType] = [
        title,
        Text(f"{task.input} (answer: {task.target})"),
    ]
    dense = played.results["dense"][index]
    for node in played.graph.order:
        message = dense.call(node).text
        parts.append(Text.assemble("\n", (node, "bold")))
        parts.append(Padding(Text(shorten(message) or "(empty)"), INDENT, expand=False))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("mode", min_width=6)
        for name in ("prompt", "computed", "prefix", "realigned", "ahead", "TTFT s"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("message", no_wrap=True)
        for mode, results in played.results.items():
            call = results[index].call(node)
            same = "as dense" if call.text == message else "differs"
            table.add_row(
                mode,
                f"{call.report.prompt_tokens:,}",
                *(f"{call.total(f):,}" for f in ("computed", "prefix", "realigned", "ahead")),
                number(call.ttft_s),
                "" if mode == "dense" else same,
            )
        parts.append(Padding(table, INDENT, expand=False))
    return Group(*parts)


def show_table(played: Played) -> RenderableType:
    """One line a mode, and why `kvcomm` calls were dense."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("mode")
    for name in ("TTFT last", "TTFT mean", "end to end", "computed", "reused", "extra", "= dense"):
        table.add_column(name, justify="right", no_wrap=True)
    notes: list[RenderableType] = []
    for mode in played.results:
        summary = summarise(played, mode)
        table.add_row(
            mode,
            seconds(summary.ttft_last_agent_s),
            seconds(summary.ttft_mean_s),
            seconds(summary.end_to_end_s),
            f"{summary.computed_tokens:,}",
            f"{summary.reused_tokens:,}",
            f"{summary.extra_tokens:,}",
            share(round(summary.same_as_dense * summary.runs), summary.runs),
        )
        if mode == "kvcomm":
            notes += _why_dense(summary)
    nodes, questions = len(played.graph.nodes), len(played.tasks)
    title = f"\n{played.graph.name}: {plural(questions, 'question')}, {plural(nodes, 'call')} each"
    return Group(Text(title, style="bold"), table, *notes)


def _why_dense(summary: Summary) -> list[RenderableType]:
    head = f"kvcomm: {summary.dense_calls} of {plural(summary.calls, 'call')} were dense"
    reasons = [
        Text(f"  {plural(count, 'call')}, such as: {reason}")
        for reason, count in summary.dense_reasons.items()
    ]
    return [Text(head), *reasons]
