"""The calls of a trace: one line each, and below it each call's segments with their reasons."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvcomm.trace.events import Audited, CallFinished, CallInterrupted, MessageSent, SegmentStep
from kvcomm.trace.read import COUNTS, CallView, TraceRun
from kvcomm.trace.show_prompt import show_prompt
from kvcomm.trace.text import number, plain, plural, seconds, shorten

# Below this width the gate's words are left to the section of each call.
WIDE = 120
# From this width on there is a bar beside the numbers.
ROOMY, BAR = 96, 12
# As many lines as a reader looks through.
MOST = 500


class _ByWidth:
    """The call table: with the gate's words in it where the terminal is wide enough."""

    def __init__(self, views: Sequence[CallView]) -> None:
        self._views = views

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide, roomy = options.max_width >= WIDE, options.max_width >= ROOMY
        slowest = max((view.call.ttft_s for view in self._views if view.call), default=0.0)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("node", overflow="fold", min_width=6)
        for name in ("prompt", "comp.", "prefix", "realign", "ahead", "TTFT s", "decode s", "out"):
            table.add_column(name, justify="right", no_wrap=True)
        if roomy:
            table.add_column("TTFT", no_wrap=True)
        if wide:
            table.add_column("gate", overflow="fold")
        for view in self._views[:MOST]:
            bar = [_bar(view, slowest)] if roomy else []
            table.add_row(*_row(view), *bar, *([_gate(view)] if wide else []))
        yield table
        if len(self._views) > MOST:
            yield Text(f" and {len(self._views) - MOST:,} more", style="dim")


def show_calls(views: Sequence[CallView]) -> RenderableType:
    """One line a call: prompt tokens and how they were obtained, TTFT, decoding, output tokens."""
    return _ByWidth(views)


def show_call(
    run: TraceRun,
    view: CallView,
    *,
    prompt: bool = False,
    whole: bool = False,
    times: bool = False,
) -> RenderableType:
    """One call: what it heard, its segments, its message.

    `prompt` adds what was read, `times` the engine's phases; `whole` leaves the message uncut.
    """
    senders = run.senders.get(view.node)
    title = Text(_title(view), style="bold")
    if senders:
        title.append(f"  hears {', '.join(senders)}", style="not bold")
    parts: list[RenderableType] = []
    if (done := view.call or view.interrupted) and (how := _how(done)):
        parts.append(Text(how))
    if view.steps:
        parts.append(show_segments(view.steps, run.counts))
    if view.call and times:
        parts.append(Text(_times(view.call)))
    if view.steps and prompt:
        parts.append(Padding(show_prompt(run, view.steps), (1, 0), expand=False))
    parts += [Text(show_audit(audit)) for audit in view.audits]
    if view.message:
        parts += show_message(view.message, whole=whole)
    if view.interrupted:
        parts += show_interrupted(view.interrupted, whole=whole)
    parts += [Text(line, style="yellow") for line in _trouble(run, view)]
    return Group("", title, *(Padding(part, (0, 0, 0, 2), expand=False) for part in parts))


def show_audit(audit: Audited) -> str:
    """What was measured behind one call."""
    what = f"audit of {audit.level}" if audit.used else f"probe of {audit.level}"
    if audit.divergence is None:
        return f"{what} failed: {plain(audit.error)}"
    bound = "" if audit.bound is None else f" (bound {audit.bound:.4f}, target {audit.target:g})"
    return (
        f"{what}: divergence {audit.divergence:.4f}{bound}, at the first token "
        f"{audit.first_divergence:.4f}, top-1 agreement {audit.top1_agreement:.0%}, "
        f"{'same' if audit.same_text else 'another'} text"
    )


def show_segments(steps: Sequence[SegmentStep], columns: Sequence[str] = COUNTS) -> RenderableType:
    """Segments in prompt order; `columns` are the counts worth a column beside the tokens."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("segment", overflow="fold", min_width=9)
    table.add_column("tokens", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", ratio=1)
    for step in steps:
        name = step.label
        counts = [f"{getattr(step, column):,}" for column in columns]
        table.add_row(Text(name), f"{step.tokens:,}", *counts, Text(plain(step.reason)))
    return table


def show_message(message: MessageSent, *, whole: bool = False) -> list[RenderableType]:
    """The message's text, and what lies behind it."""
    kv = f"KV behind {message.covered:,} of them" if message.handle else "text only"
    lineage = "exact" if message.exact else "approximate"
    facts = [kv, lineage] if message.handle else [kv]
    why = plain(message.reason).removeprefix("text only: ")
    reason = f" ({why})" if why else ""
    line = Text(f"sends {message.tokens:,} tokens, {', '.join(facts)}{reason}")
    body = plain(message.text) if whole else shorten(message.text)
    return [line, Padding(Text(body or "(empty)", style="italic"), (0, 0, 0, 2), expand=False)]


def show_interrupted(cut: CallInterrupted, *, whole: bool = False) -> list[RenderableType]:
    """How far a call had come, and what it had written."""
    if cut.ready_at is None:
        where = "while it waited for its inputs"
    elif cut.first_token_at is None:
        where = "before its first token"
    else:
        where = f"after {plural(cut.output_tokens, 'token')}"
    line = Text(f"interrupted {where}, at {seconds(cut.finished_at)}", style="yellow")
    if not cut.text:
        return [line]
    body = plain(cut.text) if whole else shorten(cut.text)
    return [line, Padding(Text(body, style="italic"), (0, 0, 0, 2), expand=False)]


def _title(view: CallView) -> str:
    return view.node if view.attempt == 1 else f"{view.node} (attempt {view.attempt})"


def _row(view: CallView) -> list[RenderableType]:
    call = view.call
    times = (number(call.ttft_s), number(call.decode_s)) if call else ("–", "–")
    out = "–" if view.output_tokens is None else f"{view.output_tokens:,}"
    return [
        Text(_title(view)),
        f"{view.prompt_tokens:,}",
        *(f"{count:,}" for count in view.tokens.values()),
        *times,
        out,
    ]


def _bar(view: CallView, slowest: float) -> str:
    """The time to first token beside that of the slowest call."""
    if view.call is None or slowest <= 0:
        return ""
    return "▓" * max(round(BAR * view.call.ttft_s / slowest), 1)


def _gate(view: CallView) -> Text:
    if view.call:
        return Text(_how(view.call))
    return Text("interrupted" if view.interrupted else "did not finish")


def _how(call: CallFinished | CallInterrupted) -> str:
    """What the mode decided for the call as a whole."""
    if isinstance(call, CallInterrupted):
        return plain(call.gate)
    return plain(call.gate) or ("dense" if call.dense else "reuse")


def _times(call: CallFinished) -> str:
    moments = (
        f"row opened at {seconds(call.opened_at)}, inputs complete at {seconds(call.ready_at)}, "
        f"first token at {seconds(call.first_token_at)}, done at {seconds(call.finished_at)} "
        f"({'at a stop' if call.stop == 'stop' else 'at the token limit'})"
    )
    phases = [f"{name} {seconds(value)}" for name, value in call.phases.items()]
    work = [
        f"{count:,} {what}"
        for count, what in (
            (call.base_tokens, "base tokens computed standalone"),
            (call.redone_tokens, "tokens computed again after the row was dropped"),
        )
        if count
    ]
    return "\n".join([moments, *([", ".join(phases)] if phases else []), *work])


def _trouble(run: TraceRun, view: CallView) -> list[str]:
    lines = [
        f"attempt {retry.attempt} failed: {plain(retry.error)}; tried again after "
        f"{seconds(retry.wait_s)}"
        for retry in run.retries
        if (retry.node, retry.attempt) == (view.node, view.attempt)
    ]
    last = run.attempts.get(view.node) == view.attempt
    lines += [f"failed: {plain(e.said)}" for e in run.errors if e.node == view.node and last]
    if not lines and not view.call and not view.interrupted:
        lines.append("this call did not finish")
    return lines
