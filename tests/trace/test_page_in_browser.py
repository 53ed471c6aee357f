"""The page in a browser: texts stay texts, nothing is loaded."""

import shutil
import subprocess
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
    """What the browser made of a page: its elements, its title, its texts."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.text, self.title, self._titled = "", "", False
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        # A drawing has titles, too: the page's is the first.
        self._titled = tag == "title" and self.elements[tag] == 1

    def handle_endtag(self, tag: str) -> None:
        self._titled = False

    def handle_data(self, data: str) -> None:
        self.text += data
        self.title += data if self._titled else ""


Open = Callable[..., tuple[Document, str]]


@pytest.fixture
def browser(tmp_path: Path) -> Open:
    """Opens pages: the document when it is loaded, and what the browser complained of."""

    def opened(text: str) -> tuple[Document, str]:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [str(BROWSER), *options.split(), profile, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return Document(done.stdout), done.stderr

    return opened


class Server(traces.Quiet):
    """Notes who asks for what, and has nothing."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:  # noqa: N802
        self.asked.append(self.path)
        self.send_error(404)


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    with traces.served(Server) as address:
        yield address


def hostile(folder: Path) -> TraceRun:
    """A run in which every text that a model, a user or a tool may write is hostile."""
    path = traces.whole(folder).path

    def turn(event: dict[str, Any]) -> None:
        texts = ("text", "reason", "gate", "error", "answer", "graph", "model")
        event |= {key: HOSTILE for key in texts if isinstance(event.get(key), str)}
        event |= {"inputs": {HOSTILE: HOSTILE}} if "inputs" in event else {}

    traces.rewrite(path, turn)
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
