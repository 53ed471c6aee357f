"""A trace for the terminal: what was asked, who heard whom, and where every token came from."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from kvcomm.errors import UsageError
from kvcomm.trace.advice import advice, warnings
from kvcomm.trace.events import Audited, Profiled, ToolFinished, Totals
from kvcomm.trace.lanes import draw_lanes, marked
from kvcomm.trace.run import CallView, TraceRun
from kvcomm.trace.show_calls import CallTable, show_call
from kvcomm.trace.tables import facts
from kvcomm.trace.text import listed, plain, plural, seconds, share, shorten
from kvcomm.trace.timeline import Timeline, slowest

# As many nodes as a drawing is readable with.
MOST = 500


def show_run(
    run: TraceRun, *, text: bool = False, segments: bool = False, node: str | None = None
) -> RenderableType:
    """A run at a glance, or the calls of one `node` (or of one agent in all its rounds).

    `segments` adds a section for every call: its segments, its message, why. `text` does, too, and
    shows task, prompts and messages whole. Raises `UsageError` for an unknown node.
    """
    if node is not None:
        views = views_of(run, node)
        return Group(
            CallTable(views),
            *(show_call(run, view, prompt=text, whole=text, times=True) for view in views),
        )
    slow = slowest(run) if len(run.calls) > 1 else []
    sections = {
        "Graph": show_graph(run),
        "Calls": CallTable(run.calls),
        "Timeline": Timeline(run) if run.bars else None,
        "Slowest": _points(slow) if slow else None,
        "Warnings": _points(found, "yellow") if (found := warnings(run)) else None,
        "Advice": _points(found) if (found := advice(run)) else None,
    }
    parts: list[RenderableType] = [show_header(run, text=text)]
    for title, body in sections.items():
        if body is not None:
            parts += ["", Text(title, style="bold"), body]
    if segments or text:
        parts += [show_tool(tool, text=text) for tool in run.tools]
        parts += [show_call(run, view, prompt=text, whole=text) for view in run.calls]
    if lines := troubles(run, sections=segments or text):
        parts += ["", Text("\n".join(lines), style="red")]
    if not segments and not text and run.calls:
        parts += ["", Text("--segments: where every token came from; --node NODE: one call", "dim")]
    return Group(*parts)


def _points(lines: Sequence[str], style: str = "") -> RenderableType:
    """Lines behind dashes, wrapped under their own beginning; of many, the first ten."""
    rows = [(" -", line) for line in lines[:10]]
    rows += [("", f"and {len(lines) - 10} more")] if len(lines) > 10 else []
    return facts(rows, style="", text=style, padding=1)


def show_header(run: TraceRun, *, text: bool = False) -> RenderableType:
    """Model, mode, status and totals of a run, its inputs and its answer."""
    said = {"answer": run.finished.answer} if run.finished and run.finished.answer else {}
    spell = plain if text else shorten
    texts = [(name, spell(value)) for name, value in (*run.started.inputs.items(), *said.items())]
    return facts([*about(run), *texts])


def about(run: TraceRun) -> list[tuple[str, str]]:
    """What ran where, how it ended, and what it took."""
    started = run.started
    rows = [
        ("run", f"{run.path.parent.name or run.path}, {started.started}"),
        ("model", f"{started.model} on {started.device}, {started.dtype}"),
        ("mode", f"{started.mode}, seed {started.seed}"),
        ("graph", f"{started.graph}, {plural(len(started.nodes), 'node')}"),
        ("status", status(run)),
        ("tokens", tokens(totals(run))),
    ]
    if audits := show_audits(run.audits()):
        rows.append(("audits", audits))
    for event in run.of(Profiled):
        priors = ", ".join(f"{name} {value:.3f}" for name, value in event.priors.items())
        rows.append(("profile", f"priors {priors}"))
    for read in run.state:
        rows.append(("state", plain(read.reason) + (f" ({read.path})" if read.path else "")))
    return rows


def status(run: TraceRun) -> str:
    """How the run ended, in words."""
    if run.finished is None:
        begun = len(run.calls) - len(run.done) - len(run.retries)
        open_calls = f", {plural(begun, 'call')} under way" if begun > 0 else ""
        return f"cut off: {plural(len(run.done), 'call')} finished{open_calls}"
    total = run.finished.totals
    waited = f", after {seconds(total.queued_s)} in the queue" if total.queued_s >= 0.001 else ""
    cut = sum(1 for view in run.calls if view.interrupted and not view.call)
    under_way = f", {plural(cut, 'call')} under way" if cut and run.status != "ok" else ""
    return f"{run.status} in {seconds(total.wall_s)}{under_way}{waited}"


def totals(run: TraceRun) -> Totals:
    """The run's totals; for a trace that was cut off, those of the calls it holds."""
    if run.finished is not None:
        return run.finished.totals
    calls = [view for view in run.calls if view.ended]
    prompt = sum(view.prompt_tokens for view in calls)
    computed = sum(view.tokens["computed"] for view in calls)
    counts = {"prompt_tokens": prompt, "computed_tokens": computed}
    last = max(event.t for event in run.events)
    return Totals(**counts, reused_tokens=prompt - computed, extra={}, wall_s=last)


def tokens(total: Totals, ahead: int = 0) -> str:
    """Totals in one line; `ahead` of the computed tokens were so before a prompt's last input."""
    early = f" ({ahead:,} of them ahead)" if ahead else ""
    extra = [f"{count:,} {name}" for name, count in total.extra.items() if count]
    return (
        f"{total.prompt_tokens:,} in prompts, {total.computed_tokens:,} computed{early}, "
        f"{total.reused_tokens:,} reused ({share(total.reused_tokens, total.prompt_tokens)})"
    ) + (f"; beside them {', '.join(extra)}" if extra else "")


def show_audits(audits: Sequence[Audited]) -> str:
    """What the audits of a run came to, in one line; empty where there were none."""
    measured = [a for a in audits if a.divergence is not None]
    used = [a.divergence for a in measured if a.used and a.divergence is not None]
    parts = []
    if used:
        mean, target = sum(used) / len(used), measured[0].target
        where = f"{'within' if mean <= target else 'above'} {target:g}"
        parts.append(f"{plural(len(used), 'realigned call')}: mean divergence {mean:.4f}, {where}")
    if probes := len(measured) - len(used):
        parts.append(f"{plural(probes, 'probe')} beside exact calls")
    if failed := sum(bool(audit.error) for audit in audits):
        parts.append(f"{failed} failed")
    if read := len(audits) - len(measured) - failed:
        parts.append(f"new texts read for {plural(read, 'call')}")
    return "; ".join(parts)


def show_graph(run: TraceRun) -> RenderableType:
    """The graph by level, the answer's node marked; one that no screen holds is not drawn."""
    nodes, answer = run.started.nodes, run.started.answer_node
    if len(nodes) > MOST:
        return Text(f" {plural(len(nodes), 'node')}, too many to draw", style="dim")
    notes = {info.name: marked(info.name == answer, info.exact, info.tool) for info in nodes}
    drawing = draw_lanes({info.name: info.senders for info in nodes}, notes)
    return Padding(Text(drawing, no_wrap=True, overflow="ellipsis"), (0, 0, 0, 1), expand=False)


def show_tool(tool: ToolFinished, *, text: bool = False) -> RenderableType:
    """A tool's texts, how many tokens each has, and how long it took."""
    took = seconds(tool.finished_at - tool.ready_at)
    parts: list[RenderableType] = []
    for name, found in tool.texts.items():
        cut = ", cut" if name in tool.cut else ""
        label = f"{name} ({plural(tool.tokens[name], 'token')}{cut}): "
        parts.append(Text(label + (plain(found) if text else shorten(found, 120))))
    title = Text.assemble((tool.node, "bold"), f"  a tool, {took}")
    return Group("", title, *(Padding(part, (0, 0, 0, 2), expand=False) for part in parts))


def troubles(run: TraceRun, *, sections: bool = False) -> list[str]:
    """What failed, and what is missing from the trace; not what `sections` of calls say."""
    begun = {view.node for view in run.calls} if sections else set()
    lines = [
        f"{f'`{error.node}`' if error.node else 'The run'} failed: {plain(error.said)}"
        for error in run.errors
        if error.node not in begun
    ]
    if run.finished is None:
        lines.append("The trace ends before the run did: what is here was written as it was.")
    if run.skipped:
        lines.append(f"{plural(run.skipped, 'line')} of the trace could not be read.")
    return lines


def views_of(run: TraceRun, node: str) -> list[CallView]:
    """The calls of a node, or of an agent in all its rounds. Raises `UsageError` for none."""
    agents = {info.name: info.agent for info in run.started.nodes if not info.tool}
    names = {name for name, agent in agents.items() if node in (name, agent)}
    if not names:
        raise UsageError(f"no node `{node}` in this run: it has {listed(agents)}")
    views = [view for view in run.calls if view.node in names]
    if not views:
        raise UsageError(f"node `{node}` had not begun when the trace ended")
    return views
