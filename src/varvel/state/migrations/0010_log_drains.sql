-- Where owners have their log lines sent. The secret is encrypted with a key of this server.
CREATE TABLE log_drains (
    drain_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    url TEXT NOT NULL,
    secret BLOB NOT NULL,
    batch_size INTEGER NOT NULL,
    created_at REAL NOT NULL,
    active INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    last_error TEXT,
    last_sent_at REAL,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX log_drains_one_active ON log_drains (owner) WHERE active = 1;
