CREATE TABLE owners (
    nickname TEXT PRIMARY KEY,
    email TEXT,
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE keys (
    key_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL REFERENCES owners (nickname),
    alias TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('API', 'ADMIN')),
    secret_hash BLOB NOT NULL,
    created_at REAL NOT NULL,
    creator TEXT NOT NULL,
    expires_at REAL,
    last_used_at REAL,
    revoked_at REAL
) STRICT;

CREATE INDEX keys_by_owner ON keys (owner, created_at DESC, key_id DESC);

-- One random secret from which all others of this server are derived.
CREATE TABLE server_secrets (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
