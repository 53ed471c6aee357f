"""What the demo shows: its plan, each question as it is done, and per mode times and tokens."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from kvcomm.cli.demo_team import Question
from kvcomm.graphs import AgentGraph
from kvcomm.runtime.result import Call, Result
from kvcomm.trace.tables import facts, ruled_table
from kvcomm.trace.text import plural, seconds, share, shorten

INDENT = (0, 0, 0, 2)
# Of a question's table, and of the last one.
COLUMNS = ("first token", "end to end", "computed", "share")
TOTALS = (
    *("first\ntoken", "end to\nend", "tokens\ncomputed", "\nshare", "\nbeside"),
    *("diver-\ngence", "\nas dense", "\nright"),
)
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


def summarise(played: Played, mode: str) -> dict[str, Any]:
    """The figures of one mode over all questions.

    Times are seconds, those of the last agent and `end_to_end_s` medians, `total_s` a sum.
    `same_as_dense` is a share of the answers, `right` their number. `divergence` is the mean of
    `audits` realigned calls, in nats; None where none was audited.
    """
    results = played.results[mode]
    totals = {
        name: sum(getattr(result.totals, name) for result in results)
        for name in ("prompt_tokens", "computed_tokens", "reused_tokens")
    }
    beside = [n for result in results for n in result.totals.extra.values()]
    beside += [audit.tokens for result in results for audit in result.audits]
    calls = [call for result in results for call in result.calls]
    dense = [call for call in calls if call.report.dense]
    same = [r.answer == d.answer for r, d in zip(results, played.results["dense"], strict=True)]
    right = [q.right(r.answer) for q, r in zip(played.questions, results, strict=True)]
    audits = [
        a.divergence for r in results for a in r.audits if a.used and a.divergence is not None
    ]
    return {
        "runs": len(results),
        "calls": len(calls),
        "ttft_last_agent_s": median(r.call(played.graph.answer).ttft_s for r in results),
        "ttft_mean_s": fmean(call.ttft_s for call in calls),
        "end_to_end_s": median(result.totals.wall_s for result in results),
        "total_s": sum(result.totals.wall_s for result in results),
        **totals,
        "extra_tokens": sum(beside),
        "same_as_dense": fmean(same),
        "right": sum(right),
        "realigned_calls": sum(call.total("realigned") > 0 for call in calls),
        "audits": len(audits),
        "divergence": fmean(audits) if audits else None,
        "dense_calls": len(dense),
        "dense_reasons": count_reasons(dense),
    }


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
        "modes": {mode: summarise(played, mode) for mode in played.results},
        "facts": {question.id: question.fact for question in played.questions},
        "answers": {
            question.id: {mode: results[index].answer for mode, results in played.results.items()}
            for index, question in enumerate(played.questions)
        },
    }


def show_plan(played: Played, model: str, machine: str, tokens: dict[str, int]) -> Text:
    """What is about to be done, and where; `tokens` are the lengths of the texts."""
    *first, last = played.graph.nodes
    texts = " and ".join(f"{name} ({count:,} tokens)" for name, count in tokens.items())
    return Text(
        f"Agents: {', '.join(first)} and {last}. Each reads the whole text, the question, and what "
        f"was written before it.\nTexts: {texts}\nModel: {model} on {machine}"
    )


def show_question(played: Played, index: int) -> RenderableType:
    """One question: what each agent wrote in dense, and what every mode made of it."""
    question, dense = played.questions[index], played.results["dense"][index]
    before = any(other.source == question.source for other in played.questions[:index])
    again = "read before" if before else "new to all modes"
    texts = ((node, shorten(dense.call(node).text, 400)) for node in played.graph.order)
    said = facts((node, text or "(empty)") for node, text in texts)
    table = ruled_table("mode", *(f">{name}" for name in COLUMNS), "answer")
    differ: list[RenderableType] = []
    for mode, results in played.results.items():
        result, totals = results[index], results[index].totals
        judged = "right" if question.right(result.answer) else "wrong"
        if result.answer != dense.answer:
            differ.append(Text(f"{mode}: {shorten(result.answer, 400) or '(empty)'}"))
            judged += ", other words"
        elif mode != "dense":
            judged += ", as dense"
        table.add_row(
            mode,
            seconds(result.call(played.graph.answer).ttft_s),
            seconds(totals.wall_s),
            f"{totals.computed_tokens:,} of {totals.prompt_tokens:,}",
            share(totals.computed_tokens, totals.prompt_tokens),
            judged,
        )
    return Group(
        Text(f"\nquestion {index + 1} of {len(played.questions)}: {question.text}", style="bold"),
        Text(f"text: {question.source}, {again}; the fact to find: {question.fact}\n"),
        *(Padding(part, INDENT, expand=False) for part in (said, "", table, *differ)),
    )


def show_table(played: Played) -> RenderableType:
    """One line a mode, what its columns are, and why `kvcomm` calls were dense."""
    table = ruled_table("\nmode", *(f">{name}" for name in TOTALS))
    for mode in played.results:
        found = summarise(played, mode)
        runs, divergence = found["runs"], found["divergence"]
        table.add_row(
            mode,
            seconds(found["ttft_last_agent_s"]),
            seconds(found["total_s"]),
            f"{found['computed_tokens']:,}",
            share(found["computed_tokens"], found["prompt_tokens"]),
            f"{found['extra_tokens']:,}",
            "" if divergence is None else _nats(divergence),
            f"{round(found['same_as_dense'] * runs)} of {runs}",
            f"{found['right']} of {runs}",
        )
    nodes, questions = len(played.graph.nodes), len(played.questions)
    title = f"\n{plural(questions, 'question')}, {plural(nodes, 'call')} each"
    return Group(Text(title, style="bold"), table, Text(f"\n{LEGEND}"), *_why_dense(played))


def _nats(divergence: float) -> str:
    return f"{divergence:.4f}" if divergence >= 0.0001 else "<0.0001"


def _why_dense(played: Played) -> list[RenderableType]:
    found = summarise(played, "kvcomm")
    if not found["dense_calls"]:
        return []
    lines = [
        f"\nkvcomm: {found['dense_calls']} of {plural(found['calls'], 'call')} were dense: too few "
        "earlier texts to go by (anchors)."
    ]
    for reason, count in found["dense_reasons"].items():
        lines.append(f"  {plural(count, 'call')}, such as: {reason}")
    return [Text(line) for line in lines]
