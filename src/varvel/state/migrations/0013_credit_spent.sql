-- What owners with credit have used from their first credit until `until` (microseconds), as far as that is settled.
CREATE TABLE credit_spent (
    owner TEXT PRIMARY KEY,
    until INTEGER NOT NULL,
    amount TEXT NOT NULL
) STRICT, WITHOUT ROWID;
