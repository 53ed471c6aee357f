"""Drawings of the page: the graph by level, bars over the run's time, strips of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from kvcomm.trace.events import NodeInfo, RunStarted, SegmentStep
from kvcomm.trace.lanes import levels, marked
from kvcomm.trace.run import SOURCES, TimelineBar, TraceRun
from kvcomm.trace.text import escaped, number

# Sizes of the graph, in units of the drawing.
BOX_W, BOX_H, GAP_X, GAP_Y = 132, 44, 28, 44
NAME = 16
# Bars and strips are this wide before they are stretched to the page.
WIDE = 1000.0

Part = tuple[float, float, str, str]


def graph(started: RunStarted) -> str:
    """Nodes in rows by topological level, the first on top; a message is an arrow downwards."""
    infos = {info.name: info for info in started.nodes}
    rows = levels({name: info.senders for name, info in infos.items()})
    inner = max((len(row) for row in rows), default=1) * (BOX_W + GAP_X)
    places: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        left = (inner - len(row) * (BOX_W + GAP_X)) / 2 + GAP_X / 2
        for column, name in enumerate(row):
            places[name] = (left + column * (BOX_W + GAP_X), 10 + depth * (BOX_H + GAP_Y))
    depths = {name: depth for depth, row in enumerate(rows) for name in row}
    edges = [
        _edge(places[sender], places[name], depths[name] - depths[sender])
        for name, info in infos.items()
        for sender in info.senders
        if sender in places
    ]
    longest = max(depths.values(), default=0)
    width = inner + (_bulge(longest) if longest > 1 else 0)
    height = 20 + len(rows) * (BOX_H + GAP_Y) - GAP_Y
    boxes = [_box(infos[name], at, started.answer_node) for name, at in places.items()]
    return (
        f'<svg class="graph" role="img" aria-label="the graph" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}"><defs>'
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z"/></marker>'
        f"</defs>{''.join(edges)}{''.join(boxes)}</svg>"
    )


def timeline(run: TraceRun) -> str:
    """A bar a call and a tool, in the order in which they began; nothing when none finished."""
    end = max((bar.parts[-1][1] for bar in run.bars), default=0.0)
    if end <= 0:
        return ""
    scale = f'<div class="bar soft"><span>0 s</span><span></span><span>{number(end)} s</span></div>'
    return "".join(_bar(bar, end) for bar in run.bars) + scale


def strip(steps: Sequence[SegmentStep]) -> str:
    """The prompt as one bar, coloured by where the tokens came from."""
    parts: list[Part] = []
    at = 0
    for step in steps:
        for source in SOURCES:
            if count := getattr(step, source):
                parts.append((at, at + count, source, f"{step.name}: {count:,} {source}"))
                at += count
    return _rects(parts, at, "strip", "tokens of the prompt by source") if at else ""


def key(names: Sequence[str]) -> str:
    """What the colours mean."""
    items = "".join(f'<span><i class="{name}"></i>{name}</span>' for name in names)
    return f'<div class="key">{items}</div>'


def _bar(bar: TimelineBar, end: float) -> str:
    label = escaped(bar.name)
    parts = [(b, e, part, f"{part} {number(max(e - b, 0))} s") for b, e, part in bar.parts]
    call = bar.view.call if bar.view else None
    note = f"{number(call.ttft_s)} s" if call else "interrupted" if bar.view else ""
    drawn = _rects(parts, end, "", f"when {bar.name} ran")
    return f'<div class="bar"><span title="{label}">{label}</span>{drawn}<span>{note}</span></div>'


def _rects(parts: Sequence[Part], whole: float, css: str, label: str) -> str:
    """Every part that takes any room is at least half a unit wide."""
    drawn = [
        f'<rect class="{part}" x="{WIDE * begin / whole:.2f}" y="0" height="16" '
        f'width="{max(WIDE * (end - begin) / whole, 0.5):.2f}"><title>{escaped(words)}</title>'
        "</rect>"
        for begin, end, part, words in parts
        if end > begin
    ]
    return (
        f'<svg class="{css}" viewBox="0 0 {WIDE:g} 16" preserveAspectRatio="none" role="img" '
        f'aria-label="{escaped(label)}">{"".join(drawn)}</svg>'
    )


def _box(info: NodeInfo, at: tuple[float, float], answer: str) -> str:
    x, y = at
    name = info.name if len(info.name) <= NAME else info.name[: NAME - 1] + "…"
    notes = marked(info.name == answer, info.exact, info.tool)
    middle = y + BOX_H / 2
    under = f'<text class="note" x="{x + BOX_W / 2:g}" y="{middle + 15:g}">{notes}</text>'
    css = "answer" if info.name == answer else "tool" if info.tool else ""
    return (
        f"<g><title>{escaped(info.name)}</title>"
        f'<rect class="{css}" x="{x:g}" y="{y:g}" width="{BOX_W}" height="{BOX_H}" rx="6"/>'
        f'<text x="{x + BOX_W / 2:g}" y="{middle + (0 if notes else 5):g}">{escaped(name)}</text>'
        f"{under if notes else ''}</g>"
    )


def _edge(source: tuple[float, float], target: tuple[float, float], span: int) -> str:
    """An arrow to the next level goes straight down, a longer one around the boxes between."""
    (x1, y1), (x2, y2) = source, target
    if span <= 1:
        begin, end = (x1 + BOX_W / 2, y1 + BOX_H), (x2 + BOX_W / 2, y2)
        bend = (y2 - y1 - BOX_H) / 2
        curve = f"{begin[0]:g} {begin[1] + bend:g} {end[0]:g} {end[1] - bend:g}"
    else:
        begin, end = (x1 + BOX_W, y1 + BOX_H / 2), (x2 + BOX_W, y2 + BOX_H / 2)
        out = max(begin[0], end[0]) + _bulge(span)
        curve = f"{out:g} {begin[1]:g} {out:g} {end[1]:g}"
    drawn = f"M{begin[0]:g} {begin[1]:g}C{curve} {end[0]:g} {end[1]:g}"
    return f'<path marker-end="url(#tip)" d="{drawn}"/>'


def _bulge(span: int) -> float:
    return 20 + 12 * min(span, 12)
