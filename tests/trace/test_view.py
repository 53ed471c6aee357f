"""The viewer, driven by textual's own pilot."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from textual.widgets import Input, Static, TabbedContent

from kvcomm.trace import TraceRun
from kvcomm.trace.run import CallView
from kvcomm.trace.view import Viewer, hits
from tests.trace import traces


@pytest.fixture
def run(tmp_path: Path) -> TraceRun:
    return traces.whole(tmp_path / "20250102-030405-chain")


def text(viewer: Viewer, tab: str) -> str:
    return traces.shown(viewer.query_one(f"#{tab}-body", Static).content, 100)  # type: ignore[arg-type]


async def test_it_opens_with_the_run_and_shows_the_call_under_the_cursor(run: TraceRun) -> None:
    viewer = Viewer(run)
    async with viewer.run_test(size=(100, 30)) as pilot:
        assert "Timeline" in text(viewer, "prompt")
        # Nothing is wider than its side.
        assert viewer.query_one(TabbedContent).region.right <= 100
        assert viewer.query_one("#prompt-body", Static).region.right <= 100
        await pilot.press("down")
        assert isinstance(viewer.subject, CallView)
        assert viewer.subject.node == "solver"
        # What a model wrote does not steer the terminal.
        assert "[bold]" in text(viewer, "prompt")
        assert "\x1b[31m" not in text(viewer, "prompt")
        await pilot.press("down")
        assert "entropy 0.31 of 4 anchors" in " ".join(text(viewer, "prompt").split())
        assert "█" in text(viewer, "prompt")
        # The prompt is whole, in the colours of its sources.
        file = io.StringIO()
        console = Console(file=file, width=100, force_terminal=True, color_system="standard")
        console.print(viewer.query_one("#prompt-body", Static).content)
        assert "\x1b[32m[literal 0 of critic]↵" in file.getvalue()
        assert "\x1b[36m7 * 12 = 84." in file.getvalue()


async def test_tabs_have_keys(run: TraceRun) -> None:
    viewer = Viewer(run)
    async with viewer.run_test(size=(110, 36)) as pilot:
        words = {"events": "critic begins", "audits": "No call was", "timeline": "prefills"}
        for key, tab in zip("2341", ("timeline", "audits", "events", "prompt"), strict=True):
            await pilot.press(key)
            await pilot.pause()
            assert viewer.query_one(TabbedContent).active == tab
            assert words.get(tab, "Graph") in text(viewer, tab)


async def test_search_goes_from_hit_to_hit(run: TraceRun) -> None:
    assert [view.node for view in hits(run, "LITERAL 0 OF CRITIC")] == ["critic"]
    assert hits(run, "") == []
    viewer = Viewer(run)
    async with viewer.run_test(size=(110, 36)) as pilot:
        await pilot.press("slash")
        assert viewer.query_one(Input).has_class("open")
        await pilot.press(*"PREFIX", "enter")
        assert isinstance(viewer.subject, CallView)
        assert viewer.subject.node == "critic"
        assert not viewer.query_one(Input).has_class("open")
        await pilot.press("slash", *"rolls", "enter")
        assert viewer.subject is hits(run, "rolls")[0]
        await pilot.press("n")
        assert viewer.subject is hits(run, "rolls")[1]
