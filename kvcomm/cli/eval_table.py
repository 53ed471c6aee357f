"""Evaluations beside each other in a terminal: a table, comparisons in words, a legend."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcomm.cli.output import number_table

if TYPE_CHECKING:
    from rich.console import RenderableType

LEGEND = (
    "score: mean over samples, and its 95 % interval (Wilson's of a share, else the bootstrap's); "
    "tokens: share of prompt tokens not computed; calls: share of calls that were realigned; "
    "TTFT: median time to the last agent's first token."
)


def show(values: Sequence[dict[str, Any]], *, by_agent: bool = False) -> RenderableType:
    """One line for each mode of each evaluation, and what their comparisons came to.

    What all evaluations have in common is in the first line; what differs has its column.
    """
    from rich.console import Group
    from rich.text import Text

    labels, differing = labelled(values)
    parts: list[RenderableType] = [
        Text(_common(labels, differing)),
        Text(_measured(values), style="dim"),
        "",
        _scores(values, labels, differing),
    ]
    if by_agent:
        parts += ["", _agents(values, labels, differing)]
    for value, label in zip(values, labels, strict=True):
        where = ", ".join(filter(None, (_said(name, label[name]) for name in differing)))
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


def labels_of(values: Sequence[dict[str, Any]]) -> list[str]:
    """What tells each evaluation from the others, in a few words."""
    labels, differing = labelled(values)
    return [
        ", ".join(filter(None, (_said(name, _short(name, label[name])) for name in differing)))
        for label in labels
    ]


def labelled(values: Sequence[dict[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    """What each evaluation is of, and the names of what differs among them."""
    places = [Path(value["out"]).absolute() for value in values]
    above = os.path.commonpath([place.parent for place in places])
    labels = [
        {**_labels(value), "run": str(place.relative_to(above))}
        for value, place in zip(values, places, strict=True)
    ]
    return labels, _differing(labels)


def _labels(value: dict[str, Any]) -> dict[str, str]:
    """What does not apply is empty."""
    anchored = "kvcomm" in value["modes"]
    return {
        "suite": value["suite"],
        "graph": value["graph"],
        "agents": str(value["agent_count"] or "–"),
        "model": value["model"],
        "γ": f"{value['gamma']:g}" if anchored else "",
        "V": str(value["anchors"]) if anchored else "",
        "warm-up": str(value["warmup"]),
    }


def _differing(labels: Sequence[dict[str, str]]) -> list[str]:
    """The names of what differs; of evaluations that are alike, their folders."""
    names = [name for name in labels[0] if name != "run"]
    differing = [name for name in names if len({found[name] for found in labels} - {""}) > 1]
    alike = len({tuple(found[name] for name in differing) for found in labels}) < len(labels)
    return [*differing, "run"] if alike else differing


def _common(labels: Sequence[dict[str, str]], differing: Sequence[str]) -> str:
    """What holds for all, where it applies."""
    found = {name: text for label in labels for name, text in label.items() if text}
    names = [name for name in labels[0] if name not in (*differing, "run")]
    said = (_said(name, found.get(name, "")) for name in names)
    return "; ".join(filter(None, said))


def _said(name: str, text: str) -> str:
    """A label in a sentence."""
    if not text or (name, text) == ("warm-up", "0"):
        return ""
    if name == "agents":
        return f"{text} agent{'' if text == '1' else 's'}"
    return {
        "suite": text,
        "graph": f"graph {text}",
        "model": text,
        "run": text,
        "warm-up": f"{text} task{'' if text == '1' else 's'} of warm-up",
    }.get(name, f"{name} {text}")


def _measured(values: Sequence[dict[str, Any]]) -> str:
    """Where, and how many tasks at once: what times depend on."""
    lines = []
    for found in (conditions for value in values for conditions in value["conditions"]):
        many = found["concurrent"]
        lines.append(
            f"on {found['device']}, {found['dtype']}, torch {found['torch']}, transformers "
            f"{found['transformers']}, {many} task{'' if many == 1 else 's'} at once"
        )
    return "; and ".join(dict.fromkeys(lines))


def _alone(values: Sequence[dict[str, Any]]) -> str:
    """A word about times that were taken while other tasks were under way."""
    many = {found["concurrent"] for value in values for found in value["conditions"]}
    if not many or many == {1}:
        return ""
    taken = f" Times were taken with {' and '.join(map(str, sorted(many)))} tasks at once"
    if len(many) > 1:
        return f"{taken}, and cannot be compared: use --concurrent 1."
    return f"{taken}, which makes them longer: compare times at --concurrent 1 only."


def _scores(
    values: Sequence[dict[str, Any]], labels: Sequence[dict[str, str]], differing: Sequence[str]
) -> RenderableType:
    errors = any(found["errors"] for value in values for found in value["modes"].values())
    columns = ["n", "score", "95 %", "tokens", "calls", "TTFT s", *(["errors"] if errors else [])]
    table = number_table("mode", *columns, before=differing)
    for value, label in zip(values, labels, strict=True):
        names = [_short(name, label[name]) for name in differing]
        for mode, found in value["modes"].items():
            low, high = found["ci95"]
            shares = [found["score"], found["token_reuse"], found["call_reuse"]]
            score, tokens, calls = (f"{share:.1%}" if found["samples"] else "–" for share in shares)
            table.add_row(
                *names,
                mode,
                f"{found['samples']:,}",
                score,
                f"{low:.0%}–{high:.0%}",
                tokens,
                calls,
                "–" if found["ttft_s"] is None else f"{found['ttft_s']:.3f}",
                *([str(found["errors"])] if errors else []),
            )
            names = [""] * len(names)  # said once
    return table


def _agents(
    values: Sequence[dict[str, Any]], labels: Sequence[dict[str, str]], differing: Sequence[str]
) -> RenderableType:
    """A line for each agent: its prompts, and what became of them."""
    columns = ("prompt", "computed", "realigned", "calls", "TTFT s")
    table = number_table("agent", *columns, before=[*differing, "mode"])
    table.columns[-len(columns) - 2].no_wrap = True  # the mode
    for value, label in zip(values, labels, strict=True):
        names = [_short(name, label[name]) for name in differing]
        for mode, found in value["modes"].items():
            names.append(mode)
            for agent, its in found["by_agent"].items():
                table.add_row(
                    *names,
                    agent,
                    f"{its['prompt_tokens']:,.0f}",
                    f"{its['computed_share']:.1%}",
                    f"{its['realigned_share']:.1%}",
                    f"{its['call_reuse']:.1%}",
                    f"{its['ttft_s']:.3f}",
                )
                names = [""] * len(names)
            names = names[:-1]
    return table


def _short(name: str, text: str) -> str:
    """A label in a narrow column: a model without its owner or folder."""
    return text.rstrip("/").rpartition("/")[2] if name == "model" else text


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
    return "; ".join(part for part in parts if part)


def times_in_words(ratio: float, interval: Sequence[float] | None) -> str:
    """How many times shorter or longer the first mode takes; `ratio` is the other's time over its.

    No number is below 1: a ratio of 0.5 is 2× longer.
    """
    said = _times_as(ratio)
    if interval is None:
        return said
    near, far = interval if ratio >= 1 else tuple(reversed(interval))
    if min(near, far) >= 1 or max(near, far) < 1:
        bounds = [value if ratio >= 1 else 1 / value for value in (near, far)]
        return f"{said} (95 % {bounds[0]:.1f}–{bounds[1]:.1f}×)"
    return f"{said} (95 % {_times_as(near)} to {_times_as(far)})"


def _times_as(ratio: float) -> str:
    return f"{ratio:.1f}× shorter" if ratio >= 1 else f"{1 / ratio:.1f}× longer"
