"""Traces: their spans, both encodings as another library reads them, and a collector that comes and goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

from varvel.apps.model import AppId
from varvel.queue.model import Job, Outcome
from varvel.settings import BadSetting, Settings
from varvel.telemetry.model import RequestRow
from varvel.telemetry_export.rules import as_json, as_protobuf, of_call, of_job, spans
from varvel.telemetry_export.traces import Traces, endpoint, headers

REQUEST = "019e6d0a-e5be-7b82-b329-35ae64296902"


def call(**changes: Any) -> RequestRow:
    values: dict[str, Any] = {
        "request_id": REQUEST,
        "owner": "me",
        "app": "me/ocr",
        "endpoint_id": "me/ocr/turbo",
        "kind": "sync",
        "sent_at": 1_000_000,
        "started_at": 4_000_000,
        "ended_at": 5_000_000,
        "status_code": 200,
        "duration": 1.0,
        "prepare_duration": 3.0,
        "cold_boot": 2.0,
    }
    return RequestRow(**{**values, **changes})


def job(*headers: tuple[bytes, bytes]) -> Job:
    return Job(
        request_id=REQUEST,
        app=AppId("me", "ocr"),
        endpoint_id="me/ocr",
        path="/",
        query=b"",
        method="POST",
        headers=list(headers),
        body=b"",
        caller="me",
        submitted_at=1.0,
        attempts=2,
    )


def outcome(**changes: Any) -> Outcome:
    values: dict[str, Any] = {"status": 200, "headers": [], "body": b"", "started_at": 3.0, "ended_at": 4.0}
    return Outcome(**{**values, **changes})


def parts(found: list[Any]) -> dict[str, tuple[int, int]]:
    return {span.name: (span.begin, span.end) for span in found}


def test_a_cold_call_is_waiting_then_a_start_then_a_run() -> None:
    root, *children = spans(of_call(call()))
    assert root.name == "POST me/ocr/turbo"
    assert (root.trace_id, root.parent_id) == (REQUEST.replace("-", ""), "")
    assert (root.begin, root.end) == (1_000_000, 5_000_000)
    assert parts(children) == {
        "queue": (1_000_000, 2_000_000),
        "start": (2_000_000, 4_000_000),
        "run": (4_000_000, 5_000_000),
    }
    assert {child.parent_id for child in children} == {root.span_id}
    assert len({span.span_id for span in (root, *children)}) == 4


def test_a_queued_request_that_never_ran_has_no_run() -> None:
    root, *children = spans(of_job(job(), outcome(status=504, error_type="request_timeout", started_at=4.0)))
    assert root.failed
    assert root.attributes["error.type"] == "request_timeout"
    assert parts(children) == {"submit": (1_000_000, 1_000_000), "queue": (1_000_000, 4_000_000)}


@pytest.mark.parametrize(
    ("given", "trace"),
    [
        (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", ("a" * 32, "b" * 16)),
        (b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01", (REQUEST.replace("-", ""), "")),
        (b"nonsense", (REQUEST.replace("-", ""), "")),
    ],
)
def test_a_callers_own_trace_goes_on(given: bytes, trace: tuple[str, str]) -> None:
    root = spans(of_job(job((b"traceparent", given)), outcome()))[0]
    assert (root.trace_id, root.parent_id) == trace


def reader() -> Any:
    """A reader of ExportTraceServiceRequest made from the published field numbers by Google's library."""
    file = descriptor_pb2.FileDescriptorProto(name="otlp.proto", package="otlp", syntax="proto3")
    kinds = {
        "string": 9, "bytes": 12, "int64": 3, "fixed64": 6, "int32": 5, "double": 1,
    }  # fmt: skip
    shapes = {
        "AnyValue": {"string_value": (1, "string"), "int_value": (3, "int64"), "double_value": (4, "double")},
        "KeyValue": {"key": (1, "string"), "value": (2, "AnyValue")},
        "Resource": {"attributes": (1, "*KeyValue")},
        "Scope": {"name": (1, "string"), "version": (2, "string")},
        "Status": {"message": (2, "string"), "code": (3, "int32")},
        "Span": {
            "trace_id": (1, "bytes"),
            "span_id": (2, "bytes"),
            "parent_span_id": (4, "bytes"),
            "name": (5, "string"),
            "kind": (6, "int32"),
            "start_time_unix_nano": (7, "fixed64"),
            "end_time_unix_nano": (8, "fixed64"),
            "attributes": (9, "*KeyValue"),
            "status": (15, "Status"),
        },
        "ScopeSpans": {"scope": (1, "Scope"), "spans": (2, "*Span")},
        "ResourceSpans": {"resource": (1, "Resource"), "scope_spans": (2, "*ScopeSpans")},
        "Request": {"resource_spans": (1, "*ResourceSpans")},
    }
    for name, members in shapes.items():
        message = file.message_type.add(name=name)
        for member, (number, kind) in members.items():
            made = message.field.add(name=member, number=number, label=3 if kind.startswith("*") else 1)
            if kind in kinds:
                made.type = kinds[kind]
            else:
                made.type, made.type_name = 11, f".otlp.{kind.lstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("otlp.Request"))


def test_protobuf_and_json_say_the_same() -> None:
    found = spans(of_call(call(status_code=503, error_type="runner_disconnected")))
    resource: dict[str, str | int | float] = {"service.name": "varvel"}
    read = reader().FromString(as_protobuf(found, resource, "1.2"))
    (group,) = read.resource_spans
    assert group.resource.attributes[0].value.string_value == "varvel"
    (scope,) = group.scope_spans
    assert (scope.scope.name, scope.scope.version) == ("varvel", "1.2")
    shown = json.loads(as_json(found, resource, "1.2"))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert len(shown) == len(scope.spans) == 4
    for one, other in zip(scope.spans, shown, strict=True):
        assert one.trace_id.hex() == other["traceId"]
        assert one.span_id.hex() == other["spanId"]
        assert one.parent_span_id.hex() == other.get("parentSpanId", "")
        assert (one.name, one.kind) == (other["name"], other["kind"])
        assert str(one.start_time_unix_nano) == other["startTimeUnixNano"]
        assert str(one.end_time_unix_nano) == other["endTimeUnixNano"]
        assert one.status.code == other["status"].get("code", 0)
        for attribute, told in zip(one.attributes, other["attributes"], strict=True):
            assert attribute.key == told["key"]
            value = told["value"]
            assert attribute.value.string_value == value.get("stringValue", "")
            assert attribute.value.int_value == int(value.get("intValue", 0))
    assert scope.spans[0].status.code == 2


@dataclass
class Collector:
    url: str = ""
    status: int = 200
    bodies: list[bytes] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.seen.append({"path": request.path, **{name.lower(): value for name, value in request.headers.items()}})
        body = await request.read()
        if self.status == 200:
            self.bodies.append(body)
        return web.Response(status=self.status)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/{path:.*}", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


async def test_finished_requests_reach_the_collector_with_its_headers() -> None:
    async with collecting() as collector:
        traces = Traces(Settings(otlp_endpoint=collector.url, otlp_headers="x-tenant=7", otlp_encoding="protobuf"))
        await traces.start()
        traces.call(call())
        traces.job(job(), outcome())
        await traces.stop()
        assert traces.sent == 8
        assert collector.seen[0]["path"] == "/v1/traces"
        assert collector.seen[0]["x-tenant"] == "7"
        assert collector.seen[0]["content-type"] == "application/x-protobuf"
        read = reader().FromString(collector.bodies[0])
        assert [span.name for span in read.resource_spans[0].scope_spans[0].spans][:2] == [
            "POST me/ocr/turbo",
            "queue",
        ]


async def test_traces_wait_for_a_collector_that_is_away_within_a_bound() -> None:
    async with collecting() as collector:
        collector.status = 503
        traces = Traces(Settings(otlp_endpoint=f"{collector.url}/v1/traces", otlp_encoding="json", otlp_queue=50))
        for _ in range(12):
            traces.call(call())
        assert traces.dropped == 2
        await traces.start()
        await traces.stop()
        assert (traces.sent, len(collector.seen)) == (0, 1)
        collector.status = 200
        assert await traces._send()
        assert traces.sent == 40
        assert json.loads(collector.bodies[0])["resourceSpans"]
        collector.status = 400
        traces.call(call())
        assert await traces._send()
        assert traces.dropped == 3
        await traces.stop()


async def test_without_an_endpoint_nothing_is_taken() -> None:
    traces = Traces(Settings())
    await traces.start()
    traces.call(call())
    assert not traces._waiting
    await traces.stop()


@pytest.mark.parametrize(
    "settings", [{"otlp_endpoint": "collector:4317"}, {"otlp_headers": "novalue"}, {"otlp_encoding": "thrift"}], ids=str
)
async def test_a_setting_that_cannot_be_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(BadSetting):
        Traces(Settings(**settings))  # type: ignore[arg-type]


def test_the_path_is_added_to_a_bare_endpoint() -> None:
    assert endpoint("http://c:4318") == "http://c:4318/v1/traces"
    assert endpoint("http://c:4318/otlp/v1/traces") == "http://c:4318/otlp/v1/traces"
    assert headers("a=1, b=x=y") == {"a": "1", "b": "x=y"}


async def test_the_wake_up_comes_early_when_much_waits() -> None:
    async with collecting() as collector:
        traces = Traces(Settings(otlp_endpoint=collector.url))
        await traces.start()
        for _ in range(600):
            traces.call(call())
        async with asyncio.timeout(5):
            while traces.sent < 600 * 4:
                await asyncio.sleep(0.01)
        await traces.stop()
        assert len(collector.bodies) == 2
