"""Evaluations for other programs: a spreadsheet's CSV, and a table for LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from kvcomm.cli.eval_table import labelled

# Of an evaluation, before the numbers of its modes.
FIRST = ("suite", "graph", "agent_count", "model", "warmup", "gamma", "anchors", "complete")
DOUBLE = {("", "agents")}  # `by_agent` has them
SPECIAL = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}

HEADS = {"γ": r"$\gamma$", "V": "$V$"}


def to_csv(values: Sequence[dict[str, Any]]) -> str:
    """One row for each mode of each evaluation, with every number: nested names have dots."""
    rows = [dict(_row(value, mode)) for value in values for mode in value["modes"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(value: dict[str, Any], mode: str) -> Iterator[tuple[str, Any]]:
    for name in FIRST:
        yield name, value[name]
    yield "mode", mode
    yield from _flat("", value["modes"][mode])
    for found in value["comparisons"]:
        if found["first"] == mode:
            rest = {name: v for name, v in found.items() if name not in ("first", "mode")}
            yield from _flat(f"against.{found['mode']}.", rest)
    for name in value["conditions"][0] if value["conditions"] else ():
        found = dict.fromkeys(str(conditions[name]) for conditions in value["conditions"])
        yield name, " / ".join(found)
    yield "out", value["out"]


def _flat(prefix: str, value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, found in value.items():
        if (prefix, name) in DOUBLE:
            continue
        if isinstance(found, dict):
            yield from _flat(f"{prefix}{name}.", found)
        elif name.endswith("ci95"):
            stem = name.removesuffix("ci95")
            low, high = ("", "") if found is None else found
            yield from ((f"{prefix}{stem}ci95_low", low), (f"{prefix}{stem}ci95_high", high))
        elif isinstance(found, list):
            yield prefix + name, " ".join(map(str, found))
        else:
            yield prefix + name, "" if found is None else found


def to_latex(values: Sequence[dict[str, Any]]) -> str:
    """A table for the package booktabs: scores with their intervals, reuse, and times.

    What else differs among the evaluations (γ, V, warm-up, folders) has columns of its own.
    """
    labels, differing = labelled(values)
    own = [name for name in differing if name not in ("suite", "graph", "agents", "model")]
    heads = "".join(f" & {HEADS.get(name, name.capitalize())}" for name in own)
    lines = [
        r"% needs \usepackage{booktabs}; 95 % intervals; reuse: prompt tokens, calls",
        *_measured(values),
        rf"\begin{{tabular}}{{llrl{'l' * len(own)}lrrrrr}}",
        r"\toprule",
        rf"Suite & Graph & Agents & Model{heads} & Mode & $n$ & Score (\%) & Tokens (\%) "
        r"& Calls (\%) & TTFT (s) \\",
        r"\midrule",
    ]
    for value, label in zip(values, labels, strict=True):
        for mode, found in value["modes"].items():
            low, high = (100 * edge for edge in found["ci95"])
            ttft = "--" if found["ttft_s"] is None else f"{found['ttft_s']:.3f}"
            done = found["samples"] > 0
            cells = [
                _tex(value["suite"]),
                _tex(value["graph"]),
                str(value["agent_count"] or "--"),
                _tex(value["model"]),
                *(_tex(label[name]) or "--" for name in own),
                _tex(mode),
                str(found["samples"]),
                f"{100 * found['score']:.1f} [{low:.1f}, {high:.1f}]" if done else "--",
                f"{100 * found['token_reuse']:.1f}" if done else "--",
                f"{100 * found['call_reuse']:.1f}" if done else "--",
                ttft,
            ]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _measured(values: Sequence[dict[str, Any]]) -> list[str]:
    """Comments that say under what conditions times were taken."""
    lines = [
        f"% {found['device']}, {found['dtype']}, torch {found['torch']}, transformers "
        f"{found['transformers']}, --concurrent {found['concurrent']}"
        for value in values
        for found in value["conditions"]
    ]
    return list(dict.fromkeys(lines))


def _tex(text: str) -> str:
    return "".join(SPECIAL.get(sign, sign) for sign in text)
