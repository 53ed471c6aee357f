"""Traces written for other programs."""

import base64
import csv
import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvcomm.errors import TraceError, UsageError
from kvcomm.trace import TraceRun
from kvcomm.trace.events import Audited, NodeInfo, ToolFinished
from kvcomm.trace.export import FORMATS
from kvcomm.trace.export.html import page
from kvcomm.trace.export.otel import send_otel
from kvcomm.trace.export.table import COLUMNS
from tests.trace import traces

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br", "path"}


class Balance(HTMLParser):
    """Reads a page and complains of tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.open += [tag] if tag not in VOID else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def spread(folder: Path) -> TraceRun:
    """A run whose times follow its graph: a tool, two readers of it, and a judge who hears both."""
    right = f"=right{EVIL}"
    nodes = [
        NodeInfo(name="search", agent="search", tool=True),
        NodeInfo(name="left", agent="reader", senders=["search"]),
        NodeInfo(name=right, agent=f"=cmd{EVIL}", senders=["search"]),
        NodeInfo(name="judge", agent="judge", senders=["left", right, "search"]),
    ]
    texts = {"model": f"m{EVIL}", "graph": f"g{EVIL}", "inputs": {"task": f"{EVIL} & more"}}
    told = {"started": "2025-01-02T03:04:05+00:00", "mode": "auto", "answer_node": "judge"}
    written = traces.Written(folder, nodes=nodes, **texts, **told)
    found = {"texts": {"hits": EVIL}, "tokens": {"hits": 12}}
    written.write(ToolFinished, node="search", attempt=1, ready_at=0, finished_at=0.25, **found)
    for info, ready in zip(nodes[1:], (0.25, 0.25, 2.0), strict=True):
        written.prompt(info.name, ("literal 0", "4 5 6 7", EVIL))
        times = f"0.1 {ready} {ready + 0.1} {ready + 1}"
        fields = {"prompt_tokens": 15, "output_tokens": 3, "ahead_s": 0.05, "stop": "stop"}
        written.add(
            traces.message(info.name, f"{EVIL}\x1b[31m", tokens=3, handle=None),
            traces.call(info.name, times, agent=info.agent, gate=f"+{EVIL}", **fields),
        )
    audit = {"node": "judge", "attempt": 1, "target": 0.02, "top1_agreement": 1, "same_text": True}
    for used, level, divergence in ((False, "probe", 0.5), (True, "rotate", 0.0125)):
        measured = {"divergence": divergence, "first_divergence": divergence}
        written.write(Audited, level=level, used=used, **audit, **measured)
    return written.end()


RUNS = {"whole": traces.whole, "cut off": traces.cut_off, "failed": traces.failed, "spread": spread}


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> TraceRun:
    return RUNS[request.param](tmp_path / "run")


def written(run: TraceRun, name: str, folder: Path) -> Path:
    path = folder / FORMATS[name].file
    FORMATS[name].write(run, path)
    return path


def events_of(run: TraceRun, folder: Path) -> list[dict[str, Any]]:
    value = json.loads(written(run, "perfetto", folder).read_text("utf-8"))
    assert value["displayTimeUnit"] == "ms"
    return list(value["traceEvents"])


def spans_of(run: TraceRun, folder: Path) -> list[dict[str, Any]]:
    (line,) = written(run, "otel", folder).read_text("utf-8").splitlines()
    return list(json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"])


# As Chrome's "Trace Event Format" has it, for the phases that are used.
NEEDED = {
    "M": "name args",
    "X": "name cat ts dur args",
    "i": "name cat ts s args",
    "s": "name cat ts id",
    "f": "name cat ts id bp",
}
METADATA = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}


def test_perfetto_events_have_what_the_format_asks_for(run: TraceRun, tmp_path: Path) -> None:
    events = events_of(run, tmp_path)
    for event in events:
        assert event.keys() == {*NEEDED[event["ph"]].split(), "ph", "pid", "tid"}
        assert type(event["pid"]) is type(event["tid"]) is int
        assert all(0 <= event[key] < math.inf for key in ("ts", "dur") if key in event)
        assert event["name"]
        assert event.get("s", "t") in ("g", "p", "t")
        assert event.get("bp", "e") == "e"
    named = [event for event in events if event["ph"] == "M"]
    assert all(event["args"].keys() == {METADATA[event["name"]]} for event in named)
    assert len({(event["name"], event["tid"]) for event in named}) == len(named)
    threads = {event["tid"] for event in named if event["name"] == "thread_name"}
    assert {event["tid"] for event in events} <= threads


def test_perfetto_slices_nest_and_flows_match(run: TraceRun, tmp_path: Path) -> None:
    events = events_of(run, tmp_path)
    slices = [(e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X"]
    assert sum(event["name"] == "decode" for event in events) == len(run.done)
    for (one, begin, end), (other, first, last) in itertools.combinations(sorted(slices), 2):
        # Two slices of a thread are apart, or one holds the other.
        assert one != other or end <= first + 1e-3 or last <= end + 1e-3 or begin >= first - 1e-3
    ends = [event for event in events if event["ph"] in "sf"]
    flows = {ph: {e["id"]: e["ts"] for e in ends if e["ph"] == ph} for ph in "sf"}
    assert len(ends) == len(flows["s"]) + len(flows["f"])
    assert flows["s"].keys() == flows["f"].keys()
    assert all(flows["s"][n] < flows["f"][n] for n in flows["s"])
    for flow in ends:
        assert any(tid == flow["tid"] and b <= flow["ts"] < e for tid, b, e in slices)


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
    assert reader.fieldnames == list(COLUMNS)
    assert [int(row["attempt"]) for row in rows] == [view.attempt for view in run.calls]
    for row, view in zip(rows, run.calls, strict=True):
        # No cell begins a formula.
        assert row["node"] == ("'" if view.node.startswith("=") else "") + view.node
        assert (row["stop"] == "") == (view.call is None)
        if view.call:
            assert float(row["finished_at"]) == view.call.finished_at
            assert int(row["prompt_tokens"]) == view.call.prompt_tokens
            assert row["dense"] == str(view.call.dense).lower()
            assert row["gate"] == ("'" if view.call.gate.startswith("+") else "") + view.call.gate
        assert int(row["computed"]) == sum(step.computed for step in view.steps)
        assert row["divergence"] == ("0.0125" if view.audits else "")


def test_parquet_has_the_columns_of_csv_with_types(
    run: TraceRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written(run, "parquet", tmp_path))
    assert table.column_names == list(COLUMNS)
    kinds = {name: str(table.schema.field(name).type) for name in ("node", "ahead", "ttft_s")}
    assert kinds == {"node": "string", "ahead": "int64", "ttft_s": "double"}
    found = table.column("first_token_at").to_pylist()
    assert found == [view.call.first_token_at if view.call else None for view in run.calls]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=re.escape('pip install "kvcomm[parquet]"')):
        written(run, "parquet", tmp_path)


def test_otel_spans_form_one_tree(run: TraceRun, tmp_path: Path) -> None:
    root, *children = spans = spans_of(run, tmp_path)
    assert "parentSpanId" not in root
    assert {span["parentSpanId"] for span in children} == {root["spanId"]}
    assert len({span["spanId"] for span in spans}) == len(spans)
    assert {span["traceId"] for span in spans} == {root["traceId"]}
    assert re.fullmatch("[0-9a-f]{32}", root["traceId"])
    for span in spans:
        assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    assert len(children) == len(run.calls) + len(run.tools)
    assert spans_of(run, tmp_path) == spans


def test_otel_names_times_and_status(tmp_path: Path) -> None:
    spans = spans_of(spread(tmp_path / "a"), tmp_path)
    root, *_, search = spans
    assert root["startTimeUnixNano"] == "1735787045000000000"
    assert root["status"] == {"code": 1}
    assert search["name"] == "execute_tool search"
    (judge,) = (span for span in spans if span["name"] == "chat judge")
    names = [event["name"] for event in judge["events"]]
    assert names[-2:] == ["inputs complete", "first token"]
    assert {"audit", "probe"} <= set(names)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": f"m{EVIL}",
        "gen_ai.usage.input_tokens": "15",
        "gen_ai.usage.output_tokens": "3",
        "gen_ai.response.finish_reasons": {"values": [{"stringValue": "stop"}]},
        "kvcomm.realigned": "6",
    }
    values = {a["key"]: next(iter(a["value"].values())) for a in judge["attributes"]}
    assert expected.items() <= values.items()
    run = traces.whole(tmp_path / "run")
    first, second = (s for s in spans_of(run, tmp_path) if s["name"] == "chat editor")
    assert first["status"] == {"code": 2, "message": "did not finish"}
    assert [event["name"] for event in first["events"]] == ["retry"]
    assert second["status"] == {}
    cut, *_, last = spans_of(traces.cut_off(tmp_path / "cut"), tmp_path)
    assert cut["status"] == {"code": 2, "message": "cut off"}
    assert last["status"]["code"] == 2
    run.started = run.started.model_copy(update={"started": "yesterday"})
    with pytest.raises(TraceError, match="'yesterday'"):
        written(run, "otel", tmp_path)


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


def test_html_is_one_page_that_loads_nothing(run: TraceRun, tmp_path: Path) -> None:
    text = written(run, "html", tmp_path).read_text("utf-8")
    parser = Balance(text)
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
    assert "\x1b" not in text
    assert (parser.text.count(EVIL) > 10) == (run.started.graph == f"g{EVIL}")


def test_html_shows_prompts_by_source(tmp_path: Path) -> None:
    text = page(traces.whole(tmp_path / "run"))
    assert "attempt 1 failed: took longer than its timeout of 2 s; tried again" in text
    *_, prompt = re.findall(r'<pre class="prompt">(.*?)</pre>', text, re.DOTALL)
    segment = r'<span class="(\w+)" data-name="([^"]+)" title="([^"]+)">([^<]*)</span>'
    assert re.findall(segment, prompt) == [
        ("prefix", "literal 0", "26 prefix (26 ahead)", "[literal 0 of critic]\n"),
        ("realigned", "{solver}", "1 computed, 23 realigned", traces.SAID.replace("\x1b", "�")),
        ("realigned", "literal 1", "1 computed, 14 realigned", "[literal 1 of critic]\n"),
    ]
    for name in ("perfetto", "csv", "otel", "html"):  # of a run in which nothing began
        run = traces.Written(tmp_path / name).read()
        assert written(run, name, tmp_path).stat().st_size > 0


class Collector(traces.Quiet):
    """Takes spans as a collector does, and keeps them."""

    taken: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.path, json.loads(body)))
        self.send_response(200 if "refuse" not in self.path else 400)
        self.end_headers()


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.taken.clear()
    with traces.served(Collector) as address:
        yield address


def test_spans_are_sent_to_a_collector(tmp_path: Path, collector: str) -> None:
    run = spread(tmp_path / "run")
    send_otel(run, collector)
    ((path, body),) = Collector.taken
    assert path == "/v1/traces"
    assert body == json.loads(written(run, "otel", tmp_path).read_text())
    for endpoint, error in (
        (f"{collector}/refuse", r"refuse/v1/traces did not take the spans: .*400"),
        ("http://127.0.0.1:9", "did not take the spans"),
        ("file:///etc/passwd", "is no address"),
    ):
        with pytest.raises(UsageError, match=error):
            send_otel(run, endpoint)
