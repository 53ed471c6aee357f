"""What went otherwise than it should have in a run, and what would help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvcomm.trace.events import Restarted
from kvcomm.trace.run import TraceRun
from kvcomm.trace.text import plain, plural, seconds, share, shorten

# A wait is worth a word from this share of the run on.
LONG = 0.15


def advice(run: TraceRun) -> list[str]:
    """What to change, most valuable first. Nothing where nothing would help."""
    if not run.finished or run.finished.totals.wall_s <= 0:
        return []
    wall_s = run.finished.totals.wall_s
    whole = (*_rewritten(run), *_learning(run), *_shared(run))
    return [*_late(run, wall_s), *whole, *_decoding(run, wall_s)]


def warnings(run: TraceRun) -> list[str]:
    """What was lost, missed or above the target, with the reasons that the run gave."""
    lines = [shorten(event.error, 100) for event in run.of(Restarted)]
    for retry in run.retries:
        lines.append(f"{retry.node} failed and was tried again: {shorten(retry.error, 100)}")
    for audit in run.audits():
        if audit.error:
            lines.append(f"{audit.node}: an audit failed: {shorten(audit.error, 100)}")
        elif audit.used and audit.divergence is not None and audit.divergence > audit.target:
            lines.append(
                f"{audit.node}: divergence {audit.divergence:.4f} is above the target of "
                f"{audit.target:g} (one call; the promise is about their mean)"
            )
    for view in run.calls:
        for step in view.steps:
            if "planned:" in step.reason:
                lines.append(f"{view.node}: {{{step.name}}} {plain(step.reason)}")
        if view.message and "no room" in view.message.reason:
            lines.append(f"{view.node}: its message went without KV: {plain(view.message.reason)}")
    for tool in run.tools:
        for name in tool.cut:
            lines.append(f"{tool.node}: {name} was cut after {plural(tool.tokens[name], 'token')}")
    for call in run.done:
        if call.redone_tokens:
            lines.append(f"{call.node}: {plural(call.redone_tokens, 'token')} computed for nothing")
    return lines


def _late(run: TraceRun, wall_s: float) -> Iterator[str]:
    """A node with several inputs that waits for one of them alone."""
    done = {call.node: call.finished_at for call in run.done}
    for info in run.started.nodes:
        ends = sorted(((done[name], name) for name in info.senders if name in done), reverse=True)
        if len(ends) > 1 and (gap := ends[0][0] - ends[1][0]) > LONG * wall_s:
            yield (
                f"{info.name} waits for {ends[0][1]}, which ends {seconds(gap)} after all its "
                "other inputs: give it fewer tokens, or less to wait for itself"
            )


def _rewritten(run: TraceRun) -> Iterator[str]:
    for view in run.calls:
        message = view.message
        if message and message.handle and message.covered < message.tokens - 1:
            missing = message.tokens - message.covered
            yield (
                f"{view.node}: {missing:,} of {message.tokens:,} tokens of its message have no KV, "
                "as its text was changed behind the model (`post`): keep pieces of it as they are"
            )


def _learning(run: TraceRun) -> Iterator[str]:
    """Calls of a mode that learns, which it knew too little for."""
    dense = [call for call in run.done if call.dense]
    if run.started.mode == "kvcomm" and dense and len(dense) * 2 >= len(run.done):
        gates = Counter(call.gate.split(":")[-1].strip().split(",")[0] for call in dense)
        reason, _ = gates.most_common(1)[0]
        yield (
            f"{len(dense)} of {plural(len(run.done), 'call')} fell back to dense, mostly as "
            f"{plain(reason)}. Anchors need texts of like length and content; --reuse auto does not"
        )
    waiting = [call for call in run.done if "too little learned" in call.gate]
    if run.started.mode == "auto" and waiting:
        yield (
            f"auto has seen too little for {plural(len(waiting), 'call')}: it learns from every "
            "run with the same agents (keep --state), and was exact until then"
        )


def _shared(run: TraceRun) -> Iterator[str]:
    """Inputs that several agents computed, each behind its own role text."""
    computed: Counter[str] = Counter()
    readers: Counter[str] = Counter()
    for view in run.last_calls():
        for step in view.steps:
            if step.segment == "placeholder" and step.name in run.started.inputs:
                computed[step.name] += step.computed
                readers[step.name] += 1
    total = sum(step.computed for view in run.last_calls() for step in view.steps)
    for name, tokens in computed.items():
        if readers[name] > 1 and tokens * 2 > total:
            yield (
                f"{{{name}}} was computed {readers[name]} times, {share(tokens, total)} of all "
                "that was: with --layout shared-first it stands before the roles, and is "
                "computed once"
            )


def _decoding(run: TraceRun, wall_s: float) -> Iterator[str]:
    decoding, reached = 0.0, 0.0  # what overlaps counts once
    for begin, end in sorted((call.first_token_at, call.finished_at) for call in run.done):
        decoding += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    if (part := decoding / wall_s) > 0.8:
        yield (
            f"decoding takes {min(part, 1):.0%} of the run, and no reuse mode shortens it: shorter "
            "answers (--max-tokens) would"
        )
