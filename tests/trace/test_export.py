"""Traces written for other programs."""

from __future__ import annotations

import base64
import csv
import http.server
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from kvcomm.cli.trace_export import export
from kvcomm.errors import TraceError, UsageError
from kvcomm.trace import Recorder, TraceRun, read_trace
from kvcomm.trace.events import (
    Audited,
    CallFinished,
    MessageSent,
    NodeInfo,
    NodeStarted,
    RunStarted,
    ToolFinished,
)
from kvcomm.trace.export import FORMATS
from kvcomm.trace.export.calls import COLUMNS
from kvcomm.trace.export.html import page
from kvcomm.trace.export.otel import send_otel, write_otel
from tests.trace import traces

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br", "rect", "path"}


def spread(folder: Path) -> TraceRun:
    """A run whose times follow its graph: a tool, two readers of it, and a judge who hears both."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder)
    nodes = [
        NodeInfo(name="search", agent="search", tool=True),
        NodeInfo(name="left", agent="reader", senders=["search"]),
        NodeInfo(name=f"=right{EVIL}", agent=f"=cmd{EVIL}", senders=["search"]),
        NodeInfo(name="judge", agent="judge", senders=["left", f"=right{EVIL}", "search"]),
    ]
    recorder.write(
        RunStarted,
        kvcomm="0.1.0",
        started="2025-01-02T03:04:05+00:00",
        model=f"m{EVIL}",
        device="cpu",
        dtype="float32",
        mode="auto",
        seed=0,
        graph=f"g{EVIL}",
        nodes=nodes,
        answer_node="judge",
        inputs={"task": f"{EVIL} & more"},
    )
    recorder.write(
        ToolFinished,
        node="search",
        attempt=1,
        texts={"hits": EVIL},
        tokens={"hits": 12},
        ready_at=0.0,
        finished_at=0.25,
    )
    for info, ready in zip(nodes[1:], (0.25, 0.25, 2.0), strict=True):
        recorder.write(NodeStarted, node=info.name, attempt=1, prompt_capacity=90)
        traces.step(recorder, info.name, 0, "literal 0", "4 5 6 7", EVIL)
        recorder.write(
            MessageSent,
            node=info.name,
            attempt=1,
            text=f"{EVIL}\x1b[31m",
            tokens=3,
            handle=None,
            covered=0,
            exact=True,
            reason="",
        )
        recorder.write(
            CallFinished,
            node=info.name,
            agent=info.agent,
            round=1,
            attempt=1,
            mode="auto",
            gate=f"+{EVIL}",
            dense=False,
            exact=False,
            prompt_tokens=15,
            output_tokens=3,
            opened_at=0.1,
            ready_at=ready,
            first_token_at=ready + 0.1,
            finished_at=ready + 1.0,
            ttft_s=0.1,
            decode_s=0.9,
            ahead_s=0.05,
            stop="stop",
        )
    for used, level, found in ((False, "probe", 0.5), (True, "rotate", 0.0125)):
        recorder.write(
            Audited,
            node="judge",
            attempt=1,
            level=level,
            used=used,
            target=0.02,
            divergence=found,
            first_divergence=found,
            top1_agreement=1.0,
            same_text=True,
        )
    traces.finish(recorder)
    recorder.close()
    return read_trace(folder / "trace.jsonl")


RUNS = {
    "whole": traces.whole,
    "cut off": traces.cut_off,
    "failed": traces.failed,
    "spread": spread,
}


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> TraceRun:
    return RUNS[request.param](tmp_path / "run")


def written(run: TraceRun, name: str, folder: Path) -> Path:
    path = folder / FORMATS[name].file
    FORMATS[name].write(run, path)
    return path


def events_of(run: TraceRun, folder: Path) -> list[dict[str, Any]]:
    value: dict[str, Any] = json.loads(written(run, "perfetto", folder).read_text("utf-8"))
    found: list[dict[str, Any]] = value["traceEvents"]
    return found


def spans_of(run: TraceRun, folder: Path) -> list[dict[str, Any]]:
    (line,) = written(run, "otel", folder).read_text("utf-8").splitlines()
    found: list[dict[str, Any]] = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return found


def values_of(span: dict[str, Any]) -> dict[str, Any]:
    return {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}


class Balance(HTMLParser):
    """Reads a page and complains of tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_perfetto_slices_nest_and_flows_match(run: TraceRun, tmp_path: Path) -> None:
    events = events_of(run, tmp_path)
    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in slices)
    finished = [view for view in run.calls if view.call]
    assert sum(event["name"] == "decode" for event in slices) == len(finished)
    for tid in {event["tid"] for event in slices}:
        spans = sorted(
            ((e["ts"], e["ts"] + e["dur"]) for e in slices if e["tid"] == tid),
            key=lambda span: (span[0], -span[1]),
        )
        stack: list[float] = []
        for begin, end in spans:
            while stack and stack[-1] <= begin + 1e-3:
                stack.pop()
            assert not stack or end <= stack[-1] + 1e-3
            stack.append(end)
    flows = {ph: {e["id"]: e for e in events if e["ph"] == ph} for ph in "sf"}
    assert flows["s"].keys() == flows["f"].keys()
    assert all(flows["s"][n]["ts"] < flows["f"][n]["ts"] for n in flows["s"])
    for flow in [*flows["s"].values(), *flows["f"].values()]:
        assert any(
            e["tid"] == flow["tid"] and e["ts"] <= flow["ts"] < e["ts"] + e["dur"] for e in slices
        )


def test_perfetto_events_have_what_the_format_asks_for(run: TraceRun, tmp_path: Path) -> None:
    """As Chrome's "Trace Event Format" has it, for the phases that are used."""
    needed = {
        "M": {"name", "args"},
        "X": {"name", "cat", "ts", "dur", "args"},
        "i": {"name", "cat", "ts", "s", "args"},
        "s": {"name", "cat", "ts", "id"},
        "f": {"name", "cat", "ts", "id", "bp"},
    }

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = written(run, "perfetto", tmp_path).read_text("utf-8")
    value = json.loads(text, parse_constant=constant)
    assert value["displayTimeUnit"] in ("ms", "ns")
    events = value["traceEvents"]
    named: Counter[tuple[str, int]] = Counter()
    for event in events:
        assert event.keys() == needed[event["ph"]] | {"ph", "pid", "tid"}
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert all(type(event[key]) in (int, float) for key in ("ts", "dur") if key in event)
        assert all(event[key] >= 0 for key in ("ts", "dur") if key in event)
        assert event["name"]
        assert event.get("s", "t") in ("g", "p", "t")
        assert event.get("bp", "e") == "e"
        if event["ph"] == "M":
            kind = event["name"]
            argument = "sort_index" if kind == "thread_sort_index" else "name"
            assert kind in ("process_name", "thread_name", "thread_sort_index")
            assert type(event["args"][argument]) is (int if argument == "sort_index" else str)
            named[kind, event["tid"]] += 1
    assert set(named.values()) == {1}
    threads = {tid for kind, tid in named if kind == "thread_name"}
    assert {event["tid"] for event in events} <= threads
    ends = Counter((event["ph"], event["id"]) for event in events if event["ph"] in "sf")
    assert set(ends.values()) <= {1}


def test_perfetto_threads_flows_and_instants(tmp_path: Path) -> None:
    events = events_of(spread(tmp_path), tmp_path)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    arrows = Counter(names[e["tid"]] for e in events if e["ph"] == "f")
    assert arrows == {"left": 1, f"=right{EVIL}": 1, "judge": 3}
    judge = {e["name"]: e for e in events if e["ph"] in "Xi" and names[e["tid"]] == "judge"}
    assert judge.keys() == {
        "waits", "ahead", "prefill", "decode", "audit of rotate", "probe of probe"
    }  # fmt: skip
    assert judge["waits"]["dur"] == pytest.approx(1.9e6)
    assert judge["ahead"]["dur"] == pytest.approx(0.05e6)
    args = judge["prefill"]["args"]
    assert [args[n] for n in ("tokens", "computed", "prefix", "realigned")] == [15, 4, 5, 6]
    assert judge["audit of rotate"]["args"]["divergence"] == 0.0125
    retries = [e for e in events_of(traces.whole(tmp_path / "w"), tmp_path) if e["name"] == "retry"]
    assert [e["args"]["wait_s"] for e in retries] == [0.5]


def test_csv_comes_back(run: TraceRun, tmp_path: Path) -> None:
    with written(run, "csv", tmp_path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [column.name for column in COLUMNS]
    assert [int(row["attempt"]) for row in rows] == [view.attempt for view in run.calls]
    for row, view in zip(rows, run.calls, strict=True):
        assert row["node"].removeprefix("'") == view.node
        assert not row["node"].startswith("=")
        assert (row["stop"] == "") == (view.call is None)
        if view.call:
            assert float(row["finished_at"]) == view.call.finished_at
            assert int(row["prompt_tokens"]) == view.call.prompt_tokens
            assert row["dense"] == str(view.call.dense).lower()
        assert int(row["computed"]) == sum(step.computed for step in view.steps)


def test_csv_cells_begin_no_formula_and_hold_what_was_measured(tmp_path: Path) -> None:
    path = written(spread(tmp_path), "csv", tmp_path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["agent"] for row in rows] == ["reader", f"'=cmd{EVIL}", "judge"]
    assert {row["gate"] for row in rows} == {f"'+{EVIL}"}
    assert [row["divergence"] for row in rows] == ["", "", "0.0125"]


def test_parquet_has_the_columns_of_csv_with_types(run: TraceRun, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written(run, "parquet", tmp_path))
    assert table.column_names == [column.name for column in COLUMNS]
    kinds = {name: str(table.schema.field(name).type) for name in ("node", "ahead", "ttft_s")}
    assert kinds == {"node": "string", "ahead": "int64", "ttft_s": "double"}
    found = table.column("first_token_at").to_pylist()
    assert found == [view.call.first_token_at if view.call else None for view in run.calls]


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=re.escape('pip install "kvcomm[parquet]"')):
        FORMATS["parquet"].write(traces.whole(tmp_path / "run"), tmp_path / "calls.parquet")


def test_otel_spans_form_one_tree(run: TraceRun, tmp_path: Path) -> None:
    root, *children = spans_of(run, tmp_path)
    assert "parentSpanId" not in root
    assert {span["parentSpanId"] for span in children} == {root["spanId"]}
    spans = [root, *children]
    assert len({span["spanId"] for span in spans}) == len(spans)
    assert {span["traceId"] for span in spans} == {root["traceId"]}
    assert re.fullmatch("[0-9a-f]{32}", root["traceId"])
    assert all(re.fullmatch("[0-9a-f]{16}", span["spanId"]) for span in spans)
    for span in spans:
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    assert len(children) == len(run.calls) + len(run.tools)
    assert spans_of(run, tmp_path) == spans


def test_otel_names_times_and_status(tmp_path: Path) -> None:
    root, search, *_ = spans_of(spread(tmp_path / "a"), tmp_path)
    assert root["startTimeUnixNano"] == "1735787045000000000"
    assert root["status"] == {"code": 1}
    spans = {values_of(s).get("kvcomm.node"): s for s in spans_of(spread(tmp_path / "a"), tmp_path)}
    judge = spans["judge"]
    assert judge["name"] == "chat judge"
    assert [event["name"] for event in judge["events"]][-2:] == ["inputs complete", "first token"]
    assert {event["name"] for event in judge["events"]} >= {"audit", "probe"}
    values = values_of(judge)
    assert values["gen_ai.operation.name"] == "chat"
    assert values["gen_ai.request.model"] == f"m{EVIL}"
    assert values["gen_ai.usage.input_tokens"] == "15"
    assert values["gen_ai.usage.output_tokens"] == "3"
    assert values["gen_ai.response.finish_reasons"] == {"values": [{"stringValue": "stop"}]}
    assert values["kvcomm.realigned"] == "6"
    assert search["name"] != judge["name"]


def test_otel_attempts_that_failed_are_errors(tmp_path: Path) -> None:
    spans = spans_of(traces.whole(tmp_path / "run"), tmp_path)
    first, second = (span for span in spans if span["name"] == "chat editor")
    assert first["status"] == {"code": 2, "message": "did not finish"}
    assert [event["name"] for event in first["events"]] == ["retry"]
    assert second["status"] == {}
    cut, *_, last = spans_of(traces.cut_off(tmp_path / "cut"), tmp_path)
    assert cut["status"] == {"code": 2, "message": "cut off"}
    assert last["status"]["code"] == 2


def test_otel_is_what_the_protocol_reads(run: TraceRun, tmp_path: Path) -> None:
    json_format = pytest.importorskip("google.protobuf.json_format")
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    line = written(run, "otel", tmp_path).read_text("utf-8")
    request = json_format.Parse(line, service.ExportTraceServiceRequest())
    spans = request.resource_spans[0].scope_spans[0].spans
    raw = spans_of(run, tmp_path)
    assert len(spans) == len(raw)
    for span, known in zip(spans, raw, strict=True):
        # OTLP writes ids in hex, where the JSON of protocol buffers reads base64.
        assert base64.b64encode(span.span_id).decode() == known["spanId"]
        assert span.start_time_unix_nano == int(known["startTimeUnixNano"])
        assert len(span.attributes) == len(known["attributes"])


def test_otel_needs_a_start(tmp_path: Path) -> None:
    run = traces.whole(tmp_path / "run")
    run.started = run.started.model_copy(update={"started": "yesterday"})
    with pytest.raises(TraceError, match="'yesterday'"):
        FORMATS["otel"].write(run, tmp_path / "out")


def test_html_is_one_page_that_loads_nothing(run: TraceRun, tmp_path: Path) -> None:
    text = written(run, "html", tmp_path).read_text("utf-8")
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert not parser.seen.keys() & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert parser.seen["details"] == len(run.calls) + len(run.tools)
    anchors = [f"call-{place}" for place in range(len(run.calls))]
    assert re.findall(r' id="(call-\d+)"', text) == anchors
    assert re.findall(r' href="#([^"]+)"', text) == anchors
    assert parser.seen["h1"] == 1
    for view in run.calls:
        assert view.node in parser.text
        assert all(step.reason in parser.text for step in view.steps)
    assert ("cut off" in parser.text) == (run.finished is None)


def test_html_keeps_texts_text(tmp_path: Path) -> None:
    text = page(spread(tmp_path / "run"))
    assert "<script" not in text
    assert "\x1b" not in text
    parser = Balance()
    parser.feed(text)
    assert parser.text.count(EVIL) > 10


def test_html_shows_prompts_by_source(tmp_path: Path) -> None:
    text = page(traces.whole(tmp_path / "run"))
    prompts = re.findall(r'<pre class="prompt">(.*?)</pre>', text, re.DOTALL)
    assert len(prompts) == 2
    segments = re.findall(
        r'<span class="(\w+)" data-name="([^"]+)" title="([^"]+)">([^<]*)</span>', prompts[1]
    )
    assert [segment[:3] for segment in segments] == [
        ("prefix", "literal 0", "26 prefix (26 ahead)"),
        ("realigned", "{solver}", "1 computed, 23 realigned"),
        ("realigned", "literal 1", "1 computed, 14 realigned"),
    ]
    assert "".join(segment[3] for segment in segments) == (
        f"[literal 0 of critic]\n{traces.SAID}[literal 1 of critic]\n".replace("\x1b", "�")
    )


def test_html_says_why_an_attempt_was_given_up(tmp_path: Path) -> None:
    text = page(traces.whole(tmp_path / "run"))
    assert "attempt 1 failed: took longer than its timeout of 2 s; the next one" in text


@pytest.mark.parametrize("name", ["perfetto", "csv", "otel", "html"])
def test_a_run_in_which_nothing_began(name: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    traces.begin(recorder)
    recorder.close()
    assert written(read_trace(tmp_path / "trace.jsonl"), name, tmp_path).stat().st_size > 0


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(export)
    return app


def test_the_command_writes_and_does_not_overwrite(command: typer.Typer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    traces.whole(folder)
    runner = CliRunner()
    ended = runner.invoke(command, [str(folder), "--to", "csv"])
    assert ended.exit_code == 0
    assert Path(ended.output.strip()) == folder / "calls.csv"
    again = runner.invoke(command, [str(folder), "--to", "csv"])
    assert isinstance(again.exception, UsageError)
    assert "--force" in str(again.exception)
    assert runner.invoke(command, [str(folder), "--to", "csv", "--force"]).exit_code == 0


def test_the_command_refuses_what_it_cannot_do(command: typer.Typer, tmp_path: Path) -> None:
    trace = traces.whole(tmp_path / "run").path
    before = trace.read_bytes()
    cases = {
        "'xml' is unknown: choose one of perfetto, csv": ["--to", "xml"],
        "the trace itself": ["--to", "csv", "--out", str(trace), "--force"],
        "cannot write": ["--to", "csv", "--out", str(tmp_path / "none" / "calls.csv")],
    }
    for message, words in cases.items():
        ended = CliRunner().invoke(command, [str(trace), *words])
        assert isinstance(ended.exception, UsageError)
        assert message in str(ended.exception)
    assert trace.read_bytes() == before


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans as a collector does, and keeps them."""

    taken: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.path, json.loads(body)))
        self.send_response(200 if "refuse" not in self.path else 400)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.taken.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_spans_are_sent_to_a_collector(run: TraceRun, tmp_path: Path, collector: str) -> None:
    write_otel(run, tmp_path / "spans.jsonl")
    send_otel(run, collector)
    ((path, body),) = Collector.taken
    assert path == "/v1/traces"
    assert body == json.loads((tmp_path / "spans.jsonl").read_text())


def test_a_collector_that_does_not_take_them_is_named(run: TraceRun, collector: str) -> None:
    with pytest.raises(UsageError, match=r"refuse/v1/traces did not take the spans: .*400"):
        send_otel(run, f"{collector}/refuse")
    with pytest.raises(UsageError, match="did not take the spans"):
        send_otel(run, "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="is no address"):
        send_otel(run, "file:///etc/passwd")
