"""Rules of order, claims, retries and timeouts; the store of what waits; the scheduler that runs it."""
