"""The calls of a trace: one line each, and below it each call's segments with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from kvcomm.trace.events import Audited, CallFinished, CallInterrupted, SegmentStep
from kvcomm.trace.run import SOURCES, CallView, TraceRun
from kvcomm.trace.tables import plain_table, ruled_table
from kvcomm.trace.text import number, plain, plural, seconds, shorten

# Below this width the gate's words are left to the section of each call.
WIDE = 120
# From this width on there is a bar beside the numbers.
ROOMY, BAR = 96, 12
COLUMNS = ("prompt", "comp.", "prefix", "realign", "ahead", "TTFT s", "decode s", "out")
# As many lines as a reader looks through.
MOST = 500
# One colour for every source of a token; the words beside them say the same.
COLOURS = {"computed": "yellow", "prefix": "green", "realigned": "cyan"}


@dataclass
class CallTable:
    """One line a call: prompt tokens and how they were obtained, TTFT, decoding, output tokens.

    Where the terminal is wide enough there are bars, and the gate's words.
    """

    views: Sequence[CallView]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide, roomy = options.max_width >= WIDE, options.max_width >= ROOMY
        slowest = max((view.call.ttft_s for view in self.views if view.call), default=0.0)
        more = [*(["TTFT"] if roomy else []), *(["~gate"] if wide else [])]
        table = ruled_table("~node", *(f">{name}" for name in COLUMNS), *more)
        for view in self.views[:MOST]:
            call, out = view.call, view.output_tokens
            bar = "▓" * max(round(BAR * call.ttft_s / slowest), 1) if call and slowest > 0 else ""
            table.add_row(
                Text(view.title),
                f"{view.prompt_tokens:,}",
                *(f"{count:,}" for count in view.tokens.values()),
                number(call.ttft_s) if call else "–",
                number(call.decode_s) if call else "–",
                "–" if out is None else f"{out:,}",
                *([bar] if roomy else []),
                *([Text(plain(view.how))] if wide else []),
            )
        yield table
        if len(self.views) > MOST:
            yield Text(f" and {len(self.views) - MOST:,} more", style="dim")


def show_call(
    run: TraceRun, view: CallView, *, prompt: bool = False, whole: bool = False, times: bool = False
) -> RenderableType:
    """One call: what it heard, its segments, its message.

    `prompt` adds what was read, `times` the engine's phases; `whole` leaves the message uncut.
    """
    title = Text(view.title, style="bold")
    if senders := run.info(view.node).senders:
        title.append(f"  hears {', '.join(senders)}", style="not bold")
    gate = view.how if view.call else view.interrupted.gate if view.interrupted else ""
    parts: list[RenderableType] = [Text(plain(gate))] if gate else []
    if view.steps:
        parts.append(_segments(view.steps, run.counts))
    if view.call and times:
        parts.append(Text(_times(view.call)))
    if view.steps and prompt:
        parts.append(Padding(show_prompt(run, view.steps), (1, 0), expand=False))
    parts += [Text(show_audit(audit)) for audit in view.audits]
    if sent := view.message:
        why = plain(sent.reason).removeprefix("text only: ")
        parts.append(Text(f"sends {sent.tokens:,} tokens, {sent.behind}" + (why and f" ({why})")))
        parts.append(_said(sent.text, whole))
    if cut := view.interrupted:
        parts.append(Text(_interrupted(cut), style="yellow"))
        if cut.text:
            parts.append(_said(cut.text, whole))
    parts += [Text(line, style="yellow") for line in _trouble(run, view)]
    return Group("", title, *(Padding(part, (0, 0, 0, 2), expand=False) for part in parts))


def show_audit(audit: Audited) -> str:
    """What was measured behind one call."""
    if audit.error:
        return f"{audit.what} failed: {plain(audit.error)}"
    if audit.divergence is None:
        return f"{audit.what}: {audit.tokens:,} tokens"
    bound = "" if audit.bound is None else f" (bound {audit.bound:.4f}, target {audit.target:g})"
    first, agreement = audit.first_divergence or 0, audit.top1_agreement or 0
    return (
        f"{audit.what}: divergence {audit.divergence:.4f}{bound}, at the first token {first:.4f}, "
        f"top-1 agreement {agreement:.0%}, {'same' if audit.same_text else 'another'} text"
    )


def _segments(steps: Sequence[SegmentStep], columns: Sequence[str]) -> RenderableType:
    """Segments in prompt order; `columns` are the counts worth a column beside the tokens."""
    right = (f">{name}" for name in ("tokens", *columns))
    table = plain_table("~segment", *right, "~reason", padding=(0, 1), header_style="dim")
    table.columns[0].min_width, table.columns[-1].ratio = 9, 1
    for step in steps:
        counts = (f"{getattr(step, column):,}" for column in columns)
        table.add_row(Text(step.label), f"{step.tokens:,}", *counts, Text(plain(step.reason)))
    return table


def show_prompt(run: TraceRun, steps: Sequence[SegmentStep]) -> RenderableType:
    """The text under each segment's sources, in the colour of most of its tokens.

    Nothing is left out: `↵` stands where the prompt has a line break.
    """
    parts: list[RenderableType] = []
    for step in steps:
        text = run.text(step)
        if text is None:
            return Text("this trace holds no texts of prompts", style="dim")
        body = plain(text).replace("\n", "↵\n").removesuffix("\n")
        parts.append(Text.assemble((step.label, "bold"), "  ", sources(step)))
        parts.append(Padding(Text(body, COLOURS[step.source]), (0, 0, 0, 2), expand=False))
    return Group(*parts)


def sources(step: SegmentStep) -> str:
    """`1 computed, 23 realigned (24 ahead)`."""
    counts = ((getattr(step, name), name) for name in SOURCES)
    ahead = f" ({step.ahead:,} ahead)" if step.ahead else ""
    return ", ".join(f"{count:,} {name}" for count, name in counts if count) + ahead


def _said(text: str, whole: bool) -> RenderableType:
    """What a node wrote: as it is, or its beginning on one line."""
    body = plain(text) if whole else shorten(text)
    return Padding(Text(body or "(empty)", style="italic"), (0, 0, 0, 2), expand=False)


def _interrupted(cut: CallInterrupted) -> str:
    if cut.ready_at is None:
        where = "while it waited for its inputs"
    elif cut.first_token_at is None:
        where = "before its first token"
    else:
        where = f"after {plural(cut.output_tokens, 'token')}"
    return f"interrupted {where}, at {seconds(cut.finished_at)}"


def _times(call: CallFinished) -> str:
    lines = [
        f"row opened at {seconds(call.opened_at)}, inputs complete at {seconds(call.ready_at)}, "
        f"first token at {seconds(call.first_token_at)}, done at {seconds(call.finished_at)} "
        f"({'at a stop' if call.stop == 'stop' else 'at the token limit'})",
        ", ".join(f"{name} {seconds(value)}" for name, value in call.phases.items()),
    ]
    if call.base_tokens:
        lines.append(f"{call.base_tokens:,} base tokens computed standalone")
    if call.query_tokens:
        lines.append(f"{call.query_tokens:,} tokens computed first to see what they attend to")
    if call.redone_tokens:
        lines.append(f"{call.redone_tokens:,} tokens computed again after the row was dropped")
    return "\n".join(filter(None, lines))


def retries(run: TraceRun, node: str, attempt: int | None = None) -> list[str]:
    """Why an attempt was given up; of a tool, all of them."""
    return [
        f"attempt {retry.attempt} failed: {plain(retry.error)}; tried again after "
        f"{seconds(retry.wait_s)}"
        for retry in run.retries_of(node, attempt)
    ]


def _trouble(run: TraceRun, view: CallView) -> list[str]:
    lines = retries(run, view.node, view.attempt)
    last = run.attempts.get(view.node) == view.attempt
    lines += [f"failed: {plain(e.said)}" for e in run.errors if e.node == view.node and last]
    if not lines and not view.call and not view.interrupted:
        lines.append("this call did not finish")
    return lines
