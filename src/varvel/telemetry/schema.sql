-- Tables of the telemetry store. Every statement may run again on a store that has it already.
--
-- Times are microseconds since 1970 (UTC) as Int64, as in `telemetry/model.py`. For a calendar bucket in a time
-- zone: toStartOfHour(toDateTime(intDiv(ended_at, 1000000), 'Europe/Berlin')).
-- A day is a partition, so that old data go by dropping whole days. `status` and `error_group` are computed on
-- insert and are not part of SELECT *: name them.

CREATE TABLE IF NOT EXISTS requests (
    request_id String CODEC(ZSTD(1)),
    owner LowCardinality(String),
    app LowCardinality(String),
    endpoint_id LowCardinality(String),
    caller LowCardinality(String),
    kind LowCardinality(String),
    method LowCardinality(String),
    sent_at Int64 CODEC(Delta, ZSTD(1)),
    started_at Int64 CODEC(Delta, ZSTD(1)),
    ended_at Int64 CODEC(Delta, ZSTD(1)),
    status_code UInt16,
    error_type LowCardinality(String),
    duration Float64,
    prepare_duration Float64,
    cold_boot Float64,
    runner_id LowCardinality(String),
    revision LowCardinality(String),
    machine_type LowCardinality(String),
    attempts UInt16,
    status LowCardinality(String) MATERIALIZED multiIf(
        status_code >= 500, 'error', status_code >= 400, 'user_error', status_code >= 200 AND status_code < 300, 'success', ''),
    error_group LowCardinality(String) MATERIALIZED multiIf(
        error_type IN ('startup_timeout', 'runner_scheduling_failure'), 'startup',
        error_type IN ('runner_connection_timeout', 'runner_disconnected', 'runner_connection_refused',
            'runner_connection_error', 'runner_incomplete_response'), 'connection',
        error_type = 'request_timeout', 'timeout',
        error_type IN ('runner_server_error', 'internal_error'), 'runtime', ''),
    INDEX by_request request_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX by_time ended_at TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(ended_at, 'UTC'))
ORDER BY (owner, endpoint_id, ended_at, request_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Whole hours of `requests`, one or more rows of states an hour: read with sum() and quantilesBFloat16Merge(...).
-- The percentiles are rounded down by at most 0.8 %. `hour` is the UTC hour's first microsecond.
CREATE TABLE IF NOT EXISTS requests_hourly (
    owner LowCardinality(String),
    endpoint_id LowCardinality(String),
    hour Int64 CODEC(Delta, ZSTD(1)),
    request_count SimpleAggregateFunction(sum, UInt64),
    success_count SimpleAggregateFunction(sum, UInt64),
    user_error_count SimpleAggregateFunction(sum, UInt64),
    error_count SimpleAggregateFunction(sum, UInt64),
    startup_error_count SimpleAggregateFunction(sum, UInt64),
    connection_error_count SimpleAggregateFunction(sum, UInt64),
    timeout_error_count SimpleAggregateFunction(sum, UInt64),
    runtime_error_count SimpleAggregateFunction(sum, UInt64),
    cold_boot_count SimpleAggregateFunction(sum, UInt64),
    duration AggregateFunction(quantilesBFloat16(0.25, 0.5, 0.75, 0.9, 0.95, 0.99), Float64),
    prepare_duration AggregateFunction(quantilesBFloat16(0.5, 0.75, 0.9, 0.95, 0.99), Float64),
    cold_boot_duration AggregateFunction(quantilesBFloat16(0.5, 0.75, 0.9), Float64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(hour, 'UTC'))
ORDER BY (owner, endpoint_id, hour)
SETTINGS index_granularity = 128, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS requests_hourly_feed TO requests_hourly AS
SELECT
    owner,
    endpoint_id,
    intDiv(ended_at, 3600000000) * 3600000000 AS hour,
    count() AS request_count,
    countIf(status = 'success') AS success_count,
    countIf(status = 'user_error') AS user_error_count,
    countIf(status = 'error') AS error_count,
    countIf(error_group = 'startup') AS startup_error_count,
    countIf(error_group = 'connection') AS connection_error_count,
    countIf(error_group = 'timeout') AS timeout_error_count,
    countIf(error_group = 'runtime') AS runtime_error_count,
    countIf(cold_boot > 1) AS cold_boot_count,
    quantilesBFloat16State(0.25, 0.5, 0.75, 0.9, 0.95, 0.99)(requests.duration) AS duration,
    quantilesBFloat16State(0.5, 0.75, 0.9, 0.95, 0.99)(requests.prepare_duration) AS prepare_duration,
    quantilesBFloat16StateIf(0.5, 0.75, 0.9)(cold_boot, cold_boot > 1) AS cold_boot_duration
FROM requests
GROUP BY owner, endpoint_id, hour;

CREATE TABLE IF NOT EXISTS payloads (
    request_id String CODEC(ZSTD(1)),
    owner LowCardinality(String),
    ended_at Int64 CODEC(Delta, ZSTD(1)),
    input String CODEC(ZSTD(3)),
    output String CODEC(ZSTD(3)),
    INDEX by_request request_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(ended_at, 'UTC'))
ORDER BY (ended_at, request_id)
SETTINGS index_granularity = 256, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS billing (
    request_id String CODEC(ZSTD(1)),
    owner LowCardinality(String),
    app LowCardinality(String),
    endpoint_id LowCardinality(String),
    caller LowCardinality(String),
    ended_at Int64 CODEC(Delta, ZSTD(1)),
    recorded_at Int64 CODEC(Delta, ZSTD(1)),
    billable_units Float64,
    billable_duration Float64,
    machine_type LowCardinality(String),
    unit LowCardinality(String),
    INDEX by_request request_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX by_time ended_at TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(ended_at, 'UTC'))
ORDER BY (owner, endpoint_id, ended_at, request_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Whole hours of `billing`: read with sum().
CREATE TABLE IF NOT EXISTS billing_hourly (
    owner LowCardinality(String),
    endpoint_id LowCardinality(String),
    machine_type LowCardinality(String),
    unit LowCardinality(String),
    hour Int64 CODEC(Delta, ZSTD(1)),
    billing_count UInt64,
    billable_units Float64,
    billable_duration Float64
)
ENGINE = SummingMergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(hour, 'UTC'))
ORDER BY (owner, endpoint_id, machine_type, unit, hour)
SETTINGS index_granularity = 128, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS billing_hourly_feed TO billing_hourly AS
SELECT
    owner,
    endpoint_id,
    machine_type,
    unit,
    intDiv(ended_at, 3600000000) * 3600000000 AS hour,
    count() AS billing_count,
    sum(billing.billable_units) AS billable_units,
    sum(billing.billable_duration) AS billable_duration
FROM billing
GROUP BY owner, endpoint_id, machine_type, unit, hour;

-- Figures of stretches of time that are over, with exact percentiles: what `closing.py` computes once from all rows.
-- `step` is the calendar that cut them: `hour` and `day` of UTC, or a timeframe and a zone, such as `week Asia/Tokyo`.
-- Rows count only while `closed_spans` says so (see `closed.py`); of rows with the same key the one with the greatest
-- `version` counts.
CREATE TABLE IF NOT EXISTS requests_closed (
    owner LowCardinality(String),
    step LowCardinality(String),
    endpoint_id LowCardinality(String),
    since Int64 CODEC(Delta, ZSTD(1)),
    version Int64,
    request_count UInt64,
    success_count UInt64,
    user_error_count UInt64,
    error_count UInt64,
    startup_error_count UInt64,
    connection_error_count UInt64,
    timeout_error_count UInt64,
    runtime_error_count UInt64,
    cold_boot_count UInt64,
    duration Array(Float64),
    prepare_duration Array(Float64),
    cold_boot_duration Array(Float64),
    total_billable_duration Float64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(fromUnixTimestamp64Micro(since, 'UTC'))
ORDER BY (owner, step, endpoint_id, since)
SETTINGS index_granularity = 256, fsync_after_insert = 1, fsync_part_directory = 1;

-- The longest requests of each closed UTC day and endpoint, `place` 1 first. They count when their `version` is that
-- of the day in `closed_spans`. When the day had requests that found no place, the last one is there as place 0, too.
CREATE TABLE IF NOT EXISTS requests_longest (
    owner LowCardinality(String),
    endpoint_id LowCardinality(String),
    day Int64 CODEC(Delta, ZSTD(1)),
    version Int64 CODEC(Delta, ZSTD(1)),
    place UInt16,
    request_id String CODEC(ZSTD(1)),
    started_at Int64 CODEC(Delta, ZSTD(1)),
    sent_at Int64 CODEC(Delta, ZSTD(1)),
    ended_at Int64 CODEC(Delta, ZSTD(1)),
    status_code UInt16,
    duration Float64,
    runner_id LowCardinality(String)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(fromUnixTimestamp64Micro(day, 'UTC'))
ORDER BY (owner, endpoint_id, place, day, version)
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;

-- Which stretches are closed: while the UTC days that [since, until) touches have so many rows. A UTC day stands for
-- its hours, too.
CREATE TABLE IF NOT EXISTS closed_spans (
    step LowCardinality(String),
    since Int64,
    until Int64,
    requests UInt64,
    billing UInt64,
    version Int64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(fromUnixTimestamp64Micro(since, 'UTC'))
ORDER BY (step, since)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS events (
    event_id String,
    owner LowCardinality(String),
    app LowCardinality(String),
    category LowCardinality(String),
    created_at Int64 CODEC(Delta, ZSTD(1)),
    payload String CODEC(ZSTD(3))
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(created_at, 'UTC'))
ORDER BY (owner, app, created_at, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS runner_states (
    row_id String,
    owner LowCardinality(String),
    app LowCardinality(String),
    environment LowCardinality(String),
    machine_type LowCardinality(String),
    gpus UInt16,
    since Int64 CODEC(Delta, ZSTD(1)),
    until Int64 CODEC(Delta, ZSTD(1)),
    seconds Float64,
    pending UInt32,
    setup UInt32,
    idle UInt32,
    running UInt32,
    draining UInt32,
    terminating UInt32
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(since, 'UTC'))
ORDER BY (owner, app, since, row_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- For stores that were made without it.
ALTER TABLE runner_states ADD COLUMN IF NOT EXISTS gpus UInt16 AFTER machine_type;

-- A search for words goes through the index when it is written hasAllTokens(lower(message), {words:String}) with
-- the words in lower case; any other search reads the messages of its time range.
-- The granules are small because the lines of a search lie far apart, and each is read with its whole granule.
-- A label: labels['fal_request_id'] = 'x' (add has(mapValues(labels), 'x') to use the index).
CREATE TABLE IF NOT EXISTS logs (
    ts Int64 CODEC(Delta, ZSTD(1)),
    owner LowCardinality(String),
    app LowCardinality(String),
    revision LowCardinality(String),
    job_id LowCardinality(String),
    request_id String CODEC(ZSTD(1)),
    endpoint LowCardinality(String),
    level LowCardinality(String),
    source LowCardinality(String),
    message String CODEC(ZSTD(1)),
    labels Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    INDEX by_request request_id TYPE bloom_filter(0.01) GRANULARITY 8,
    INDEX by_job job_id TYPE bloom_filter(0.01) GRANULARITY 8,
    INDEX by_label mapValues(labels) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_level level TYPE set(16) GRANULARITY 4,
    INDEX by_app app TYPE set(100) GRANULARITY 4,
    INDEX by_word lower(message) TYPE text(tokenizer = splitByNonAlpha)
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(fromUnixTimestamp64Micro(ts, 'UTC'))
ORDER BY ts
SETTINGS index_granularity = 1024, fsync_after_insert = 1, fsync_part_directory = 1;
