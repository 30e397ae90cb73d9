"""A finished request as a trace: what its spans are, and how OTLP writes them. No I/O.

One trace a request. Its id is the request's id without dashes, or the caller's when a `traceparent` came with the
request. The root is the whole request; below it `submit` (the moment it came in), `queue` (waiting), `start` (a
runner started for it) and `run` (the last attempt).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from varvel.queue.model import Job, Outcome
from varvel.telemetry.model import RequestRow

INTERNAL, SERVER = 1, 2
_ERROR = 2
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
Value = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a trace needs to know of a request; times in microseconds since 1970."""

    request_id: str
    app: str
    endpoint_id: str
    kind: str
    method: str
    caller: str
    sent_at: int
    started_at: int
    """Equals ended_at when no runner began."""
    ended_at: int
    cold_boot: float
    status: int
    error_type: str
    attempts: int
    runner_id: str
    revision: str
    machine_type: str
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span; ids in hexadecimal, times in microseconds."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    begin: int
    end: int
    failed: bool = False
    attributes: dict[str, Value] = field(default_factory=dict)


def of_call(row: RequestRow, traceparent: str = "") -> Finished:
    """A direct call, from its record."""
    return Finished(
        request_id=row.request_id,
        app=row.app,
        endpoint_id=row.endpoint_id,
        kind=row.kind,
        method=row.method,
        caller=row.caller,
        sent_at=row.sent_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        cold_boot=row.cold_boot,
        status=row.status_code,
        error_type=row.error_type,
        attempts=row.attempts,
        runner_id=row.runner_id,
        revision=row.revision,
        machine_type=row.machine_type,
        traceparent=traceparent,
    )


def of_job(job: Job, outcome: Outcome) -> Finished:
    """A queued request, from the queue."""
    parent = next((value.decode("latin-1") for name, value in job.headers if name == b"traceparent"), "")
    return Finished(
        request_id=job.request_id,
        app=str(job.app),
        endpoint_id=job.endpoint_id,
        kind="queue",
        method=job.method,
        caller=job.caller or "",
        sent_at=round(job.submitted_at * 1e6),
        started_at=round(outcome.started_at * 1e6),
        ended_at=round(outcome.ended_at * 1e6),
        cold_boot=outcome.cold_boot,
        status=outcome.status,
        error_type=outcome.error_type or "",
        attempts=job.attempts,
        runner_id=outcome.runner_id or "",
        revision=outcome.revision or "",
        machine_type=outcome.machine_type,
        traceparent=parent,
    )


def spans(request: Finished) -> list[Span]:
    """The trace of a request: its root, then its parts in order of time."""
    trace_id, parent = _trace(request)
    root = _span_id(request.request_id, "request")
    ran = request.started_at < request.ended_at
    starting = max(request.sent_at, request.started_at - round(request.cold_boot * 1e6))
    parts = [("submit", request.sent_at, request.sent_at)] if request.kind == "queue" else []
    parts.append(("queue", request.sent_at, starting))
    if request.cold_boot > 0 and starting < request.started_at:
        parts.append(("start", starting, request.started_at))
    if ran:
        parts.append(("run", request.started_at, request.ended_at))
    return [
        Span(
            trace_id=trace_id,
            span_id=root,
            parent_id=parent,
            name=f"{request.method} {request.endpoint_id}",
            kind=SERVER,
            begin=request.sent_at,
            end=max(request.sent_at, request.ended_at),
            failed=request.status >= 500,
            attributes=_attributes(request),
        ),
        *(
            Span(
                trace_id=trace_id,
                span_id=_span_id(request.request_id, name),
                parent_id=root,
                name=name,
                kind=INTERNAL,
                begin=begin,
                end=max(begin, end),
            )
            for name, begin, end in parts
        ),
    ]


def _trace(request: Finished) -> tuple[str, str]:
    found = _TRACEPARENT.fullmatch(request.traceparent.strip())
    if found and int(found[1], 16) and int(found[2], 16):
        return found[1], found[2]
    return request.request_id.replace("-", ""), ""


def _span_id(request_id: str, name: str) -> str:
    return hashlib.sha256(f"{request_id} {name}".encode()).hexdigest()[:16]


def _attributes(request: Finished) -> dict[str, Value]:
    known: dict[str, Value] = {
        "http.request.method": request.method,
        "http.response.status_code": request.status,
        "error.type": request.error_type,
        "varvel.request_id": request.request_id,
        "varvel.app": request.app,
        "varvel.endpoint_id": request.endpoint_id,
        "varvel.kind": request.kind,
        "varvel.caller": request.caller,
        "varvel.attempts": request.attempts,
        "varvel.runner_id": request.runner_id,
        "varvel.revision": request.revision,
        "varvel.machine_type": request.machine_type,
    }
    return {name: value for name, value in known.items() if value != ""}


# OTLP as JSON


def as_json(batch: Iterable[Span], resource: dict[str, Value], version: str) -> bytes:
    """An ExportTraceServiceRequest in OTLP's JSON form."""
    scope = {"name": "varvel", "version": version}
    traced = [{"scope": scope, "spans": [_json_span(span) for span in batch]}]
    page = {"resourceSpans": [{"resource": {"attributes": _json_attributes(resource)}, "scopeSpans": traced}]}
    return json.dumps(page, separators=(",", ":")).encode()


def _json_span(span: Span) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.begin * 1000),
        "endTimeUnixNano": str(span.end * 1000),
        "attributes": _json_attributes(span.attributes),
        "status": {"code": _ERROR} if span.failed else {},
    }
    return {**shown, "parentSpanId": span.parent_id} if span.parent_id else shown


def _json_attributes(values: dict[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _json_value(value)} for key, value in values.items()]


def _json_value(value: Value) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}


# OTLP as protobuf: opentelemetry/proto/trace/v1/trace.proto, of which few fields are needed


def as_protobuf(batch: Iterable[Span], resource: dict[str, Value], version: str) -> bytes:
    """The same in protobuf."""
    scope = _text(1, "varvel") + _text(2, version)
    scope_spans = _field(1, scope) + b"".join(_field(2, _proto_span(span)) for span in batch)
    resource_spans = _field(1, _proto_attributes(1, resource)) + _field(2, scope_spans)
    return _field(1, resource_spans)


def _proto_span(span: Span) -> bytes:
    return b"".join(
        (
            _field(1, bytes.fromhex(span.trace_id)),
            _field(2, bytes.fromhex(span.span_id)),
            _field(4, bytes.fromhex(span.parent_id)) if span.parent_id else b"",
            _text(5, span.name),
            _number(6, span.kind),
            _fixed(7, span.begin * 1000),
            _fixed(8, span.end * 1000),
            _proto_attributes(9, span.attributes),
            _field(15, _number(3, _ERROR)) if span.failed else b"",
        )
    )


def _proto_attributes(number: int, values: dict[str, Value]) -> bytes:
    return b"".join(_field(number, _text(1, key) + _field(2, _proto_value(value))) for key, value in values.items())


def _proto_value(value: Value) -> bytes:
    if isinstance(value, str):
        return _text(1, value)
    return _number(3, value) if isinstance(value, int) else _varint(4 << 3 | 1) + struct.pack("<d", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & 0xFFFFFFFFFFFFFFFF)


def _fixed(number: int, value: int) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<Q", max(0, value))


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())
