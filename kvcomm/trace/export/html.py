"""A run as one page that needs nothing else: no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from kvcomm.trace.events import Audited, SegmentStep
from kvcomm.trace.export.svg import graph, key, strip, timeline
from kvcomm.trace.run import COUNTS, PARTS, SOURCES, CallView, TraceRun
from kvcomm.trace.show_calls import sources
from kvcomm.trace.text import escaped, number, plural, seconds, share

# Browsers then load and run nothing, whatever a model wrote.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'none'; base-uri 'none'"
# Longer inputs are folded away.
LONG = 600
COLUMNS = ("call", "prompt", *COUNTS, "TTFT s", "decode s", "out", "divergence")


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


def _sections(run: TraceRun, title: str) -> Iterable[str]:
    yield f"<h1>{title}</h1>"
    yield _state(run)
    yield _facts(run)
    for name, value in run.started.inputs.items():
        about = f"input, {len(value):,} characters"
        long = len(value) > LONG
        yield _folded(name, about, _text(name, value)) if long else _text(f"input {name}", value)
    if run.finished and run.finished.answer is not None:
        yield _text("answer", run.finished.answer)
    yield f'<h2>Graph</h2>\n<div class="scroll">{graph(run.started)}</div>'
    if bars := timeline(run):
        yield "<h2>Timeline</h2>"
        yield bars + key([*PARTS, *(["tool"] if run.tools else [])])
    yield "<h2>Calls</h2>"
    cells = [_cells(view, place) for place, view in enumerate(run.calls)]
    yield _table(COLUMNS, cells) + "\n" + key(SOURCES) if cells else "<p>No call began.</p>"
    yield from (_call(run, view, place) for place, view in enumerate(run.calls))
    for tool in run.tools:
        counts = ", ".join(f"{escaped(n)} {count:,}" for n, count in tool.tokens.items())
        texts = "".join(_text(n, text) for n, text in tool.texts.items())
        yield _folded(tool.node, f"tool, tokens: {counts}", _retries(run, tool.node) + texts)


def _state(run: TraceRun) -> str:
    """How the run ended, and what went wrong on the way."""
    lines = []
    if run.finished is None:
        lines.append(f"The run was cut off: {plural(len(run.done), 'call')} finished.")
    elif run.status != "ok":
        lines.append(f"The run ended as {run.status}.")
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


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: str = "") -> str:
    """A table of cells that are HTML; a last column of `words` is wrapped."""
    css = [""] * len(heads) + ([' class="words"'] if words else [])
    named = [*heads, words] if words else heads
    head = "".join(f"<th{c}>{name}</th>" for c, name in zip(css, named, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(css, row, strict=True)) + "</tr>"
        for row in rows
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
    senders, call, sent = run.info(view.node).senders, view.call, view.message
    inside = [
        f"<p>{escaped('hears ' + ', '.join(senders))}</p>" if senders else "",
        f"<p>{escaped(view.how)}</p>",
        _retries(run, view.node, view.attempt),
        strip(view.steps),
        _segments(view.steps) if view.steps else "",
        _prompt(run, view.steps),
        *(f"<p>{escaped(_audit(audit))}</p>" for audit in view.audits),
        _text(f"sends {plural(sent.tokens, 'token')}, {sent.behind}", sent.text) if sent else "",
        _text("wrote until then", view.interrupted.text) if view.interrupted else "",
    ]
    brief = f"{number(call.ttft_s)} s to the first" if call else view.how
    body = f'<div id="{_anchor(place)}">{"".join(inside)}</div>'
    return _folded(view.title, f"{view.prompt_tokens:,} tokens, {brief}", body)


def _retries(run: TraceRun, node: str, attempt: int | None = None) -> str:
    """Why an attempt was given up; of a tool, all of them."""
    lines = (
        f"attempt {retry.attempt} failed: {retry.error}; "
        f"the next one began {seconds(retry.wait_s)} later"
        for retry in run.retries_of(node, attempt)
    )
    return "".join(f'<p class="bad">{escaped(line)}</p>' for line in lines)


def _segments(steps: list[SegmentStep]) -> str:
    rows = []
    for step in steps:
        counts = (f"{getattr(step, name):,}" for name in ("tokens", *COUNTS))
        rows.append([escaped(step.label), *counts, escaped(step.reason)])
    return _table(("segment", "tokens", *COUNTS), rows, words="reason")


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
    if audit.divergence is None:
        return f"{audit.what} failed: {audit.error}"
    bound = "" if audit.bound is None else f", expected at most {audit.bound:.4f}"
    return f"{audit.what}: divergence {audit.divergence:.4f}{bound}, target {audit.target:g}"


def _text(name: str, text: str) -> str:
    body = escaped(text) or "(empty)"
    return f'<p class="soft">{escaped(name)}</p><pre>{body}</pre>'


def _folded(name: str, brief: str, inside: str) -> str:
    return (
        f"<details><summary><b>{escaped(name)}</b>"
        f'<span class="soft">{brief}</span></summary>{inside}</details>'
    )
