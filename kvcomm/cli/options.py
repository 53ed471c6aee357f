"""Options: what help says of them, what values they take, and commands that take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from math import inf
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from kvcomm.cli.output import print_json, say
from kvcomm.errors import UsageError
from kvcomm.extras import need
from kvcomm.trace.text import megabytes, plural

DEFAULT_MODEL = "smollm2-135m"
RUNS = Path("runs")
DAY_S = 24 * 3600
# No context is longer, and no benchmark larger: what is beyond is a slip of the finger.
TOKENS, AGENTS, TIMES = (1, 10_000_000), (1, 1_000), (1, 100_000)


@dataclass(frozen=True)
class Option:
    """An option under the name of its parameter; without a `metavar` it is a switch.

    `names` are short ones beside it, or long ones in its place, `shown` is what help says for a
    default of None, `within` are the smallest and the largest number.
    """

    metavar: str
    help: str
    names: str = ""
    shown: str | bool = True
    within: tuple[float, float] = (-inf, inf)

    def named(self, name: str) -> list[str]:
        own = f"--{name.strip('_').replace('_', '-')}"
        return [*([] if self.names.startswith("--") else [own]), *self.names.split()]

    def declared(self, name: str, argument: bool) -> Any:
        if argument:
            return typer.Argument(metavar=self.metavar, help=self.help)
        names, metavar = self.named(name), self.metavar or None
        return typer.Option(*names, metavar=metavar, help=self.help, show_default=self.shown)

    def check(self, name: str, value: Any) -> None:
        """Raise `UsageError` for a number that makes no sense."""
        low, high = self.within
        if isinstance(value, int | float) and not low <= value <= high:
            most = f", and {high:,} at most" if high < inf else ""
            raise UsageError(f"{self.named(name)[0]} {value}: write {low:,} at least{most}")


# Those of several commands; help would print ranges of typer, and squeeze all other words.
OPTIONS = {
    "json": Option("", "Print one JSON object on stdout."),
    "runs": Option("DIR", "Where run folders are."),
    "seed": Option("S", "Seed of sampling and of random graphs.", within=(-(2**63), 2**63 - 1)),
    "data": Option("DIR", "Folder with SUITE.jsonl.", shown="KVCOMM_DATA"),
    # The model, and where it runs.
    "model": Option("M", "An alias, a folder, a hub id, or random:SHAPE.", "-m"),
    "device": Option("D", "cpu, cuda, cuda:1, mps."),
    "dtype": Option("T", "float32, bfloat16, float16."),
    "engine": Option("E", "local, ray, or openai: a server with that API."),
    "base_url": Option(
        "URL",
        "Where the server of --engine openai is: http://localhost:8000/v1; of several each runs "
        "whole graphs.",
        shown="KVCOMM_BASE_URL",
    ),
    "served_model": Option("NAME", "Which of the server's models, where it has several."),
    "replicas": Option(
        "N", "Copies of the model, for --engine ray.", "", "one a GPU, or one a machine", AGENTS
    ),
    "memory": Option("SIZE", "The most for all KV, such as 4GB.", shown="half of what is free"),
    "kv_cache": Option(
        "DIR|none", "Where the KV of texts is kept for later runs.", shown="the user's cache"
    ),
    "kv_cache_size": Option("SIZE", "The most in it.", shown="4GB"),
    # The graph.
    "graph": Option(
        "G", "chain, full, debate, star, layered, tree, random, or FILE.py[:NAME].", "-g"
    ),
    "agents": Option("N", "Agents in a ready-made graph.", "-n", "see graph list"),
    "rounds": Option("R", "Rounds of a debate.", shown="2"),
    "layout": Option("L", "role-first, or shared-first: the role text behind task and messages."),
    "max_tokens": Option("N", "Longest message, in tokens.", "", "256", TOKENS),
    "temperature": Option("T", "0 is greedy.", shown="0"),
    # What `prune` removes.
    "older_than": Option("DAYS", "What was not used for so long.", within=(0, inf)),
    "keep": Option("SIZE", "The oldest, until so much is left."),
    "everything": Option("", "Everything.", "--all"),
    "dry_run": Option("", "Only say what would go."),
    # The mode.
    "reuse": Option("R", "auto, exact, kvcomm or dense.", "-r"),
    "target": Option(
        "NATS",
        "Highest mean divergence from dense that auto may cause.",
        "--target-divergence",
        "0.02",
    ),
    "rate": Option(
        "SHARE", "Realigned calls of auto that are compared with dense.", "--audit-rate", "0.1"
    ),
    "budget": Option(
        "SHARE", "The most that auto computes of realigned texts.", "--repair-budget", "0.5"
    ),
}


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command that needs one in this process."""

    model: str = DEFAULT_MODEL
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class PruneOptions:
    """What `prune` commands remove of what is kept on disk."""

    older_than: float | None = None
    keep: str | None = None
    everything: bool = False
    dry_run: bool = False

    def limits(self) -> dict[str, Any]:
        """In seconds and bytes. Raises `UsageError`."""
        age = None if self.older_than is None else self.older_than * DAY_S
        room = size(self.keep, "--keep")
        return {"older_than": age, "keep": room, "everything": self.everything}

    def report(self, paths: Collection[Path], nbytes: int, what: str, json: bool) -> None:
        """Say which files are gone, or would be."""
        if json:
            files = [str(path) for path in paths]
            print_json({"files": files, "bytes": nbytes, "removed": not self.dry_run})
        elif not paths:
            say("Nothing to remove.")
        else:
            gone = "would go" if self.dry_run else "gone"
            say(f"{plural(len(paths), what)} {gone}: {megabytes(nbytes)}")


@dataclass(frozen=True)
class TeamOptions:
    """What `build_graph` changes in a graph, beside its number of agents."""

    rounds: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    layout: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class AutoOptions:
    """The options of the mode `auto`."""

    target: float | None = None
    rate: float | None = None
    budget: float | None = None

    def quality(self) -> dict[str, Any]:
        """As `Session` takes them, checked before anything is loaded."""
        from kvcomm.reuse.auto import AUDIT_RATE, REPAIR_BUDGET, TARGET, Auto

        values: dict[str, Any] = {
            "target_divergence": TARGET if self.target is None else self.target,
            "audit_rate": AUDIT_RATE if self.rate is None else self.rate,
            "repair_budget": REPAIR_BUDGET if self.budget is None else self.budget,
        }
        Auto(*values.values())
        return values


Command = Callable[..., None]


def takes(**own: Option | str) -> Callable[[Command], Command]:
    """A command whose parameters are options of `OPTIONS` or its `own`; before `*`, arguments.

    A text is a switch's help. A dataclass among the parameters stands for the options that are its
    fields: it is made, and may raise `UsageError`, before the command begins.
    """
    known = OPTIONS | {n: Option("", o) if isinstance(o, str) else o for n, o in own.items()}

    def taken(command: Command) -> Command:
        hints = get_type_hints(command)
        groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
        found: list[tuple[str, Any, Any, bool]] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if name in groups:
                kinds = get_type_hints(groups[name])
                found += [(f.name, kinds[f.name], f.default, False) for f in fields(groups[name])]
            else:
                argument = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
                found.append((name, hints[name], parameter.default, argument))

        @wraps(command)
        def run(**given: Any) -> None:
            for name, value in given.items():
                known[name].check(name, value)
            for name, group in groups.items():
                given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
            command(**given)

        run.__annotations__ = {
            name: Annotated[kind, known[name].declared(name, argument)]
            for name, kind, _, argument in found
        }
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=run.__annotations__[name],
                )
                for name, _, default, _ in found
            ]
        )
        return run

    return taken


def numbers(option: str, text: str) -> list[int]:
    """Numbers between commas, each once. Raises `UsageError` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    # Longer ones are none that anybody means, and take long to read.
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise UsageError(f"{option} {text!r}: write a number, or several: 1,2,4")
    found = list(dict.fromkeys(map(int, parts)))
    for number in found:
        Option("N", "", option, within=AGENTS).check("", number)
    return found


def size(value: str | None, option: str = "--memory") -> int | None:
    """A size in bytes. Raises `UsageError` for anything that is none."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if value is None:
        return None
    try:
        found = int(TypeAdapter(ByteSize).validate_python(value))
    except (ValidationError, OverflowError):
        found = 0
    if found <= 0:
        raise UsageError(f"{option} {value!r} is no size: write 4GB, 500MB or a number of bytes")
    return found


def check_plot(path: Path | None) -> None:
    """Raise `UsageError` for a file that nothing can be drawn into, before any work is done."""
    if path is None:
        return
    need("matplotlib", "plot")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise UsageError(f"--plot {path}: matplotlib writes {', '.join(formats)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
