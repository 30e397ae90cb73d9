"""What must survive a crash: one SQLite database, its outbox to telemetry, and the ledger of finished calls."""
