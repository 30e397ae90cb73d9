-- What a second of each machine type cost, from when on. Money is text, for it is exact decimals.
CREATE TABLE machine_prices (
    machine_type TEXT NOT NULL,
    since INTEGER NOT NULL,
    price_second TEXT NOT NULL,
    surge TEXT NOT NULL,
    surge_hours TEXT NOT NULL,
    percent_discount TEXT,
    PRIMARY KEY (machine_type, since)
) STRICT, WITHOUT ROWID;

-- Credit that owners were given.
CREATE TABLE credits (
    credit_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    amount TEXT NOT NULL,
    granted_at INTEGER NOT NULL,
    note TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX credits_by_owner ON credits (owner, granted_at);

-- Closed months: lines that no later change of prices or retention touches.
CREATE TABLE invoices (
    owner TEXT NOT NULL,
    month TEXT NOT NULL,
    invoice_id TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    total TEXT NOT NULL,
    lines TEXT NOT NULL,
    PRIMARY KEY (owner, month)
) STRICT, WITHOUT ROWID;
