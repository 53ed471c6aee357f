"""A run as one page that needs nothing else: no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from kvcomm.trace.events import SegmentStep
from kvcomm.trace.export.svg import graph, key, strip, timeline
from kvcomm.trace.run import COUNTS, PARTS, SOURCES, CallView, TraceRun
from kvcomm.trace.show import about, troubles
from kvcomm.trace.show_calls import retries, show_audit, sources
from kvcomm.trace.text import escaped, number, plural

# Browsers then load and run nothing, whatever a model wrote.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'none'; base-uri 'none'"
# Longer inputs are folded away.
LONG = 600
BAD = ' class="bad"'
COLUMNS = ("call", "prompt", *COUNTS, "TTFT s", "decode s", "out", "divergence")


def write_html(run: TraceRun, path: Path) -> None:
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
    yield _lines(troubles(run), BAD)
    rows = (f"<div><dt>{k}</dt><dd>{escaped(value)}</dd></div>" for k, value in about(run))
    yield f"<dl>{''.join(rows)}</dl>"
    for name, value in run.started.inputs.items():
        long = f"input, {len(value):,} characters" if len(value) > LONG else ""
        yield _folded(name, long, _text(name, value)) if long else _text(f"input {name}", value)
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
        failed = _lines(retries(run, tool.node), BAD)
        texts = "".join(_text(n, text) for n, text in tool.texts.items())
        yield _folded(tool.node, f"tool, tokens: {counts}", failed + texts)


def _lines(lines: Iterable[str], css: str = "") -> str:
    return "".join(f"<p{css}>{escaped(line)}</p>" for line in lines)


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
        f'<a href="#call-{place}">{escaped(view.title)}</a>',
        f"{view.prompt_tokens:,}",
        *(f"{count:,}" for count in view.tokens.values()),
        number(call.ttft_s) if call else "–",
        number(call.decode_s) if call else "–",
        "–" if view.output_tokens is None else f"{view.output_tokens:,}",
        f"{found:.4f}" if found is not None else "",
    ]


def _call(run: TraceRun, view: CallView, place: int) -> str:
    senders, call, sent = run.info(view.node).senders, view.call, view.message
    inside = [
        _lines([f"hears {', '.join(senders)}"] if senders else []),
        _lines([view.how]),
        _lines(retries(run, view.node, view.attempt), BAD),
        strip(view.steps),
        _segments(view.steps) if view.steps else "",
        _prompt(run, view.steps),
        _lines(map(show_audit, view.audits)),
        _text(f"sends {plural(sent.tokens, 'token')}, {sent.behind}", sent.text) if sent else "",
        _text("wrote until then", view.interrupted.text) if view.interrupted else "",
    ]
    brief = f"{number(call.ttft_s)} s to the first" if call else view.how
    # A browser opens the fold to get to what is in it.
    body = f'<div id="call-{place}">{"".join(inside)}</div>'
    return _folded(view.title, f"{view.prompt_tokens:,} tokens, {brief}", body)


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


def _text(name: str, text: str) -> str:
    body = escaped(text) or "(empty)"
    return f'<p class="soft">{escaped(name)}</p><pre>{body}</pre>'


def _folded(name: str, brief: str, inside: str) -> str:
    return (
        f"<details><summary><b>{escaped(name)}</b>"
        f'<span class="soft">{brief}</span></summary>{inside}</details>'
    )
