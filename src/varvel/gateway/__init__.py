"""A request's way in and out: sync, queue, stream, realtime, webhooks, uploads."""
