"""An interactive viewer of a trace (textual): agents on the left, what each did on the right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, Input, Static, TabbedContent, TabPane, Tree
from textual.widgets.tree import TreeNode

from kvcomm.trace.events import Event, SegmentStep
from kvcomm.trace.log import event_line
from kvcomm.trace.run import CallView, TraceRun
from kvcomm.trace.show import show_header, show_run, show_tool
from kvcomm.trace.show_calls import COLOURS, show_audit, show_call, show_prompt
from kvcomm.trace.text import number, shorten
from kvcomm.trace.timeline import Timeline

NAMES = ("Prompt", "Timeline", "Audits", "Events")
# So wide that a line fits a terminal of 80 columns, the tree beside it.
BAR = 24
# As many raw events as a reader scrolls through; `kvcomm trace tail` prints them all.
EVENTS = 500
# Above so many calls the first page is the header alone, and the tree has groups.
MANY = 200

TABS = {str(key): (name.lower(), name) for key, name in enumerate(NAMES, 1)}

Subject = TraceRun | CallView | list[CallView] | str


class Viewer(App[None]):
    """Shows one trace. Keys are at the bottom; `/` searches prompts, messages and reasons."""

    TITLE = "kvcomm trace"
    CSS = """
    Tree { width: 30; border-right: solid $panel; }
    Input { display: none; dock: bottom; }
    Input.open { display: block; }
    VerticalScroll { padding: 0 1; }
    TabbedContent { width: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("slash", "search", "Search"),
        Binding("n", "next", "Next hit"),
        *(Binding(key, f"tab('{name}')", title) for key, (name, title) in TABS.items()),
        Binding("escape", "close_search", "Back", show=False),
    ]

    def __init__(self, run: TraceRun) -> None:
        super().__init__()
        self.trace = run
        self.subject: Subject = run
        self._hits: list[Subject] = []

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield self._tree()
            with TabbedContent(initial="prompt"):
                for name, title in TABS.values():
                    with TabPane(title, id=name), VerticalScroll():
                        yield Static(id=f"{name}-body")
        yield Input(placeholder="search prompts, messages and reasons")
        yield Footer()

    def _tree(self) -> Tree[Subject]:
        """The run, its rounds, and in each its calls; tools at the end."""
        run = self.trace
        tree: Tree[Subject] = Tree(Text(shorten(run.path.parent.name, 26)), data=run)
        rounds: dict[int, list[CallView]] = defaultdict(list)
        for view in run.calls:
            rounds[run.info(view.node).round].append(view)
        for round_, views in sorted(rounds.items()):
            parent = tree.root.add(f"round {round_}", expand=True) if len(rounds) > 1 else tree.root
            if len(views) <= MANY:
                _add_calls(parent, views)
                continue
            for start in range(0, len(views), MANY):
                some = views[start : start + MANY]
                parent.add(f"calls {start + 1:,} to {start + len(some):,}", data=some)
        for tool in run.tools:
            tree.root.add_leaf(Text(f"{tool.node}  tool"), data=tool.node)
        tree.root.expand()
        return tree

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Subject]) -> None:
        """A group of calls is opened: only now it gets its leaves."""
        if isinstance(event.node.data, list) and not event.node.children:
            _add_calls(event.node, event.node.data)

    def on_mount(self) -> None:
        self.query_one(Tree).focus()
        self._show(self.trace)

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[Subject]) -> None:
        if event.node.data is not None and not isinstance(event.node.data, list):
            self._show(event.node.data)

    def action_tab(self, name: str) -> None:
        self.query_one(TabbedContent).active = name

    def action_search(self) -> None:
        line = self.query_one(Input).add_class("open").focus()
        line.value = ""

    def action_close_search(self) -> None:
        self.query_one(Input).remove_class("open")
        self.query_one(Tree).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the first call that holds the words."""
        self._hits = hits(self.trace, event.value)
        self.action_close_search()
        if self._hits:
            self.action_next()
        else:
            self.notify(f"nothing holds {event.value!r}")

    def action_next(self) -> None:
        """Go to the next call that holds what was searched for."""
        if self._hits:
            hit = self._hits.pop(0)
            self._hits.append(hit)
            tree = self.query_one(Tree)
            # The leaf may not be there yet: its group was never opened.
            tree.move_cursor(next((node for node in _nodes(tree.root) if node.data is hit), None))
            self._show(hit)

    def on_tabbed_content_tab_activated(self) -> None:
        self._show(self.subject)

    def _show(self, subject: Subject) -> None:
        """Fill the tab in front; the others wait until they are."""
        self.subject = subject
        tab = self.query_one(TabbedContent).active
        body = {"prompt": self._prompt, "audits": self._audits, "events": self._events}.get(tab)
        shown = body(subject) if body else Timeline(self.trace)
        self.query_one(f"#{tab}-body", Static).update(shown)

    def _prompt(self, subject: Subject) -> RenderableType:
        if isinstance(subject, CallView):
            bars = [source_bar(step) for step in subject.steps]
            legend = Text.assemble(*((f"█ {name}  ", colour) for name, colour in COLOURS.items()))
            prompt = show_prompt(self.trace, subject.steps)
            detail = show_call(self.trace, subject, whole=True, times=True)
            return Group(legend, *bars, "", prompt, detail)
        if isinstance(subject, str):
            return Group(*(show_tool(t, text=True) for t in self.trace.tools if t.node == subject))
        if len(self.trace.calls) > MANY:
            return show_header(self.trace)
        return Group(show_run(self.trace), "", show_header(self.trace, text=True))

    def _audits(self, subject: Subject) -> RenderableType:
        audits = subject.audits if isinstance(subject, CallView) else self.trace.audits()
        if not audits:
            return Text("No call was compared with dense here.", style="dim")
        return Group(*(Text(f"{audit.node}: {show_audit(audit)}") for audit in audits))

    def _events(self, subject: Subject) -> RenderableType:
        events = self.trace.events
        if not isinstance(subject, TraceRun):
            node = subject.node if isinstance(subject, CallView) else subject
            events = [event for event in events if getattr(event, "node", None) == node]
        lines = [f"{event.t:9.3f}  {event.kind:<8}{_said(event)}" for event in events[:EVENTS]]
        lines += [f"and {len(events) - EVENTS:,} more"] if len(events) > EVENTS else []
        return Text("\n".join(lines))


def source_bar(step: SegmentStep) -> Text:
    """One segment as a bar: how much of it was computed, copied, realigned."""
    bar = Text(f"{shorten(step.label, 14):<15}")
    for source, colour in COLOURS.items():
        width = round(BAR * getattr(step, source) / max(step.tokens, 1))
        bar.append("█" * width, colour)
    bar.append(f" {step.tokens:,}", "dim")
    return bar


def hits(run: TraceRun, words: str) -> list[Subject]:
    """The calls whose prompts, messages, segments or reasons hold the words, in any case."""
    words = words.lower()
    # A text may stand in many prompts: it is searched once.
    texts = {id for id, text in run.texts.items() if words in text.lower()}
    return [view for view in run.calls if words and _holds(view, words, texts)]


def _holds(view: CallView, words: str, texts: set[int]) -> bool:
    said = [view.node, *(step.name + " " + step.reason for step in view.steps)]
    said += [part.text for part in (view.message, view.interrupted) if part]
    said += [view.call.gate] if view.call else []
    return any(step.text in texts for step in view.steps) or words in "\0".join(said).lower()


def _add_calls(parent: TreeNode[Subject], views: list[CallView]) -> None:
    for view in views:
        note = f"{number(view.call.ttft_s)} s" if view.call else view.how
        label = Text.assemble(shorten(view.title, 20), (f"  {note}", "dim"))
        parent.add_leaf(label, data=view)


def _nodes(node: TreeNode[Subject]) -> Iterator[TreeNode[Subject]]:
    yield node
    for child in node.children:
        yield from _nodes(child)


def _said(event: Event) -> str:
    line = event_line(event) or event.model_dump_json(exclude={"v", "t", "kind"})
    return shorten(line, 300)
