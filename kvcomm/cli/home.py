"""Where the model of a command runs: in this process, on replicas, or on a server."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvcomm.cli import options
from kvcomm.cli.output import complain
from kvcomm.errors import UsageError

MODEL = replace(
    options.OPTIONS["model"],
    help="An alias, a folder, a hub id, or random:SHAPE; of a served model, its tokenizer.",
    shown=f"{options.DEFAULT_MODEL}, or the served one",
)
ENGINES = ("local", "openai", "ray")
# The options that only some engines have.
BELONGS = {
    "base_url": ("openai",),
    "served_model": ("openai",),
    "replicas": ("ray",),
    "device": ("local", "ray"),
    "dtype": ("local", "ray"),
    "memory": ("local", "ray"),
    "kv_cache": ("local",),
    "kv_cache_size": ("local",),
}


@dataclass(frozen=True)
class Home:
    """The options that say which engine is loaded. Raises `UsageError` where they disagree."""

    model: str | None = None
    engine: str = "local"
    base_url: list[str] | None = None
    served_model: str | None = None
    replicas: int | None = None
    device: str | None = None
    dtype: str | None = None
    memory: str | None = None
    kv_cache: Path | None = None
    kv_cache_size: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine!r}: choose one of {', '.join(ENGINES)}")
        for name, engines in BELONGS.items():
            if self.engine not in engines and getattr(self, name) not in (None, []):
                (option,) = options.OPTIONS[name].named(name)
                raise UsageError(f"{option} belongs to --engine {' or '.join(engines)}")
        if self.engine == "openai" and not self._urls:
            raise UsageError(
                "--engine openai needs the server's address: --base-url http://HOST:PORT/v1, "
                "or KVCOMM_BASE_URL"
            )
        options.size(self.memory)
        options.size(self.kv_cache_size, "--kv-cache-size")

    @property
    def _urls(self) -> list[str]:
        return self.base_url or os.environ.get("KVCOMM_BASE_URL", "").split()

    def load(self, *, keeps: bool = True) -> Any:
        """The engine, to be closed by a `with` statement. Raises `ModelError`.

        Unless it `keeps` things, it has a KV cache on disk only where one is named.
        """
        from kvcomm.engine.load import load_engine, load_ray, load_served

        if self.engine == "openai":
            for url in self._urls:
                complain(f"asking the server at {urlsplit(url).hostname}")
            return load_served(self._urls, self.model, served_model=self.served_model)
        model = self.model or options.DEFAULT_MODEL
        how: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        how["memory"] = options.size(self.memory)
        complain(f"loading {model}")
        if self.engine == "ray":
            return load_ray(model, self.replicas, **how)
        return load_engine(model, kv_cache=self._kv_cache(keeps), **how)

    def _kv_cache(self, keeps: bool) -> Any:
        from kvcomm.engine.kv_cache import SIZE, KVCache

        if self.kv_cache == Path("none") or (self.kv_cache is None and not keeps):
            return None
        size = options.size(self.kv_cache_size, "--kv-cache-size")
        return KVCache(self.kv_cache, size or SIZE)
