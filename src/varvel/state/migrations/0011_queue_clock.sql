-- By how many seconds the clock was set while servers ran on this folder: results expire by a time without these steps.
CREATE TABLE queue_clock (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    steps REAL NOT NULL
);
