"""What leaves for other systems: log drains, and traces to an OpenTelemetry collector."""
