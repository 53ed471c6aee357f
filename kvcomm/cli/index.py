"""`kvcomm index FOLDER|CORPUS.jsonl`: compute the KV of a corpus before anybody asks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kvcomm.cli import options
from kvcomm.cli.options import Option
from kvcomm.cli.output import complain, print_json, say
from kvcomm.cli.progress import Counted
from kvcomm.errors import ReuseRefused, UsageError
from kvcomm.trace.text import megabytes, plural


@options.takes(
    corpus=Option("FOLDER|FILE", "Text files (*.txt, *.md), or one passage a line (*.jsonl)."),
    contexts=Option("N", "Read every passage in the company of N others' sets.", within=(1, 8)),
    kv_dtype=Option("T", "Write float32 or bfloat16 (half the room).", shown="the model's"),
    dry_run="Only say what would be computed.",
)
def index(
    corpus: Path,
    *,
    model: options.ModelOptions,
    contexts: int = 1,
    kv_cache: Path | None = None,
    kv_cache_size: str | None = None,
    kv_dtype: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Compute the KV of a corpus ahead, so that questions over it realign its passages.

    What is known already is left out: the same command goes on where it was
    interrupted, and computes what is new when files have changed.
    """
    from kvcomm.engine.kv_cache import SIZE, KVCache, root
    from kvcomm.engine.load import load_engine
    from kvcomm.engine.local import LocalEngine
    from kvcomm.tasks.index import build, corpus_of, plan

    if kv_dtype not in (None, "float32", "bfloat16", "float16"):
        raise UsageError(f"--kv-dtype {kv_dtype!r}: write float32, bfloat16 or float16")
    if kv_cache == Path("none"):
        raise UsageError("an index is kept on disk: name a --kv-cache folder, or leave it out")
    passages = corpus_of(corpus)
    size = options.size(kv_cache_size, "--kv-cache-size") or SIZE
    where = KVCache(kv_cache, size, kv_dtype)
    complain(f"loading {model.model}")
    engine = load_engine(model.model, kv_cache=where, device=model.device, dtype=model.dtype)
    with engine:
        if not isinstance(engine, LocalEngine):
            raise ReuseRefused(f"{model.model} cannot reuse KV: {engine.capabilities.reason}")
        found = plan(engine, passages, contexts=contexts, dtype=kv_dtype)
        place = kv_cache or root() / engine.fingerprint
        value: dict[str, Any] = {
            "model": engine.model,
            "passages": found.passages,
            "known": found.known,
            "tokens": found.tokens,
            "bytes": found.nbytes,
            "kv_cache": str(place),
            "computed_tokens": 0,
        }
        what = f"{plural(found.passages, 'passage')}, {found.known:,} of them known; to compute: "
        what += f"{found.tokens:,} tokens, {megabytes(found.nbytes)} in {place}"
        complain(what)
        if found.nbytes > size:
            raise UsageError(
                f"{megabytes(found.nbytes)} do not fit in {megabytes(size)}: use a larger "
                "--kv-cache-size, or --kv-dtype bfloat16"
            )
        if not dry_run and found.groups:
            with Counted("tokens", found.read) as progress:

                def on_group(done: int, of: int) -> None:
                    progress.show(
                        "tokens", done, f"{done:,} of {of:,} tokens" if done == of else ""
                    )

                value["computed_tokens"] = asyncio.run(build(engine, found, on_group))
    if json:
        print_json(value)
    elif dry_run or not found.groups:
        say(f"{what}.")
    else:
        say(f"{plural(found.passages, 'passage')} in {place}")
