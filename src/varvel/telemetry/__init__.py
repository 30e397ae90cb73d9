"""Request records, log lines, events and runner history: how they get into the store and live to readers."""
