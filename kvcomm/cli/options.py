"""Options that several commands share, and commands that take them by the group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from kvcomm.errors import UsageError
from kvcomm.extras import need

DEFAULT_MODEL = "smollm2-135m"
RUNS = Path("runs")
# No context is longer, and no benchmark larger: what is beyond is a slip of the finger.
MOST_TOKENS, MOST_AGENTS, MOST_TIMES = 10_000_000, 1_000, 100_000
MODELS = "An alias, a folder, a hub id, or random:SHAPE"


def option(metavar: str, help: str, *names: str, shown: str | bool = True, **more: Any) -> Any:
    """An option of a command; `shown` is what help says for a default that is None."""
    return typer.Option(*names, metavar=metavar, help=help, show_default=shown, **more)


Graph = Annotated[
    str,
    option(
        "G", "chain, full, debate, star, layered, tree, random, or FILE.py[:NAME].", "--graph", "-g"
    ),
]
Agents = Annotated[
    int | None,
    option("N", "Agents in a ready-made graph.", "--agents", "-n", shown="see graph list"),
]
Rounds = Annotated[int | None, option("R", "Rounds of a debate.", shown="2")]
Layout = Annotated[
    str | None, option("L", "role-first, or shared-first: the role text behind task and messages.")
]
Model = Annotated[str, option("M", f"{MODELS}.", "--model", "-m")]
Device = Annotated[str | None, option("D", "cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str | None, option("T", "float32, bfloat16, float16.")]
Reuse = Annotated[str, option("R", "auto, exact, kvcomm or dense.", "--reuse", "-r")]
Data = Annotated[Path | None, option("DIR", "Folder with SUITE.jsonl.", shown="KVCOMM_DATA")]


def _seed(value: int) -> int:
    """A seed of 64 bits. A range of the option would be printed, and squeeze all other words."""
    if not -(2**63) <= value < 2**63:
        raise UsageError(f"--seed {value} has more than 64 bits: use a smaller number")
    return value


Seed = Annotated[int, option("S", "Seed of sampling and of random graphs.", callback=_seed)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command that needs one in this process."""

    model: Model = DEFAULT_MODEL
    device: Device = None
    dtype: Dtype = None


@dataclass(frozen=True)
class TeamOptions:
    """What `build_graph` changes in a graph, beside its number of agents."""

    rounds: Rounds = None
    max_tokens: Annotated[
        int | None, option("N", "Longest message, in tokens.", shown="256", max=MOST_TOKENS)
    ] = None
    temperature: Annotated[float | None, option("T", "0 is greedy.", shown="0")] = None
    layout: Layout = None
    seed: Seed = 0


@dataclass(frozen=True)
class AutoOptions:
    """The options of the mode `auto`."""

    target: Annotated[
        float | None,
        option(
            "NATS",
            "Highest mean divergence from dense that auto may cause.",
            "--target-divergence",
            shown="0.02",
        ),
    ] = None
    rate: Annotated[
        float | None,
        option(
            "SHARE",
            "Realigned calls of auto that are compared with dense.",
            "--audit-rate",
            shown="0.1",
        ),
    ] = None
    budget: Annotated[
        float | None,
        option(
            "SHARE",
            "The most that auto computes of a realigned text.",
            "--repair-budget",
            shown="0.25",
        ),
    ] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with the options that a dataclass among its parameters has in place of it.

    A field is an option if its type is `Annotated`. The dataclass is made, and may raise
    `UsageError`, before the command begins.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    options: dict[str, tuple[Any, Any]] = {}  # annotation and default, by name
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            options[name] = hints[name], parameter.default
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            if get_origin(kinds[field.name]) is Annotated:
                options[field.name] = kinds[field.name], field.default

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            own = [field.name for field in fields(group) if field.name in given]
            given[name] = group(**{field: given.pop(field) for field in own})
        command(**given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, keyword, default=default, annotation=kind)
            for name, (kind, default) in options.items()
        ]
    )
    run.__annotations__ = {name: kind for name, (kind, _) in options.items()}
    return run


def state_argument(value: str | None) -> Any:
    """`--state` as `Session` takes it: the user's cache, nothing, or a folder."""
    if value is None:
        return "default"
    return None if value == "none" else Path(value)


def check_mode(mode: str) -> str:
    """A known reuse mode. Raises `UsageError` before anything is loaded."""
    from kvcomm.reuse.policy import MODES

    if mode not in MODES:
        raise UsageError(f"reuse mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
    return mode


def quality(target: float | None, rate: float | None, budget: float | None) -> dict[str, Any]:
    """The options of `auto` as `Session` takes them, checked before anything is loaded."""
    from kvcomm.reuse.auto import AUDIT_RATE, REPAIR_BUDGET, TARGET, Auto

    values: dict[str, Any] = {
        "target_divergence": TARGET if target is None else target,
        "audit_rate": AUDIT_RATE if rate is None else rate,
        "repair_budget": REPAIR_BUDGET if budget is None else budget,
    }
    Auto(*values.values())
    return values


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


def check_plot(path: Path) -> None:
    """Raise `UsageError` for a file that nothing can be drawn into, before any work is done."""
    need("matplotlib", "plot")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise UsageError(f"--plot {path}: matplotlib writes {', '.join(formats)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
