"""State on disk: the SQLite database with its one writer, and the outbox to telemetry."""
