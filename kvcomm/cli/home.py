"""Where the model of a command runs: in this process, on replicas, or on a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from kvcomm.cli import options
from kvcomm.cli.options import option
from kvcomm.cli.output import complain
from kvcomm.errors import UsageError

ENGINES = ("local", "openai", "ray")
# The options that only some engines have.
BELONGS = {
    "base_url": ("openai",),
    "served_model": ("openai",),
    "replicas": ("ray",),
    "device": ("local", "ray"),
    "dtype": ("local", "ray"),
    "memory": ("local", "ray"),
    "spill": ("local",),
}


@dataclass(frozen=True)
class Home:
    """The options that say which engine is loaded. Raises `UsageError` where they disagree."""

    model: Annotated[
        str | None,
        option(
            "M",
            f"{options.MODELS}; of a served model, its tokenizer.",
            "--model",
            "-m",
            shown=f"{options.DEFAULT_MODEL}, or the served one",
        ),
    ] = None
    engine: Annotated[str, option("E", "local, ray, or openai: a server with that API.")] = "local"
    base_url: Annotated[
        str | None,
        option(
            "URL",
            "Where the server of --engine openai is, such as http://localhost:8000/v1.",
            shown="KVCOMM_BASE_URL",
        ),
    ] = None
    served_model: Annotated[
        str | None, option("NAME", "Which of the server's models, where it has several.")
    ] = None
    replicas: Annotated[
        int | None,
        option(
            "N",
            "Copies of the model, for --engine ray.",
            shown="one a GPU, or one a machine",
            max=options.MOST_AGENTS,
        ),
    ] = None
    device: options.Device = None
    dtype: options.Dtype = None
    memory: Annotated[
        str | None,
        option("SIZE", "The most for all KV, such as 4GB.", shown="half of what is free"),
    ] = None
    spill: Annotated[
        Path | None, option("DIR", "Folder for shared KV that no longer fits in memory.")
    ] = None

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
        options.size(self.memory)

    @property
    def _url(self) -> str:
        return self.base_url or os.environ.get("KVCOMM_BASE_URL", "")

    def load(self) -> Any:
        """The engine, to be closed by a `with` statement. Raises `ModelError`."""
        from kvcomm.engine.load import load_engine, load_ray, load_served

        if self.engine == "openai":
            complain(f"asking the server at {urlsplit(self._url).hostname}")
            return load_served(self._url, self.model, served_model=self.served_model)
        memory = options.size(self.memory)
        model = self.model or options.DEFAULT_MODEL
        complain(f"loading {model}")
        if self.engine == "ray":
            return load_ray(
                model, self.replicas, device=self.device, dtype=self.dtype, memory=memory
            )
        return load_engine(
            model, device=self.device, dtype=self.dtype, memory=memory, spill=self.spill
        )
