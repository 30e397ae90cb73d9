"""Every setting of the server, in one table from which flags, environment names, `--help` and docs are made.

Order of precedence: command-line flag, then `VARVEL_<NAME>`, then `DIR/varvel.toml`, then the default here.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from varvel.errors import VarvelError


class BadSetting(VarvelError):
    """A setting has a value that it cannot have."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one server. Sizes are in bytes and times in seconds unless the name says otherwise."""

    # Where it lives and listens
    data: Path = _setting(Path(".varvel"), "Data folder: everything that Varvel keeps.")
    host: str = _setting("127.0.0.1", "Address to bind; the default is reachable from this machine only.")
    port: int = _setting(8787, "Port of everything over plain HTTP.")
    tls_port: int = _setting(8788, "Port of the same over TLS, with a private CA in DIR/tls/ca.pem.")
    control_port: int = _setting(
        8789, "Reserved for the gRPC that the fal command line speaks. That is not built yet: nothing listens there."
    )
    public_url: str = _setting("", "URL under which clients reach this server; empty takes the Host header.")
    shutdown_grace: float = _setting(10.0, "How long requests in flight may go on after SIGTERM.")
    log_level: str = _setting("info", "Least level of the server's own log lines on stderr.")

    # Gateway
    max_body: int = _setting(100 * 1024 * 1024, "Largest request body.")
    buffer_body: int = _setting(1024 * 1024, "Bodies up to this size are held in memory; larger ones stream or spill.")
    max_headers: int = _setting(16 * 1024, "Largest set of response headers that an app may answer.")
    max_request_headers: int = _setting(64 * 1024, "Largest set of headers that a request may have.")
    result_ttl: float = _setting(3600.0, "How long a queue result can be fetched after completion.")
    large_result: int = _setting(10 * 1024, "Results of this size or more go earlier, unless payloads are kept.")
    large_result_ttl: float = _setting(360.0, "How long a large result can be fetched after completion.")
    result_days: int = _setting(
        30, "How many days a result can be fetched whose payload is kept (see payload_days, payload_limit); 0 for none."
    )
    queue_memory: int = _setting(64 * 1024 * 1024, "Most bytes of waiting bodies, and of recent results, in memory.")
    retry_backoff: float = _setting(0.5, "Wait before the second attempt of a queued request; doubles for each.")
    retry_backoff_max: float = _setting(30.0, "Longest wait between two attempts of a queued request.")
    payload_days: int = _setting(30, "How many days the JSON payloads of requests are kept.")
    payload_limit: int = _setting(256 * 1024, "Payloads larger than this are not kept in request records.")
    cancel_patience: float = _setting(10.0, "How long an app may take to answer that it was asked to cancel.")
    status_heartbeat: float = _setting(15.0, "A quiet status stream says that it is alive this often.")
    upload_limit: int = _setting(10 * 1024**3, "Largest file that a client may upload.")
    unzip_files: int = _setting(100_000, "Most files in an archive that is uploaded to be unpacked.")
    unzip_bytes: int = _setting(50 * 1024**3, "Most bytes that an uploaded archive may unpack to.")
    unzip_ratio: float = _setting(200.0, "Most times its own size that a large archive may unpack to.")
    fetch_timeout: float = _setting(600.0, "Longest that fetching a file from a URL may take.")
    checksum_wait: float = _setting(20.0, "How long a listing waits for checksums of files that apps wrote.")
    checksum_entries: int = _setting(500_000, "How many files' checksums are held in memory.")
    part_ttl: float = _setting(7 * 86_400.0, "How long the parts of an unfinished multipart upload are kept.")
    webhook_ip_ranges: str = _setting(
        "127.0.0.1/32", "CIDR ranges, comma-separated, from which webhooks leave this machine; told by /v1/meta."
    )
    rate_limit: int = _setting(600, "Platform API calls a key may make in a minute; 0 for no limit.")
    idempotency_ttl: float = _setting(600.0, "How long the reply to a write with an Idempotency-Key is kept.")
    egress_private: bool = _setting(False, "Let the server fetch URLs that lead to private or loopback addresses.")

    # Deploying
    app_size: int = _setting(1024**3, "Most bytes of an app's own files.")
    app_files: int = _setting(20_000, "Most files of an app's folder.")
    build_timeout: float = _setting(1800.0, "Longest that the environment of an app may take to build.")
    import_timeout: float = _setting(300.0, "Longest that a look at an app's settings, which imports it, may take.")

    # Runners
    max_runners: int = _setting(16, "Most runner processes on this machine, all apps together.")
    warm_parents: int = _setting(8, "Most warmed parents, one an environment, kept to fork runners from; 0 for none.")
    mount_data: bool = _setting(True, "Show apps their files at /data itself, where the machine allows it.")
    fresh_idle: float = _setting(10.0, "A runner that has served nothing ends after this, unless it is to be kept.")
    log_rate: int = _setting(20_000, "Most log lines a second from one runner; the rest is counted and said.")
    usage_tick: float = _setting(15.0, "Runner seconds become usage this often, and at each change of state.")
    usage_heartbeat: float = _setting(
        1.0, "What runners came to since is written down this often: a killed server loses no older runner seconds."
    )

    # Telemetry
    telemetry_url: str = _setting("", "URL of a ClickHouse server; empty runs the embedded one.")
    telemetry_memory: int = _setting(2 * 1024**3, "Most memory that one query of the embedded store may take.")
    query_timeout: float = _setting(30.0, "Longest that a query of logs or analytics may run.")
    analytics_exact_rows: int = _setting(
        1_000_000, "Percentiles are exact up to so many requests in a reply; beyond it within 0.8 %."
    )
    analytics_calendars: int = _setting(
        24,
        "Calendars, such as days in Berlin, whose past buckets are computed once and kept; UTC hours and days always.",
    )
    analytics_buckets: int = _setting(2_000, "Most time buckets in one reply of analytics or usage.")
    telemetry_flush: float = _setting(0.2, "Longest that a log line waits before it is sent to the store.")
    records_flush: float = _setting(
        2.0, "Longest that the record of a request waits before it is sent to the store; a query fetches it at once."
    )
    telemetry_batch: int = _setting(25_000, "Most records in one insert into the store.")
    tail_lines: int = _setting(20_000, "Log lines of running and just ended requests that are held in memory.")
    log_spool: int = _setting(512 * 1024 * 1024, "Most bytes of log lines kept on disk while the store is down.")
    log_ahead: int = _setting(
        64 * 1024 * 1024, "Most bytes of log lines written down until the store has them, should the server be killed."
    )
    requests_days: int = _setting(400, "How many days request records and billing events are kept.")
    logs_days: int = _setting(30, "How many days log lines are kept.")
    events_days: int = _setting(400, "How many days app events and runner history are kept.")

    # Watching
    metrics_cache: float = _setting(2.0, "How long a Prometheus page is kept before it is made anew; 10 at most.")
    log_heartbeat: float = _setting(15.0, "A log stream without lines sends a comment this often.")
    log_tail_buffer: int = _setting(10_000, "Lines that may wait for one reader of a log stream; then it loses some.")
    exports_at_once: int = _setting(2, "Exports that may run at the same time, all owners together.")
    drain_interval: float = _setting(5.0, "How often a log drain posts what has come, when its batch is not full.")
    drain_timeout: float = _setting(10.0, "How long a log drain's receiver may take to answer.")
    drain_failures: int = _setting(5, "A log drain is switched off after this many failed posts in a row.")
    otlp_endpoint: str = _setting("", "URL of an OpenTelemetry collector (OTLP over HTTP); empty sends no traces.")
    otlp_headers: str = _setting("", "Headers for the collector, as name=value pairs separated by commas.")
    otlp_encoding: str = _setting("protobuf", "Encoding of traces: protobuf or json.")
    otlp_queue: int = _setting(20_000, "Spans that may wait for the collector; more are dropped and counted.")


MOST_PORT = 65_535
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
TABLES = frozenset({"machines"})
"""Tables of `DIR/varvel.toml` that their own rooms read: `[machines.NAME]` is `varvel.billing.machines`."""


def environment_name(name: str) -> str:
    """`tls_port` -> `VARVEL_TLS_PORT`."""
    return f"VARVEL_{name.upper()}"


def load(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the given flags (None means not given), the environment, and `DIR/varvel.toml`."""
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in flags.items() if value is not None}
    data = Path(given.get("data") or environ.get("VARVEL_DATA") or Settings.data).absolute()
    path = data / "varvel.toml"
    try:
        file = tomllib.loads(path.read_text()) if path.exists() else {}
    except (OSError, tomllib.TOMLDecodeError) as problem:
        raise BadSetting(f"{path} cannot be read: {problem}") from problem
    known = {item.name for item in fields(Settings)}
    if unknown := sorted(set(file) - known - TABLES):
        raise BadSetting(f"{path} names settings that do not exist: {', '.join(unknown)}")
    types = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for name in known - {"data"}:
        if name in given:
            values[name] = _convert(name, given[name], types[name], "flag")
        elif environment_name(name) in environ:
            values[name] = _convert(name, environ[environment_name(name)], types[name], environment_name(name))
        elif name in file:
            values[name] = _convert(name, file[name], types[name], str(path))
    return Settings(data=data, **values)


def _convert(name: str, value: Any, kind: type, source: str) -> Any:
    try:
        if kind is bool and isinstance(value, str):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
        found = kind(value)
    except (ValueError, TypeError, KeyError, OverflowError) as problem:
        raise BadSetting(f"{source}: {name} must be {kind.__name__}, not {value!r}") from problem
    if wrong := _wrong(name, found):
        raise BadSetting(f"{source}: {name} must be {wrong}, not {value!r}")
    return found


def _wrong(name: str, value: Any) -> str | None:
    """What a value of the right type must be and is not."""
    if isinstance(value, int | float) and not (value >= 0 and math.isfinite(value)):
        return "a number from 0 on"
    if name in ("port", "tls_port", "control_port") and value > MOST_PORT:
        return f"from 0 to {MOST_PORT}"
    if name == "log_level" and value.lower() not in LOG_LEVELS:
        return f"one of {', '.join(LOG_LEVELS)}"
    return None
