-- Waiting and running jobs: small rows, so that a restart reads a million of them in seconds.
CREATE TABLE queue_jobs (
    seq INTEGER PRIMARY KEY,          -- order of arrival, given by the scheduler
    request_id TEXT NOT NULL,
    app TEXT NOT NULL,
    low INTEGER NOT NULL,
    caller TEXT,
    hint TEXT,
    start_deadline REAL,
    state INTEGER NOT NULL DEFAULT 0, -- 0 queued, 1 running
    attempts INTEGER NOT NULL DEFAULT 0,
    started_at REAL NOT NULL DEFAULT 0,
    retries TEXT NOT NULL DEFAULT '{}',
    cancel INTEGER NOT NULL DEFAULT 0, -- asked to cancel while it ran
    body_file TEXT                    -- name in the spill folder of a body too large for queue_bodies
);

-- What a job carries, read when it is dispatched.
CREATE TABLE queue_bodies (
    seq INTEGER PRIMARY KEY,
    job BLOB NOT NULL,
    body BLOB NOT NULL
);

-- Ended jobs until their results expire. `place` begins with the expiry time in milliseconds, so that
-- expired rows are a range at the front and need no index of their own.
CREATE TABLE queue_results (
    place INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    body_file TEXT,
    job BLOB NOT NULL,
    outcome BLOB NOT NULL,
    body BLOB NOT NULL
);

-- Flushed jobs whose ends are still being written: packed 64-bit seqs.
CREATE TABLE queue_flushes (
    flush INTEGER PRIMARY KEY,
    seqs BLOB NOT NULL
);

-- Records on their way to telemetry: a batch of JSON lines a row. Numbers are never used again.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    rows INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX outbox_kind ON outbox (kind, seq);
