"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kvcomm.errors import UsageError
from kvcomm.extras import need

DEFAULT_MODEL = "smollm2-135m"
RUNS = Path("runs")
# No context is longer, and no benchmark larger: what is beyond is a slip of the finger.
MOST_TOKENS, MOST_AGENTS, MOST_TIMES = 10_000_000, 1_000, 100_000

Graph = Annotated[
    str,
    typer.Option(
        "--graph",
        "-g",
        metavar="G",
        help="chain, full, debate, star, layered, tree, random, or FILE.py[:NAME].",
    ),
]
Agents = Annotated[
    int | None,
    typer.Option(
        "--agents",
        "-n",
        metavar="N",
        help="Agents in a ready-made graph.",
        show_default="see graph list",
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option("--rounds", metavar="R", help="Rounds of a debate.", show_default="2"),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        max=MOST_TOKENS,
        metavar="N",
        help="Longest message, in tokens.",
        show_default="256",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", help="0 is greedy.", show_default="0"),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="L",
        help="role-first, or shared-first: the role text behind task and messages.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="M", help="An alias, a folder, a hub id, or random:SHAPE."
    ),
]
TeamModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="M",
        help="An alias, a folder, a hub id, or random:SHAPE; of a served model, its tokenizer.",
        show_default=f"{DEFAULT_MODEL}, or the served one",
    ),
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="E", help="local, ray, or openai: a server with that API."),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        max=MOST_AGENTS,
        metavar="N",
        help="Copies of the model, for --engine ray.",
        show_default="one a GPU, or one a machine",
    ),
]
Spread = Annotated[
    bool,
    typer.Option("--spread", help="Place the agents on the replicas in turn, for --engine ray."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="Where the server of --engine openai is, such as http://localhost:8000/v1.",
        show_default="KVCOMM_BASE_URL",
    ),
]
ServedModel = Annotated[
    str | None,
    typer.Option(
        "--served-model",
        metavar="NAME",
        help="Which of the server's models, where it has several.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1, mps.", show_default=False),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="T", help="float32, bfloat16, float16.", show_default=False),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="The most for all KV, such as 4GB.",
        show_default="half of what is free",
    ),
]
Spill = Annotated[
    Path | None,
    typer.Option(
        "--spill",
        metavar="DIR",
        help="Folder for shared KV that no longer fits in memory.",
        show_default=False,
    ),
]
Reuse = Annotated[
    str, typer.Option("--reuse", "-r", metavar="R", help="auto, exact, kvcomm or dense.")
]
Target = Annotated[
    float | None,
    typer.Option(
        "--target-divergence",
        metavar="NATS",
        help="Highest mean divergence from dense that auto may cause.",
        show_default="0.02",
    ),
]
AuditRate = Annotated[
    float | None,
    typer.Option(
        "--audit-rate",
        metavar="SHARE",
        help="Realigned calls of auto that are compared with dense.",
        show_default="0.1",
    ),
]
RepairBudget = Annotated[
    float | None,
    typer.Option(
        "--repair-budget",
        metavar="SHARE",
        help="The most that auto computes of a realigned text.",
        show_default="0.25",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with SUITE.jsonl.",
        show_default="KVCOMM_DATA",
    ),
]


def _seed(value: int) -> int:
    """A seed of 64 bits. A range of the option would be printed, and squeeze all other words."""
    if not -(2**63) <= value < 2**63:
        raise UsageError(f"--seed {value} has more than 64 bits: use a smaller number")
    return value


Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="S", callback=_seed, help="Seed of sampling and of random graphs."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


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

    fields: dict[str, Any] = {
        "target_divergence": TARGET if target is None else target,
        "audit_rate": AUDIT_RATE if rate is None else rate,
        "repair_budget": REPAIR_BUDGET if budget is None else budget,
    }
    Auto(*fields.values())
    return fields


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
