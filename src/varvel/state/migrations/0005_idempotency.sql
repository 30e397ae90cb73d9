-- Replies to writes that came with an Idempotency-Key, until they expire.
CREATE TABLE idempotent_replies (
    owner TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    status INTEGER NOT NULL,
    body BLOB NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (owner, idempotency_key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotent_replies_by_age ON idempotent_replies (created_at);
