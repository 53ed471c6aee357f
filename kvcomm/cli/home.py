"""Where the model of a command runs: in this process, on replicas, or on a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kvcomm.cli.options import DEFAULT_MODEL
from kvcomm.cli.output import complain
from kvcomm.errors import UsageError

if TYPE_CHECKING:
    from kvcomm.graphs import AgentGraph

ENGINES = ("local", "openai", "ray")
# The options that only some engines have.
BELONGS = {
    "base_url": ("openai",),
    "served_model": ("openai",),
    "replicas": ("ray",),
    "spread": ("ray",),
    "device": ("local", "ray"),
    "dtype": ("local", "ray"),
    "memory": ("local", "ray"),
    "spill": ("local",),
}


@dataclass(frozen=True)
class Home:
    """The options that say which engine is loaded. Raises `UsageError` where they disagree."""

    engine: str
    model: str | None
    base_url: str | None
    served_model: str | None
    device: str | None
    dtype: str | None
    memory: int | None
    spill: Path | None
    replicas: int | None
    spread: bool | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine!r}: choose one of {', '.join(ENGINES)}")
        for name, engines in BELONGS.items():
            if self.engine not in engines and getattr(self, name) is not None:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} belongs to --engine {' or '.join(engines)}")
        if self.engine == "openai" and not self._url:
            raise UsageError(
                "--engine openai needs the server's address: --base-url http://HOST:PORT/v1, "
                "or KVCOMM_BASE_URL"
            )

    @property
    def _url(self) -> str:
        return self.base_url or os.environ.get("KVCOMM_BASE_URL", "")

    def place(self, graph: AgentGraph, engine: Any) -> AgentGraph:
        """The graph with its agents where the options want them."""
        return graph.spread(len(engine.replicas)) if self.spread else graph

    def load(self) -> Any:
        """The engine, to be closed by a `with` statement. Raises `ModelError`."""
        from kvcomm.engine.models import load_engine, load_ray, load_served

        if self.engine == "openai":
            complain(f"asking the server at {urlsplit(self._url).hostname}")
            return load_served(self._url, self.model, served_model=self.served_model)
        model = self.model or DEFAULT_MODEL
        complain(f"loading {model}")
        if self.engine == "ray":
            return load_ray(
                model, self.replicas, device=self.device, dtype=self.dtype, memory=self.memory
            )
        return load_engine(
            model, device=self.device, dtype=self.dtype, memory=self.memory, spill=self.spill
        )
