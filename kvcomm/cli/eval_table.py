"""Evaluations beside each other: in a terminal, as CSV with every number, as LaTeX."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvcomm.trace.tables import plain_table
from kvcomm.trace.text import plural

Values = Sequence[dict[str, Any]]
LEGEND = (
    "score: mean over samples, and its 95 % interval (Wilson's of a share, else the bootstrap's); "
    "tokens: share of prompt tokens not computed; calls: share of calls that were realigned; "
    "TTFT: median time to the last agent's first token."
)


# Of an evaluation, before the numbers of its modes in CSV.
FIRST = ("suite", "graph", "agent_count", "model", "warmup", "gamma", "anchors", "complete")
NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum"}
TEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {sign: rf"\text{name}{{}}" for sign, name in NAMED.items()}
)
HEADS = {"γ": r"$\gamma$", "V": "$V$"}


def show(values: Values, *, by_agent: bool = False) -> RenderableType:
    """One line for each mode of each evaluation, and what their comparisons came to.

    What all evaluations have in common is in the first line; what differs has its column.
    """
    labels, differing = labelled(values)
    # What holds for all, where it applies.
    common = {name: text for label in labels for name, text in label.items() if text}
    names = [name for name in labels[0] if name not in (*differing, "run")]
    parts: list[RenderableType] = [
        Text(_joined((_said(name, common.get(name, "")) for name in names), "; ")),
        Text("; and ".join(_measured(values)), style="dim"),
        "",
        _scores(values, differing),
    ]
    parts += ["", _agents(values, differing)] if by_agent else []
    for value, label in zip(values, labels, strict=True):
        where = _joined(_said(name, label[name]) for name in differing)
        lines = [] if value["complete"] else ["not finished: some samples are still to be done"]
        lines += [_compared(found["first"], found) for found in value["comparisons"]]
        lines += [
            f"{mode}: {', '.join(more)}"
            for mode, found in value["modes"].items()
            if (more := _more(found))
        ]
        if lines:
            head = [f"{where}:"] if where else []
            parts += ["", *(Text(line) for line in [*head, *lines])]
    return Group(*parts, "", Text(LEGEND + _alone(values), style="dim"))


def labels_of(values: Values) -> list[str]:
    """What tells each evaluation from the others, in a few words."""
    labels, differing = labelled(values)
    return [_joined(_said(n, _short(n, label[n])) for n in differing) for label in labels]


def labelled(values: Values) -> tuple[list[dict[str, str]], list[str]]:
    """What each evaluation is of, and the names of what differs among them.

    What does not apply is empty. Evaluations that are alike differ in their folders.
    """
    places = [Path(value["out"]).absolute() for value in values]
    above = os.path.commonpath([place.parent for place in places])
    labels = []
    for value, place in zip(values, places, strict=True):
        anchored = "kvcomm" in value["modes"]
        label = {
            "suite": value["suite"],
            "graph": value["graph"],
            "agents": str(value["agent_count"] or "–"),
            "model": value["model"],
            "γ": f"{value['gamma']:g}" if anchored else "",
            "V": str(value["anchors"]) if anchored else "",
            "warm-up": str(value["warmup"]),
        }
        labels.append({**label, "run": str(place.relative_to(above))})
    names = [name for name in labels[0] if name != "run"]
    differing = [n for n in names if len({label[n] for label in labels} - {""}) > 1]
    alike = len({tuple(label[name] for name in differing) for label in labels}) < len(labels)
    return labels, [*differing, "run"] if alike else differing


def _said(name: str, text: str) -> str:
    """A label in a sentence."""
    if not text or (name, text) == ("warm-up", "0"):
        return ""
    if name == "agents":
        return f"{text} agent{'' if text == '1' else 's'}"
    if name == "warm-up":
        return f"{plural(int(text), 'task')} of warm-up"
    return text if name in ("suite", "model", "run") else f"{name} {text}"


def _short(name: str, text: str) -> str:
    """A label in a narrow column: a model without its owner or folder."""
    return text.rstrip("/").rpartition("/")[2] if name == "model" else text


def _measured(values: Values) -> list[str]:
    """Where times were taken, and with how many tasks at once: what they depend on."""
    lines = (
        f"on {found['device']}, {found['dtype']}, torch {found['torch']}, transformers "
        f"{found['transformers']}, {plural(found['concurrent'], 'task')} at once"
        for value in values
        for found in value["conditions"]
    )
    return list(dict.fromkeys(lines))


def _alone(values: Values) -> str:
    """A word about times that were taken while other tasks were under way."""
    many = {found["concurrent"] for value in values for found in value["conditions"]}
    if not many or many == {1}:
        return ""
    taken = f" Times were taken with {' and '.join(map(str, sorted(many)))} tasks at once"
    if len(many) > 1:
        return f"{taken}, and cannot be compared: use --concurrent 1."
    return f"{taken}, which makes them longer: compare times at --concurrent 1 only."


def _scores(values: Values, differing: Sequence[str]) -> Table:
    errors = any(found["errors"] for value in values for found in value["modes"].values())
    columns = ("n", "score", "95 %", "tokens", "calls", "TTFT s", *(["errors"] if errors else []))
    before = (f"~{name}" for name in differing)
    table = plain_table(*before, "mode", *(f">{name}" for name in columns))
    for names, mode, found in _modes(values, differing):
        low, high = found["ci95"]
        shares = [found["score"], found["token_reuse"], found["call_reuse"]]
        score, tokens, calls = (f"{share:.1%}" if found["samples"] else "–" for share in shares)
        ttft = "–" if found["ttft_s"] is None else f"{found['ttft_s']:.3f}"
        numbers = [f"{found['samples']:,}", score, f"{low:.0%}–{high:.0%}", tokens, calls, ttft]
        table.add_row(*names, mode, *numbers, *([str(found["errors"])] if errors else []))
    return table


def _agents(values: Values, differing: Sequence[str]) -> Table:
    """A line for each agent: its prompts, and what became of them."""
    before = (f"~{name}" for name in differing)
    columns = (">prompt", ">computed", ">realigned", ">calls", ">TTFT s")
    table = plain_table(*before, "mode", "agent", *columns)
    for names, mode, found in _modes(values, differing):
        first = [*names, mode]
        for agent, its in found["by_agent"].items():
            shares = [its["computed_share"], its["realigned_share"], its["call_reuse"]]
            cells = [f"{its['prompt_tokens']:,.0f}", *(f"{share:.1%}" for share in shares)]
            table.add_row(*first, agent, *cells, f"{its['ttft_s']:.3f}")
            first = [""] * len(first)
    return table


def _modes(
    values: Values, differing: Sequence[str]
) -> Iterator[tuple[list[str], str, dict[str, Any]]]:
    """Every mode of every evaluation; what tells evaluations apart is said once."""
    for value, label in zip(values, labelled(values)[0], strict=True):
        names = [_short(name, label[name]) for name in differing]
        for mode, found in value["modes"].items():
            yield names, mode, found
            names = [""] * len(names)


def _more(found: dict[str, Any]) -> list[str]:
    """Other measures of a mode, its repeats, and what its audits came to."""
    parts = [f"{name} {value:.3f}" for name, value in found["metrics"].items()]
    parts += [f"{name} {value:.3f}" for name, value in found.items() if name.startswith("pass@")]
    if repeats := found["repeats"]:
        seeds = ", ".join(map(str, repeats["seeds"]))
        parts.append(f"score {repeats['mean']:.1%} ± {repeats['sd']:.1%} (sd; seeds {seeds})")
    audits = found["audits"]
    if audits["count"]:
        parts.append(f"{audits['count']} audits with a mean divergence of {audits['mean']:.4f}")
    return parts


def _compared(mode: str, found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    judge, ratio = found["consistency"]["judge"], found["ttft_ratio"]
    parts = [
        f"{mode} against {found['mode']}: {found['difference']:+.1%} "
        f"({low:+.1%} to {high:+.1%}, McNemar p = {found['p_value']:.2f})",
        f"same answer {found['consistency']['answer']:.0%}",
        "" if judge is None else f"same choice of the last agent {judge:.0%}",
        "" if ratio is None else f"TTFT {times_in_words(ratio, found['ttft_ratio_ci95'])}",
    ]
    return _joined(parts, "; ")


def _joined(parts: Iterable[str], by: str = ", ") -> str:
    return by.join(part for part in parts if part)


def times_in_words(ratio: float, interval: Sequence[float] | None) -> str:
    """How many times shorter or longer the first mode takes; `ratio` is the other's time over its.

    No number is below 1: a ratio of 0.5 is 2× longer.
    """
    said = _times_as(ratio)
    if interval is None:
        return said
    near, far = interval if ratio >= 1 else tuple(reversed(interval))
    if (near >= 1) == (far >= 1):
        near, far = (near, far) if ratio >= 1 else (1 / near, 1 / far)
        return f"{said} (95 % {near:.1f}–{far:.1f}×)"
    return f"{said} (95 % {_times_as(near)} to {_times_as(far)})"


def _times_as(ratio: float) -> str:
    return f"{ratio:.1f}× shorter" if ratio >= 1 else f"{1 / ratio:.1f}× longer"


def to_csv(values: Values) -> str:
    """One row for each mode of each evaluation, with every number: nested names have dots."""
    rows = [dict(_row(value, mode)) for value in values for mode in value["modes"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(value: dict[str, Any], mode: str) -> Iterator[tuple[str, Any]]:
    yield from ((name, value[name]) for name in FIRST)
    yield "mode", mode
    found = value["modes"][mode]
    # `agents` is a part of `by_agent`.
    yield from _flat("", {name: number for name, number in found.items() if name != "agents"})
    for compared in value["comparisons"]:
        if compared["first"] == mode:
            numbers = {n: v for n, v in compared.items() if n not in ("first", "mode")}
            yield from _flat(f"against.{compared['mode']}.", numbers)
    for name in value["conditions"][0] if value["conditions"] else ():
        yield name, " / ".join(dict.fromkeys(str(found[name]) for found in value["conditions"]))
    yield "out", value["out"]


def _flat(prefix: str, value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, found in value.items():
        if isinstance(found, dict):
            yield from _flat(f"{prefix}{name}.", found)
        elif name.endswith("ci95"):
            low, high = found or ("", "")
            yield from ((f"{prefix}{name}_low", low), (f"{prefix}{name}_high", high))
        elif isinstance(found, list):
            yield prefix + name, " ".join(map(str, found))
        else:
            yield prefix + name, "" if found is None else found


def to_latex(values: Values) -> str:
    """A table for the package booktabs: scores with their intervals, reuse, and times.

    What else differs among the evaluations (γ, V, warm-up, folders) has columns of its own.
    """
    labels, differing = labelled(values)
    own = [name for name in differing if name not in ("suite", "graph", "agents", "model")]
    heads = "".join(f" & {HEADS.get(name, name.capitalize())}" for name in own)
    lines = [
        r"% needs \usepackage{booktabs}; 95 % intervals; reuse: prompt tokens, calls",
        *(f"% {line}" for line in _measured(values)),
        rf"\begin{{tabular}}{{llrl{'l' * len(own)}lrrrrr}}",
        r"\toprule",
        rf"Suite & Graph & Agents & Model{heads} & Mode & $n$ & Score (\%) & Tokens (\%) "
        r"& Calls (\%) & TTFT (s) \\",
        r"\midrule",
    ]
    for value, label in zip(values, labels, strict=True):
        first = [value["suite"], value["graph"], str(value["agent_count"] or ""), value["model"]]
        for mode, found in value["modes"].items():
            low, high = (100 * edge for edge in found["ci95"])
            reuse = (f"{100 * found[name]:.1f}" for name in ("token_reuse", "call_reuse"))
            numbers = [f"{100 * found['score']:.1f} [{low:.1f}, {high:.1f}]", *reuse]
            names = [*first, *(label[name] for name in own), mode]
            cells = [
                *(text.translate(TEX) or "--" for text in names),
                str(found["samples"]),
                *(numbers if found["samples"] else ["--"] * len(numbers)),
                "--" if found["ttft_s"] is None else f"{found['ttft_s']:.3f}",
            ]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
