-- Webhooks that are owed: a row is made with its request, and goes when it was delivered or given up.
CREATE TABLE webhooks (
    request_id TEXT PRIMARY KEY,
    tries INTEGER NOT NULL DEFAULT 0,
    next_at REAL NOT NULL DEFAULT 0
) STRICT;
