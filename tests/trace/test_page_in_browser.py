"""The page in a browser: texts stay texts, nothing is loaded, folds open."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvcomm.trace import TraceRun, read_trace
from kvcomm.trace.export.html import POLICY, page
from tests.trace import traces

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")

HOSTILE = (
    "</script><script>document.title='taken'</script></pre></title></style>"
    "<img src=x onerror=\"document.title='taken'\"><b>bold</b> &lt;i&gt; \"'>"
)


class Document(HTMLParser):
    """What the browser made of a page: its elements, its title, its texts, its open folds."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.folds: list[bool] = []
        self.text, self.title, self._titled = "", "", False
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        # A drawing has titles, too: the page's is the first.
        self._titled = tag == "title" and self.elements[tag] == 1
        if tag == "details":
            self.folds.append("open" in dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._titled = False

    def handle_data(self, data: str) -> None:
        self.text += data
        self.title += data if self._titled else ""


Open = Callable[..., tuple[Document, str]]


@pytest.fixture
def browser(tmp_path: Path) -> Open:
    """Opens pages: the document when it is loaded, and what the browser complained of."""

    def opened(text: str, fragment: str = "") -> tuple[Document, str]:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [str(BROWSER), *options.split(), profile, path.as_uri() + fragment]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return Document(done.stdout), done.stderr

    return opened


class Server(http.server.BaseHTTPRequestHandler):
    """Notes who asks for what, and has nothing."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def hostile(folder: Path) -> TraceRun:
    """A run in which every text that a model, a user or a tool may write is hostile."""
    path = traces.whole(folder).path

    def turned(event: dict[str, Any]) -> dict[str, Any]:
        texts = ("text", "reason", "gate", "error", "answer", "graph", "model")
        changed = {key: HOSTILE for key in texts if isinstance(event.get(key), str)}
        return event | changed | ({"inputs": {HOSTILE: HOSTILE}} if "inputs" in event else {})

    lines = [turned(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return read_trace(path)


def test_hostile_text_stays_text(browser: Open, tmp_path: Path) -> None:
    run = hostile(tmp_path / "run")
    found, complaints = browser(page(run))
    assert found.title == f"{HOSTILE} on {HOSTILE}, kvcomm"
    assert not found.elements.keys() & {"script", "img", "iframe", "link"}
    prompts = sum(len(view.steps) for view in run.calls)
    messages = sum(view.message is not None for view in run.calls)
    assert found.text.count(HOSTILE) >= 2 * prompts + messages
    assert "Content Security Policy" not in complaints


def test_the_policy_stops_scripts_and_requests(browser: Open, tmp_path: Path, server: str) -> None:
    slipped = (
        f"<script>document.title='taken'</script><script src={server}/script></script>"
        f"<img src={server}/image onerror=\"document.title='taken'\">"
        f"<iframe src={server}/frame></iframe><link rel=stylesheet href={server}/sheet>"
        f"<style>body {{ background: url({server}/background) }}</style>"
    )
    text = page(traces.whole(tmp_path / "run")).replace("<h1>", f"{slipped}<h1>")
    found, complaints = browser(text)
    assert found.title == "chain on random:llama-tiny, kvcomm"
    assert "Content Security Policy" in complaints
    assert Server.asked == []
    # The same page without its policy does all of it.
    assert browser(text.replace(POLICY, ""))[0].title == "taken"
    assert {"/script", "/image", "/frame", "/sheet"} <= set(Server.asked)


def test_calls_are_folded_and_the_table_opens_them(browser: Open, tmp_path: Path) -> None:
    run = traces.whole(tmp_path / "run")
    text = page(run)
    folded = [False] * len(run.calls)
    assert browser(text)[0].folds == folded
    for place in range(len(run.calls)):
        assert f'<td><a href="#call-{place}">' in text
        opened = browser(text, f"#call-{place}")[0].folds
        assert opened == [*folded[:place], True, *folded[place + 1 :]]
