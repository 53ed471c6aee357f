"""A run as one page that needs nothing else: no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from kvcomm.trace.events import Audited, MessageSent, SegmentStep
from kvcomm.trace.export.markup import escaped
from kvcomm.trace.export.svg import PARTS, SOURCES, graph, key, strip, timeline
from kvcomm.trace.read import CallView, TraceRun
from kvcomm.trace.show_prompt import sources
from kvcomm.trace.text import number, plural, seconds, share

# Browsers then load and run nothing, whatever a model wrote.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'none'; base-uri 'none'"
# Longer inputs are folded away.
LONG = 600
COLUMNS = ("call", "prompt", *SOURCES, "ahead", "TTFT s", "decode s", "out", "divergence")


def write_html(run: TraceRun, path: Path) -> None:
    """Write the page of `run`."""
    path.write_text(page(run), encoding="utf-8")


def page(run: TraceRun) -> str:
    """The page; every text from the trace is escaped."""
    css = files("kvcomm.trace.export").joinpath("page.css").read_text(encoding="utf-8")
    name = escaped(f"{run.started.graph} on {run.started.model}, {run.started.mode}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in _sections(run, name) if part)
        + "\n</body>\n</html>\n"
    )


def _sections(run: TraceRun, name: str) -> Iterable[str]:
    yield f"<h1>{name}</h1>"
    yield _state(run)
    yield _facts(run)
    for key_, value in run.started.inputs.items():
        long = len(value) > LONG
        about = f"input, {len(value):,} characters"
        yield _folded(key_, about, _text(key_, value)) if long else _text(f"input {key_}", value)
    if run.finished and run.finished.answer is not None:
        yield _text("answer", run.finished.answer)
    yield f'<h2>Graph</h2>\n<div class="scroll">{graph(run.started)}</div>'
    if bars := timeline(run):
        yield "<h2>Timeline</h2>"
        yield bars + key([*PARTS, *(["tool"] if run.tools else [])])
    yield "<h2>Calls</h2>"
    yield _table(run.calls) if run.calls else "<p>No call began.</p>"
    if run.calls:
        yield key(SOURCES)
    yield from (_call(run, view, place) for place, view in enumerate(run.calls))
    for tool in run.tools:
        counts = ", ".join(f"{escaped(n)} {count:,}" for n, count in tool.tokens.items())
        texts = "".join(_text(n, text) for n, text in tool.texts.items())
        yield _folded(tool.node, f"tool, tokens: {counts}", _retries(run, tool.node) + texts)


def _state(run: TraceRun) -> str:
    """How the run ended, and what went wrong on the way."""
    if run.finished is None:
        finished = plural(sum(1 for view in run.calls if view.call), "call")
        lines = [f"The run was cut off: {finished} finished."]
    elif run.finished.status != "ok":
        lines = [f"The run ended as {run.finished.status}."]
    else:
        lines = []
    lines += [f"{error.node or 'The run'} failed: {error.error}" for error in run.errors]
    if run.skipped:
        lines.append(f"{plural(run.skipped, 'line')} of the trace could not be read.")
    return "".join(f'<p class="bad">{escaped(line)}</p>' for line in lines)


def _facts(run: TraceRun) -> str:
    started = run.started
    facts = {
        "model": started.model,
        "graph": f"{started.graph}, {plural(len(started.nodes), 'node')}",
        "mode": started.mode,
        "device": f"{started.device}, {started.dtype}",
        "started": started.started.replace("T", " "),
        "seed": str(started.seed),
    }
    if run.finished:
        totals = run.finished.totals
        extra = sum(totals.extra.values())
        facts |= {
            "time": seconds(totals.wall_s),
            "prompt tokens": f"{totals.prompt_tokens:,}",
            "computed": f"{totals.computed_tokens:,}",
            "reused": f"{totals.reused_tokens:,} "
            f"({share(totals.reused_tokens, totals.prompt_tokens)})",
            **({"computed beside": f"{extra:,}"} if extra else {}),
        }
    items = (f"<div><dt>{k}</dt><dd>{escaped(value)}</dd></div>" for k, value in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _table(views: list[CallView]) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in _cells(view, place)) + "</tr>"
        for place, view in enumerate(views)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _cells(view: CallView, place: int) -> list[str]:
    call, found = view.call, view.divergence
    return [
        f'<a href="#{_anchor(place)}">{escaped(view.title)}</a>',
        f"{view.prompt_tokens:,}",
        *(f"{count:,}" for count in view.tokens.values()),
        number(call.ttft_s) if call else "–",
        number(call.decode_s) if call else "–",
        "–" if view.output_tokens is None else f"{view.output_tokens:,}",
        f"{found:.4f}" if found is not None else "",
    ]


def _anchor(place: int) -> str:
    """The name of what a call's fold holds: a browser opens the fold to get there."""
    return f"call-{place}"


def _call(run: TraceRun, view: CallView, place: int) -> str:
    info = next((info for info in run.started.nodes if info.name == view.node), None)
    hears = f"hears {', '.join(info.senders)}" if info and info.senders else ""
    call = view.call
    unfinished = "interrupted" if view.interrupted else "did not finish"
    how = (call.gate or ("dense" if call.dense else "reuse")) if call else unfinished
    inside = [
        *([f"<p>{escaped(hears)}</p>"] if hears else []),
        f"<p>{escaped(how)}</p>",
        _retries(run, view.node, view.attempt),
        strip(view.steps),
        _segments(view.steps) if view.steps else "",
        _prompt(run, view.steps),
        *(f"<p>{escaped(_audit(audit))}</p>" for audit in view.audits),
        _message(view.message) if view.message else "",
        _text("wrote until then", view.interrupted.text) if view.interrupted else "",
    ]
    brief = f"{view.prompt_tokens:,} tokens"
    brief += f", {number(call.ttft_s)} s to the first" if call else f", {unfinished}"
    body = f'<div id="{_anchor(place)}">{"".join(inside)}</div>'
    return _folded(view.title, brief, body)


def _retries(run: TraceRun, node: str, attempt: int | None = None) -> str:
    """Why an attempt was given up; of a tool, all of them."""
    lines = (
        f"attempt {retry.attempt} failed: {retry.error}; "
        f"the next one began {seconds(retry.wait_s)} later"
        for retry in run.retries
        if retry.node == node and attempt in (None, retry.attempt)
    )
    return "".join(f'<p class="bad">{escaped(line)}</p>' for line in lines)


def _segments(steps: list[SegmentStep]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("segment", "tokens", *SOURCES, "ahead"))
    lines = []
    for step in steps:
        name = step.label
        counts = (step.computed, step.prefix, step.realigned, step.ahead)
        cells = [escaped(name), f"{step.tokens:,}", *(f"{count:,}" for count in counts)]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr>{row}<td class="words">{escaped(step.reason)}</td></tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}<th class="words">reason</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _prompt(run: TraceRun, steps: list[SegmentStep]) -> str:
    """The prompt, every segment in the colour of its source; nothing where there are no texts."""
    segments = "".join(
        f'<span class="{step.source}" data-name="{escaped(step.label)}" '
        f'title="{escaped(sources(step))}">{escaped(text)}</span>'
        for step in steps
        if (text := run.text(step)) is not None
    )
    named = f'<p class="soft">prompt</p>{key(SOURCES)}<pre class="prompt">{segments}</pre>'
    return named if segments else ""


def _audit(audit: Audited) -> str:
    what = f"audit of {audit.level}" if audit.used else f"probe of {audit.level}"
    if audit.divergence is None:
        return f"{what} failed: {audit.error}"
    bound = "" if audit.bound is None else f", expected at most {audit.bound:.4f}"
    return f"{what}: divergence {audit.divergence:.4f}{bound}, target {audit.target:g}"


def _message(message: MessageSent) -> str:
    kv = f"KV behind {message.covered:,} of them" if message.handle else "text only"
    lineage = f", {'exact' if message.exact else 'approximate'}" if message.handle else ""
    return _text(f"sends {plural(message.tokens, 'token')}, {kv}{lineage}", message.text)


def _text(name: str, text: str) -> str:
    body = escaped(text) or "(empty)"
    return f'<p class="soft">{escaped(name)}</p><pre>{body}</pre>'


def _folded(name: str, brief: str, inside: str) -> str:
    return (
        f"<details><summary><b>{escaped(name)}</b>"
        f'<span class="soft">{brief}</span></summary>{inside}</details>'
    )
