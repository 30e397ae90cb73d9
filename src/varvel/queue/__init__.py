"""Queued requests: their order, when they run, how they are tried again, and the one end that each reaches."""
