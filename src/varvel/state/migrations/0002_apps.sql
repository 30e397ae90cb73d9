-- Apps, and the revisions of each. Columns in JSON hold what only the apps room reads.
CREATE TABLE apps (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    environment TEXT NOT NULL,
    current_revision TEXT NOT NULL,
    auth_mode TEXT NOT NULL,
    tuned TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT;

CREATE TABLE revisions (
    revision_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    created_at REAL NOT NULL,
    -- Relative to the data folder where they lie in it.
    folder TEXT NOT NULL,
    python TEXT NOT NULL,
    message TEXT,
    annotations TEXT,
    status TEXT NOT NULL,
    deployed_by TEXT
) STRICT;

CREATE INDEX revisions_by_app ON revisions (owner, name, created_at DESC, revision_id DESC);
