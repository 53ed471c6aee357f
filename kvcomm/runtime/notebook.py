"""A result as a notebook shows it: the answer, and a line for every call."""

from __future__ import annotations

from typing import Any

from kvcomm.trace.text import escaped, number, shorten

COLUMNS = ("agent", "prompt", "computed", "prefix", "realigned", "first token", "output", "text")
# As much of a message as tells which one it is.
SHOWN = 80


def result_html(result: Any) -> str:
    """HTML of a `Result`, whose texts are escaped: models and users wrote them."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join(map(_row, result.calls))
    totals = result.totals
    said = [
        f"{result.model}, {result.mode}: {totals.reused_tokens:,} of {totals.prompt_tokens:,} "
        f"prompt tokens reused, {totals.output_tokens:,} output, {number(totals.wall_s)} s",
        *(f"warning: {warning}" for warning in result.warnings),
    ]
    below = "<br>".join(map(escaped, said))
    answer = f'<p style="white-space: pre-wrap">{escaped(result.answer)}</p>'
    return (
        f"{answer}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{below}</p>"
    )


def _row(call: Any) -> str:
    counts = (call.report.prompt_tokens, *map(call.total, ("computed", "prefix", "realigned")))
    output = f"{call.report.output_tokens:,}" + (" (cut)" if call.stop == "length" else "")
    cells = [
        call.node,
        *(f"{count:,}" for count in counts),
        f"{number(call.ttft_s)} s",
        output,
        shorten(call.text, SHOWN),
    ]
    return f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells)}</tr>"
