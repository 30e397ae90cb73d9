-- What the intervals of runners that go on have come to: rows as the telemetry store takes them. A server that starts
-- finds here what a killed one had not yet handed on.
CREATE TABLE runner_intervals (
    name TEXT PRIMARY KEY,
    rows BLOB NOT NULL
) STRICT, WITHOUT ROWID;
