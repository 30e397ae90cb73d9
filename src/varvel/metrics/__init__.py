"""Counters kept in memory: the Prometheus page of an account, and the server's own."""
