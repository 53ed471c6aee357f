"""A vLLM server with kvcomm's connector on loopback, for as long as it is needed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START_S = 300.0
CONNECTOR = ("KvcommConnector", "kvcomm.vllm.connector")
OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--generation-config", "vllm"),
    *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--block-size", "32"),
    *("--logits-processors", "kvcomm.vllm.forced:ForcedTokens"),
)


class NotStarted(RuntimeError):
    """The server did not start; the message ends its log."""


@contextmanager
def vllm(
    python: Path,
    model: Path,
    name: str,
    log: Path,
    *more: str,
    connector: tuple[str, str] = CONNECTOR,
    extra: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """The port of a server that calls its model `name`, once it is healthy; `more` are options.

    It is ended whatever happens, with what it has started. Raises `NotStarted`, with the end of its
    `log`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    transfer = {
        "kv_connector": connector[0],
        "kv_connector_module_path": connector[1],
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra or {},
    }
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), *OPTIONS),
        *("--kv-transfer-config", json.dumps(transfer), *more),
    ]
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **(environment or {}),
    }
    with log.open("w") as out:
        # A session of its own: the server's own processes are stopped with it.
        process = subprocess.Popen(
            command, env=variables, stdout=out, stderr=out, start_new_session=True
        )
        try:
            _await_health(process, port, log)
            yield port
        finally:
            for signum, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 20)):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, signum)
                    process.wait(patience)


def _await_health(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2),
        ):
            return
        time.sleep(0.5)
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-30:])
    raise NotStarted(f"{tail}\nvLLM did not start within {START_S:g} s: {log} ends above")
